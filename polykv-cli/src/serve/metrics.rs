//! What a server has done, as Prometheus reads it.

use polykv::models::engine::EngineStats;
use std::fmt::Write;

/// Upper bounds of a histogram's buckets, in seconds.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Durations by bucket.
#[derive(Clone, Debug, Default)]
struct Histogram {
    counts: [u64; BOUNDS.len()],
    sum: f64,
    count: u64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(seconds <= bound);
        }
        self.sum += seconds;
        self.count += 1;
    }

    fn write(&self, to: &mut String, name: &str, help: &str) -> std::fmt::Result {
        writeln!(to, "# HELP {name} {help}\n# TYPE {name} histogram")?;
        for (count, bound) in self.counts.iter().zip(BOUNDS) {
            writeln!(to, "{name}_bucket{{le=\"{bound}\"}} {count}")?;
        }
        let (sum, count) = (self.sum, self.count);
        writeln!(to, "{name}_bucket{{le=\"+Inf\"}} {count}")?;
        writeln!(to, "{name}_sum {sum}\n{name}_count {count}")
    }
}

/// What the engine's thread leaves for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub engine: EngineStats,
    /// Bytes that all requests may hold together.
    kv_memory: Option<u64>,
    pub requests: u64,
    pub refused: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Entries that evictions removed, over all layers of the answers that have ended.
    pub evicted: u64,
    first_token: Histogram,
    gap: Histogram,
}

impl Metrics {
    /// Nothing yet, of a server with so much memory for caches.
    pub fn new(kv_memory: Option<u64>) -> Self {
        Self {
            kv_memory,
            ..Self::default()
        }
    }

    /// The time from a request to its first token.
    pub fn first_token(&mut self, seconds: f64) {
        self.first_token.add(seconds);
    }

    /// The time between two tokens of an answer.
    pub fn gap(&mut self, seconds: f64) {
        self.gap.add(seconds);
    }

    /// The text that Prometheus reads, with the names that routers of vLLM look for beside our own. `model` is in their labels.
    pub fn text(&self, model: &str) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text, model);
        text
    }

    fn write(&self, to: &mut String, model: &str) -> std::fmt::Result {
        let engine = &self.engine;
        let running = engine.prompts + engine.sequences;
        let model: String = model
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                '\n' => vec![' '],
                c => vec![c],
            })
            .collect();
        let label = format!("{{model_name=\"{model}\"}}");
        let used = match self.kv_memory {
            Some(limit) if limit > 0 => engine.reserved_bytes as f64 / limit as f64,
            _ => 0.0,
        };
        let saved = engine.full_bytes.saturating_sub(engine.kv_bytes);
        let gauges: [(&str, &str, &str, f64); 13] = [
            (
                "polykv_kv_bytes",
                "Bytes of keys and values now",
                "",
                engine.kv_bytes as f64,
            ),
            (
                "polykv_kv_shared_bytes",
                "Of these, bytes of prompts that several answers share",
                "",
                engine.kv_shared_bytes as f64,
            ),
            (
                "polykv_kv_free_bytes",
                "Of these, bytes of free slots between sequences on a GPU",
                "",
                engine.kv_free_bytes as f64,
            ),
            (
                "polykv_kv_free_run_bytes",
                "Of the free slots, bytes of those side by side, the most of each layer",
                "",
                engine.kv_free_run_bytes as f64,
            ),
            (
                "polykv_kv_saved_bytes",
                "Bytes that keys and values would take beside these without eviction",
                "",
                saved as f64,
            ),
            (
                "polykv_kv_reserved_bytes",
                "Bytes set aside for the requests that run",
                "",
                engine.reserved_bytes as f64,
            ),
            (
                "polykv_requests_waiting",
                "Requests in the queue",
                "",
                engine.waiting as f64,
            ),
            (
                "polykv_prompts_running",
                "Prompts that are running",
                "",
                engine.prompts as f64,
            ),
            (
                "polykv_answers_running",
                "Answers that are being generated",
                "",
                engine.sequences as f64,
            ),
            (
                "vllm:num_requests_waiting",
                "Requests in the queue",
                &label,
                engine.waiting as f64,
            ),
            (
                "vllm:num_requests_running",
                "Prompts and answers that are running",
                &label,
                running as f64,
            ),
            (
                "vllm:kv_cache_usage_perc",
                "Share of --kv-memory that is set aside, 0 to 1",
                &label,
                used,
            ),
            (
                "vllm:gpu_cache_usage_perc",
                "The same under its older name",
                &label,
                used,
            ),
        ];
        for (name, help, label, value) in gauges {
            writeln!(
                to,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{label} {value}"
            )?;
        }
        let counters: [(&str, &str, &str, u64); 9] = [
            (
                "polykv_requests_total",
                "Requests that were taken",
                "",
                self.requests,
            ),
            (
                "polykv_requests_refused_total",
                "Requests that were not taken",
                "",
                self.refused,
            ),
            (
                "polykv_requests_failed_total",
                "Requests that failed while they ran",
                "",
                self.failed,
            ),
            (
                "polykv_requests_cancelled_total",
                "Requests whose caller went away",
                "",
                self.cancelled,
            ),
            (
                "polykv_evicted_entries_total",
                "Entries that evictions removed, over all layers",
                "",
                self.evicted,
            ),
            (
                "polykv_prompt_tokens_total",
                "Tokens of prompts",
                "",
                engine.prompt_tokens,
            ),
            (
                "polykv_generated_tokens_total",
                "Generated tokens",
                "",
                engine.new_tokens,
            ),
            (
                "vllm:prompt_tokens_total",
                "Tokens of prompts",
                &label,
                engine.prompt_tokens,
            ),
            (
                "vllm:generation_tokens_total",
                "Generated tokens",
                &label,
                engine.new_tokens,
            ),
        ];
        for (name, help, label, value) in counters {
            writeln!(
                to,
                "# HELP {name} {help}\n# TYPE {name} counter\n{name}{label} {value}"
            )?;
        }
        let help = "Seconds from a request to its first token";
        self.first_token
            .write(to, "polykv_first_token_seconds", help)?;
        let help = "Seconds between two tokens of an answer";
        self.gap.write(to, "polykv_token_gap_seconds", help)
    }
}
