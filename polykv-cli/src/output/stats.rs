//! The block of statistics after a generation.

use super::json::process_peak_bytes;
use super::{Reuse, Run, bytes, describe_budget, describe_codes, describe_params, trimmed};
use polykv::models::Finish;
use polykv::plan::FileRule;
use polykv::{Phase, PlanFile};
use std::time::Duration;

/// Lines of a name and its facts; `rules` adds those of the plan.
pub fn block(run: &Run<'_>, rules: bool) -> String {
    let (generation, kv) = (run.generation, &run.generation.cache);
    let finish = match generation.finish {
        Finish::Stop => "stop",
        Finish::Cancelled => "cancelled",
        Finish::Length => "length",
    };
    let share = 100.0 * kv.bytes as f64 / kv.full_bytes.max(1) as f64;
    let mut lines = vec![
        (
            "model",
            format!("{}, {}, {}", run.model, run.device, run.dtype),
        ),
        ("plan", plan(run.plan)),
        (
            "tokens",
            format!(
                "{} prompt, {} new, finish {finish}",
                generation.prompt_tokens,
                generation.tokens.len()
            ),
        ),
        (
            "kept",
            format!(
                "min {}, mean {}, max {} of {} entries per layer",
                trimmed(kv.kept_min()),
                trimmed(kv.kept_mean()),
                trimmed(kv.kept_max()),
                kv.seen
            ),
        ),
    ];
    lines.extend(session(run).map(|facts| ("session", facts)));
    if kv.kept_min() < kv.kept_max() {
        lines.push(("layers", by_layer(&kv.kept)));
    }
    if let Some([least, most]) = kv.divided_heads() {
        lines.push((
            "heads",
            format!("min {least}, max {most} entries per KV head"),
        ));
    }
    lines.extend([
        (
            "cache",
            format!(
                "{} of {} ({share:.1} %), auxiliary {}",
                bytes(kv.bytes),
                bytes(kv.full_bytes),
                bytes(kv.aux_bytes)
            ),
        ),
        (
            "peak",
            format!(
                "cache {}, activations {}{}",
                bytes(kv.peak_bytes),
                bytes(generation.activation_peak_bytes),
                process_peak_bytes()
                    .map(|peak| format!(", process {}", bytes(peak)))
                    .unwrap_or_default()
            ),
        ),
        (
            "speed",
            format!(
                "first token after {}, prefill {:.1} tok/s, decode {:.1} tok/s",
                time(generation.ttft),
                generation.prefill_tokens_per_second(),
                generation.decode_tokens_per_second()
            ),
        ),
    ]);
    if rules {
        for phase in Phase::BOTH {
            let rules = run.plan.rules(phase).iter();
            lines.extend(rules.map(|one| ("rule", rule(phase, one))));
        }
    }
    let lines: Vec<_> = lines
        .iter()
        .map(|(name, facts)| format!("{name:<8}{facts}"))
        .collect();
    lines.join("\n")
}

/// What the sequence goes on from, and what was written.
fn session(run: &Run<'_>) -> Option<String> {
    let resumed = run.session.map(|session| {
        let reuse = match session.reuse {
            Reuse::Exact => "exact: all of them are there",
            Reuse::Compressed => "compressed: what their policies kept",
        };
        format!("goes on after {} tokens, {reuse}", session.tokens)
    });
    let saved = run.saved.map(|saved| format!("{} saved", bytes(saved)));
    let parts: Vec<_> = resumed.into_iter().chain(saved).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn plan(plan: &PlanFile) -> String {
    let name = plan
        .name
        .as_deref()
        .map(|name| format!("{name}: "))
        .unwrap_or_default();
    let codes = match plan.kv.is_empty() {
        true => String::new(),
        false => format!(", entries {}", describe_codes(plan)),
    };
    format!("{name}{}{codes} ({})", describe_budget(plan), plan.hash())
}

fn rule(phase: Phase, rule: &FileRule) -> String {
    let budget = match (rule.tokens, rule.share) {
        (Some(tokens), _) => format!("{tokens} entries"),
        (None, Some(share)) => format!("share {share}"),
        (None, None) => String::new(),
    };
    let parts = [
        format!("{phase} {} {}", rule.layers, rule.policy),
        describe_params(&rule.params),
        budget,
    ];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// Neighbours that keep the same number share an item: `0-14: 300, 15-29: 212`.
pub fn by_layer(kept: &[f64]) -> String {
    let mut first = 0;
    let items: Vec<_> = kept
        .chunk_by(|a, b| a == b)
        .map(|same| {
            let last = first + same.len() - 1;
            let layers = match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            first = last + 1;
            format!("{layers}: {}", trimmed(same[0]))
        })
        .collect();
    items.join(", ")
}

fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_share_an_item() {
        assert_eq!(by_layer(&[5.0, 5.0, 2.0, 5.0]), "0-1: 5, 2: 2, 3: 5");
        assert_eq!(by_layer(&[1.5]), "0: 1.5");
    }
}
