//! `polykv plan diff`: where two plans differ.

use crate::output::{describe_budget, describe_codes, describe_params, table};
use polykv::plan::FileRule;
use polykv::{Error, Phase, PlanFile, Result};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Difference {
    phase: Phase,
    first: usize,
    last: usize,
    a: String,
    b: String,
}

/// A table or one JSON object.
///
/// # Errors
/// A plan file that is refused, or plans with different numbers of layers.
pub fn text(a: &Path, b: &Path, json: bool) -> Result<String> {
    let plans = [super::read(a)?.0, super::read(b)?.0];
    let [plan, other] = &plans;
    let all = plan.layers;
    if other.layers != all {
        let allowed = format!("{all}, as in {}", a.display());
        return Err(Error::invalid(b.display(), "layers", other.layers, allowed));
    }
    let found = differences(plan, other);
    let layers = |phase: Phase| -> usize {
        let of_phase = found.iter().filter(|one| one.phase == phase);
        of_phase
            .map(|one| one.last.saturating_sub(one.first).saturating_add(1))
            .sum()
    };
    let (prefill, decode) = (layers(Phase::Prefill), layers(Phase::Decode));
    if json {
        let object = serde_json::json!({
            "a": plan.hash(),
            "b": other.hash(),
            "budget": plans.each_ref().map(describe_budget),
            "entries": plans.each_ref().map(describe_codes),
            "same_heads": plan.heads == other.heads,
            "layers": all,
            "differing": {"prefill": prefill, "decode": decode},
            "differences": found,
        });
        return Ok(object.to_string());
    }
    let mut lines = Vec::new();
    let [budget, against] = plans.each_ref().map(describe_budget);
    if budget != against {
        lines.push(format!("budget: {budget} against {against}"));
    }
    let [codes, others] = plans.each_ref().map(describe_codes);
    if codes != others {
        lines.push(format!("entries: {codes} against {others}"));
    }
    if plan.heads != other.heads {
        lines.push("parts of KV heads differ".into());
    }
    if !found.is_empty() {
        let [a, b] = [a, b].map(|path| path.display().to_string());
        let mut rows = table(&["phase", "layers", &a, &b]);
        for one in &found {
            let range = match one.first == one.last {
                true => one.first.to_string(),
                false => format!("{}-{}", one.first, one.last),
            };
            rows.add_row([one.phase.to_string(), range, one.a.clone(), one.b.clone()]);
        }
        lines.push(rows.to_string());
    }
    lines.push(format!(
        "{prefill} of {all} layers differ in prefill, {decode} of {all} in decode"
    ));
    Ok(lines.join("\n"))
}

/// Neighbours that differ in the same way are one difference.
fn differences(a: &PlanFile, b: &PlanFile) -> Vec<Difference> {
    let mut found: Vec<Difference> = Vec::new();
    for phase in Phase::BOTH {
        let pairs = a.by_layer(phase).into_iter().zip(b.by_layer(phase));
        for (layer, (a, b)) in pairs.enumerate() {
            let (a, b) = (describe(&a), describe(&b));
            if a == b {
                continue;
            }
            match found.last_mut() {
                Some(last)
                    if last.phase == phase
                        && last.last.checked_add(1) == Some(layer)
                        && last.a == a
                        && last.b == b =>
                {
                    last.last = layer;
                }
                _ => found.push(Difference {
                    phase,
                    first: layer,
                    last: layer,
                    a,
                    b,
                }),
            }
        }
    }
    found
}

fn describe(rule: &FileRule) -> String {
    let mut text = rule.policy.clone();
    let params = describe_params(&rule.params);
    if !params.is_empty() {
        text.push_str(&format!(" {params}"));
    }
    match (rule.tokens, rule.share) {
        (Some(tokens), _) => text.push_str(&format!(", {tokens} entries")),
        (None, Some(share)) if share != 1.0 => text.push_str(&format!(", share {share}")),
        _ => {}
    }
    text
}
