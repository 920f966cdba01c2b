//! What is printed: data on standard output, statistics and progress on standard error.

pub mod bench;
pub mod calibrate;
pub mod console;
pub mod eval;
mod json;
pub mod kept;
pub mod picture;
pub mod progress;
pub mod report;
pub mod stats;

use comfy_table::{Table, presets};
use polykv::models::Generation;
use polykv::plan::LayerRange;
use polykv::policy::Params;
use polykv::{Budget, Error, KvCache, Phase, PlanFile, Result};
pub use polykv_core::files::write_whole;
use serde::Serialize;
use std::path::Path;

/// A finished generation and where it ran.
pub struct Run<'a> {
    pub model: &'a str,
    pub device: String,
    pub dtype: &'static str,
    /// What states the cache's plan.
    pub plan: &'a PlanFile,
    pub generation: &'a Generation,
    pub cache: &'a KvCache,
    /// The session that this goes on from.
    pub session: Option<ResumedSession>,
    /// Bytes of the session that was written.
    pub saved: Option<usize>,
}

/// What a session gave to the sequence.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ResumedSession {
    /// Tokens that it had been given.
    pub tokens: usize,
    pub reuse: Reuse,
}

/// What of the tokens before a session went on is still there.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reuse {
    /// Everything that attention can see.
    Exact,
    /// What the policies kept.
    Compressed,
}

/// Text without line breaks and other control characters, which files and servers may put into messages.
pub fn one_line(text: &str) -> String {
    let cleared = text.replace(char::is_control, " ");
    cleared
        .split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A folder to be written to, whether it is there or not.
///
/// # Errors
/// A file in its place.
pub fn check_folder(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(found) if !found.is_dir() => {
            let allowed = "a folder, or a name that is free";
            Err(Error::invalid(path.display(), "output", "a file", allowed))
        }
        _ => Ok(()),
    }
}

/// Text that is neither markup nor the end of an attribute.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// An empty table in this program's style.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(header);
    table
}

/// The budget of a plan in words.
pub fn describe_budget(plan: &PlanFile) -> String {
    if !Phase::BOTH.into_iter().any(|phase| plan.evicts(phase)) {
        return "everything is kept".into();
    }
    let online = plan.online.as_ref();
    let split = online.map_or(String::new(), |name| format!(", split by {name}"));
    let split = match plan.at_least {
        0 => split,
        least => format!(", at least {least} entries per layer{split}"),
    };
    match plan.budget {
        Budget::Tokens(tokens) => format!("{tokens} entries per layer on average{split}"),
        Budget::Total(total) => format!("{total} entries over all layers{split}"),
        Budget::Ratio(ratio) => format!("{} of the prompt{split}", percent(ratio)),
        Budget::ByteRatio(ratio) => {
            let part = percent(ratio);
            format!("{part} of the prompt's bytes in 16-bit floats{split}")
        }
        Budget::Bytes(count) => format!("{} over all layers{split}", bytes(count as usize)),
    }
}

/// How the layers of a plan keep their entries.
pub fn describe_codes(plan: &PlanFile) -> String {
    let all = LayerRange::all(plan.layers);
    match plan.kv.as_slice() {
        [] => "in the cache's type".into(),
        [only] if only.layers == all => format!("in {}", only.codes),
        some => {
            let parts = some
                .iter()
                .map(|one| format!("{} in layers {}", one.codes, one.layers));
            parts.collect::<Vec<_>>().join(", ")
        }
    }
}

/// How the layers of a plan divide their budgets over their KV heads; `None` if their policies do.
pub fn describe_heads(plan: &PlanFile) -> Option<String> {
    let counts = plan.heads.iter().map(|one| one.layers.count());
    let layers: usize = counts.sum();
    (layers > 0).then(|| format!("by parts in {layers} of {} layers", plan.layers))
}

/// Parameters as `--set` takes them.
pub fn describe_params(params: &Params) -> String {
    let parts: Vec<_> = params
        .settings()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.join(" ")
}

/// A size with a decimal unit.
pub fn bytes(count: usize) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|(_, size)| count as f64 >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", count as f64 / size),
        None => format!("{count} B"),
    }
}

/// A share that somebody stated, with the digits that it was stated with.
fn percent(share: f64) -> String {
    let text = format!("{:.4}", share * 100.0);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} %")
}

/// At most one decimal, none if it is zero.
fn trimmed(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_their_digits() {
        let shares = [1.0, 0.5, 0.125, 0.0625, 0.1, 0.001].map(percent);
        assert_eq!(
            shares,
            ["100 %", "50 %", "12.5 %", "6.25 %", "10 %", "0.1 %"]
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0, 999, 1000, 98_362_432].map(bytes),
            ["0 B", "999 B", "1.0 kB", "98.4 MB"]
        );
        assert_eq!([256.0, 12.34, 0.04].map(trimmed), ["256", "12.3", "0"]);
    }

    #[test]
    fn lines_stay_single() {
        assert_eq!(one_line("a\r\n  b\u{1b}[2J\tc "), "a b [2J c");
    }
}
