//! The object of `generate --json`. Scripts depend on it: fields may be added, never renamed or dropped.

use super::{ResumedSession, Run};
use polykv::models::Finish;
use serde::Serialize;

/// The whole object.
#[derive(Serialize)]
pub struct Json<'a> {
    text: &'a str,
    prompt_tokens: usize,
    new_tokens: usize,
    finish: Finish,
    kv: Kv<'a>,
    ttft_ms: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    device: &'a str,
    dtype: &'a str,
    plan_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<ResumedSession>,
    /// Bytes of the session that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    session_bytes: Option<usize>,
    /// The most memory that the process has held, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    process_peak_bytes: Option<usize>,
}

/// Bytes and entries of the cache after the last token.
#[derive(Serialize)]
struct Kv<'a> {
    bytes: usize,
    aux_bytes: usize,
    full_bytes: usize,
    peak_bytes: usize,
    act_peak_bytes: usize,
    seen: usize,
    kept_min: f64,
    kept_mean: f64,
    kept_max: f64,
    kept: &'a [f64],
    /// The fewest and the most entries of a KV head in each layer, where heads have budgets of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_heads: Option<&'a [[usize; 2]]>,
}

impl Run<'_> {
    /// What `--json` prints.
    pub fn json(&self) -> Json<'_> {
        let (generation, kv) = (self.generation, &self.generation.cache);
        Json {
            text: &generation.text,
            prompt_tokens: generation.prompt_tokens,
            new_tokens: generation.tokens.len(),
            finish: generation.finish,
            kv: Kv {
                bytes: kv.bytes,
                aux_bytes: kv.aux_bytes,
                full_bytes: kv.full_bytes,
                peak_bytes: kv.peak_bytes,
                act_peak_bytes: generation.activation_peak_bytes,
                seen: kv.seen,
                kept_min: kv.kept_min(),
                kept_mean: kv.kept_mean(),
                kept_max: kv.kept_max(),
                kept: &kv.kept,
                kept_heads: kv.divided_heads().map(|_| &*kv.kept_heads),
            },
            ttft_ms: generation.ttft.as_secs_f64() * 1e3,
            prefill_tok_s: generation.prefill_tokens_per_second(),
            decode_tok_s: generation.decode_tokens_per_second(),
            device: &self.device,
            dtype: self.dtype,
            plan_hash: self.plan.hash(),
            session: self.session,
            session_bytes: self.saved,
            process_peak_bytes: process_peak_bytes(),
        }
    }
}

/// Linux: the high-water mark of resident memory.
pub(super) fn process_peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
