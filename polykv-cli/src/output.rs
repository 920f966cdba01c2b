//! What is printed: data on standard output, statistics and progress on standard error.

pub mod bench;
pub mod calibrate;
pub mod eval;
mod json;
pub mod kept;
pub mod picture;
pub mod progress;
pub mod report;
pub mod stats;

use comfy_table::{Table, presets};
use polykv::models::Generation;
use polykv::policy::Params;
use polykv::{Budget, Error, KvCache, Phase, Plan, Result};
use serde_yaml_ng::Value;
use std::io::Write;
use std::path::Path;

/// A finished generation and where it ran.
pub struct Run<'a> {
    pub model: &'a str,
    pub device: String,
    pub dtype: &'static str,
    pub generation: &'a Generation,
    pub cache: &'a KvCache,
}

impl Run<'_> {
    /// Entries per KV head and layer of the first sequence, if the heads of some layer differ.
    fn kept_heads(&self) -> Option<Vec<Vec<usize>>> {
        let layers = self.cache.layers().iter();
        let heads: Vec<Vec<usize>> = layers
            .map(|layer| layer.lengths().into_iter().next().unwrap_or_default())
            .collect();
        let differ = |layer: &Vec<usize>| layer.windows(2).any(|pair| pair[0] != pair[1]);
        heads.iter().any(differ).then_some(heads)
    }
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

/// Writes under a temporary name, then renames: a reader never sees half a file.
///
/// # Errors
/// A folder that is not there or cannot be written.
pub fn write_whole(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = Path::new(&name);
    std::fs::File::create(part)
        .and_then(|mut file| file.write_all(content.as_ref()))
        .and_then(|()| std::fs::rename(part, path))
        .map_err(|e| Error::io(path, e))
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
pub fn describe_budget(plan: &Plan) -> String {
    let mut rules = [Phase::Prefill, Phase::Decode]
        .iter()
        .flat_map(|phase| plan.rules(*phase));
    if rules.all(|rule| rule.policy == "full") {
        return "everything is kept".into();
    }
    let online = plan.online.as_ref();
    let split = online.map_or(String::new(), |name| format!(", split by {name}"));
    match plan.budget {
        Budget::Tokens(tokens) => format!("{tokens} entries per layer on average{split}"),
        Budget::Ratio(ratio) => format!("{} % of the prompt{split}", trimmed(ratio * 100.0)),
        Budget::Bytes(count) => format!("{} over all layers{split}", bytes(count as usize)),
    }
}

/// Parameters as `--set` takes them.
pub fn describe_params(params: &Params) -> String {
    let parts: Vec<_> = params
        .iter()
        .map(|(key, value)| format!("{key}={}", in_one_line(value)))
        .collect();
    parts.join(" ")
}

/// A value as YAML in one line.
fn in_one_line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Sequence(list) if list.iter().all(|own| member(own).is_some()) => {
            let members: Vec<_> = list.iter().filter_map(member).collect();
            members.join(",")
        }
        Value::Sequence(list) => {
            let parts: Vec<_> = list.iter().map(in_one_line).collect();
            format!("[{}]", parts.join(", "))
        }
        Value::Mapping(map) => {
            let part = |(key, value)| format!("{}: {}", in_one_line(key), in_one_line(value));
            let parts: Vec<_> = map.iter().map(part).collect();
            format!("{{{}}}", parts.join(", "))
        }
        other => serde_yaml_ng::to_string(other)
            .unwrap_or_default()
            .trim()
            .to_string(),
    }
}

/// A policy that has nothing but its share, in the short form that `--set policies=` takes.
fn member(value: &Value) -> Option<String> {
    let map = value.as_mapping().filter(|map| map.len() == 2)?;
    let [policy, share] = ["policy", "share"].map(|key| map.get(key).map(in_one_line));
    Some(format!("{}:{}", policy?, share?))
}

/// A size with a decimal unit.
pub fn bytes(count: usize) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|(_, size)| count as f64 >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", count as f64 / size),
        None => format!("{count} B"),
    }
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
