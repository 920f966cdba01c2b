//! The rows of `polykv bench`, in four forms. Scripts depend on the fields: they may be added, never renamed or
//! dropped.

use super::{bytes, trimmed};
use crate::args::Format;
use polykv::CacheReport;
use serde_json::{Value, json};

/// One test under one plan.
pub struct Row {
    /// `pp512`, `tg128@d2048`
    pub test: String,
    pub plan: String,
    pub plan_hash: String,
    pub tok_s: Spread,
    pub ttft_ms: Spread,
    /// The caches after the last token.
    pub kv: Vec<CacheReport>,
    /// Bytes that decoding read per second, over `bandwidth`; none where that is not measured.
    pub bound_share: Option<f64>,
    /// Bytes per second.
    pub bandwidth: Option<f64>,
    pub model: String,
    pub random_weights: bool,
    pub device: String,
    pub dtype: &'static str,
    pub threads: usize,
    pub batch: usize,
    pub repeats: usize,
    pub seed: u64,
}

/// Mean and standard deviation of the repeats (the sample's; 0 for a single one).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub mean: f64,
    pub sd: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = match values.len() {
            0 | 1 => 0.0,
            _ => (squares / (count - 1.0)).sqrt(),
        };
        Self { mean, sd }
    }
}

/// The columns of the CSV form, in order.
const COLUMNS: [&str; 22] = [
    "test",
    "plan",
    "plan_hash",
    "tok_s_mean",
    "tok_s_sd",
    "ttft_ms",
    "ttft_ms_sd",
    "kv_bytes",
    "peak_bytes",
    "kept_min",
    "kept_mean",
    "kept_max",
    "bound_share",
    "bandwidth_bytes_s",
    "model",
    "random_weights",
    "device",
    "dtype",
    "threads",
    "batch",
    "repeats",
    "seed",
];

impl Row {
    fn bytes(&self) -> usize {
        self.kv.iter().map(|cache| cache.bytes).sum()
    }

    /// The sum of the caches' peaks, which one after the other had.
    fn peak_bytes(&self) -> usize {
        self.kv.iter().map(|cache| cache.peak_bytes).sum()
    }

    /// The least, the mean and the most entries of all layers.
    fn kept(&self) -> [f64; 3] {
        let least = self.kv.iter().map(CacheReport::kept_min);
        let most = self.kv.iter().map(CacheReport::kept_max);
        let means: f64 = self.kv.iter().map(CacheReport::kept_mean).sum();
        [
            least.fold(f64::INFINITY, f64::min),
            means / self.kv.len().max(1) as f64,
            most.fold(0.0, f64::max),
        ]
    }

    /// The object of the JSON forms; what is not measured is left out.
    fn json(&self) -> Value {
        let mut object = json!({
            "test": self.test,
            "plan": self.plan,
            "plan_hash": self.plan_hash,
            "tok_s_mean": self.tok_s.mean,
            "tok_s_sd": self.tok_s.sd,
            "ttft_ms": self.ttft_ms.mean,
            "ttft_ms_sd": self.ttft_ms.sd,
            "kv_bytes": self.bytes(),
            "peak_bytes": self.peak_bytes(),
            "kept_min": self.kept()[0],
            "kept_mean": self.kept()[1],
            "kept_max": self.kept()[2],
            "model": self.model,
            "random_weights": self.random_weights,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "batch": self.batch,
            "repeats": self.repeats,
            "seed": self.seed,
        });
        for (name, value) in [
            ("bound_share", self.bound_share),
            ("bandwidth_bytes_s", self.bandwidth),
        ] {
            if let Some(value) = value {
                object[name] = value.into();
            }
        }
        object
    }

    fn markdown(&self) -> String {
        let share = self
            .bound_share
            .map(|share| format!("{:.1} %", share * 100.0));
        let cells = [
            self.test.clone(),
            self.plan.replace('|', "\\|"),
            format!("{:.2} ± {:.2}", self.tok_s.mean, self.tok_s.sd),
            format!("{:.1} ± {:.1}", self.ttft_ms.mean, self.ttft_ms.sd),
            bytes(self.bytes()),
            bytes(self.peak_bytes()),
            self.kept().map(trimmed).join(" / "),
            share.unwrap_or_else(|| "–".into()),
        ];
        format!("| {} |", cells.join(" | "))
    }
}

/// All rows in one form, without a final line break.
///
/// # Errors
/// Numbers that JSON cannot hold.
pub fn render(rows: &[Row], format: Format) -> serde_json::Result<String> {
    let objects: Vec<Value> = rows.iter().map(Row::json).collect();
    Ok(match format {
        Format::Md => markdown(rows),
        Format::Json => serde_json::to_string(&objects)?,
        Format::Jsonl => {
            let lines: serde_json::Result<Vec<String>> =
                objects.iter().map(serde_json::to_string).collect();
            lines?.join("\n")
        }
        Format::Csv => {
            let header = COLUMNS.map(str::to_string).join(",");
            let lines = objects
                .iter()
                .map(|object| COLUMNS.map(|name| csv(&object[name])).join(","));
            [header]
                .into_iter()
                .chain(lines)
                .collect::<Vec<_>>()
                .join("\n")
        }
    })
}

fn markdown(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    if let Some(row) = rows.first() {
        let weights = if row.random_weights {
            ", random weights"
        } else {
            ""
        };
        let mut facts = format!(
            "{}{weights}, {}, {}, {} threads, batch {}, {} repeats",
            row.model, row.device, row.dtype, row.threads, row.batch, row.repeats
        );
        if let Some(bandwidth) = row.bandwidth {
            facts.push_str(&format!(", memory read at {}/s", bytes(bandwidth as usize)));
        }
        lines.extend([facts, String::new()]);
    }
    lines.push(
        "| test | plan | tok/s | TTFT ms | KV | KV peak | kept min / mean / max | of the bandwidth |".into(),
    );
    lines.push("|---|---|--:|--:|--:|--:|--:|--:|".into());
    lines.extend(rows.iter().map(Row::markdown));
    lines.join("\n")
}

fn csv(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.contains([',', '"', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_those_of_a_sample() {
        let spread = Spread::of([2.0, 4.0, 6.0].into_iter());
        assert_eq!(spread, Spread { mean: 4.0, sd: 2.0 });
        assert_eq!(Spread::of([3.0].into_iter()).sd, 0.0);
    }

    #[test]
    fn csv_fields_are_quoted_where_needed() {
        assert_eq!(csv(&json!("a,\"b\"")), "\"a,\"\"b\"\"\"");
        assert_eq!(csv(&json!("plain")), "plain");
        assert_eq!(csv(&json!(1.5)), "1.5");
        assert_eq!(csv(&Value::Null), "");
    }
}
