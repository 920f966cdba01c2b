//! What `calibrate` prints.

use super::{describe_budget, describe_codes, describe_heads, table as new_table};
use polykv::plan::Resolved;
use polykv::{Phase, PlanFile};
use polykv_core::calibrate::{Data, Losses, Report, Source};

/// The examples, the plan with its budgets for a prompt of the calibration's length, and what refinement gained.
pub fn table(report: &Report, plan: &PlanFile, resolved: &Resolved) -> String {
    let mut lines = Vec::new();
    for (&data, profile) in &report.profiles {
        lines.push(format!(
            "{}: {} examples, perplexity {:.3} under the full cache",
            name(data),
            profile.examples,
            profile.perplexity
        ));
    }
    lines.push(format!("budget: {}", describe_budget(plan)));
    let mut rows = new_table(&["phase", "layers", "policy", "entries per layer"]);
    for phase in [Phase::Prefill, Phase::Decode] {
        let Some(picks) = report.phase(phase).picks() else {
            continue;
        };
        for rule in plan.rules(phase) {
            let pick = picks[rule.layers.first];
            let layers = &resolved.layers[rule.layers.first..=rule.layers.last];
            let budgets = layers.iter().filter_map(|layer| layer.budget(phase));
            let (least, most) = (budgets.clone().min(), budgets.max());
            let entries = match least.zip(most) {
                Some((least, most)) if least == most => least.to_string(),
                Some((least, most)) => format!("{least} to {most}"),
                None => continue,
            };
            rows.add_row([
                phase.to_string(),
                rule.layers.to_string(),
                report.candidates[pick % report.candidates.len()].to_string(),
                entries,
            ]);
        }
    }
    lines.push(rows.to_string());
    if let Some(heads) = describe_heads(plan) {
        lines.push(format!("KV heads have budgets {heads}"));
    }
    if !plan.kv.is_empty() {
        lines.push(format!("entries are kept {}", describe_codes(plan)));
    }
    lines.extend(
        [Phase::Prefill, Phase::Decode]
            .iter()
            .filter_map(|&phase| refined(report, phase)),
    );
    lines.join("\n")
}

/// The losses of the single policies, the routes from single layers and what was found.
fn refined(report: &Report, phase: Phase) -> Option<String> {
    let found = report.phase(phase).refined.as_ref()?;
    let kinds: Vec<Data> = found.losses.keys().copied().collect();
    let mut header = vec![format!("{phase}: whole plan")];
    header.extend(kinds.iter().map(|&data| format!("{} ΔNLL", name(data))));
    header.push("score".into());
    let mut rows = new_table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let mut add = |label: String, losses: &Losses, score: f64| {
        let mut row = vec![label];
        row.extend(kinds.iter().map(|data| format!("{:+.4}", losses[data])));
        row.push(format!("{score:.3}"));
        rows.add_row(row);
    };
    let starts = report.choices(phase) + found.routes.len();
    for one in found.moves.iter().take(starts) {
        let label = match one.source {
            Source::Candidate(candidate) => report.name(candidate),
            Source::Route(0) => "one at a time".into(),
            Source::Route(route) => format!("one at a time, weights {route}"),
        };
        add(label, &one.losses, one.score);
    }
    let tried = found.moves.len().saturating_sub(starts);
    add(format!("after {tried} moves"), &found.losses, found.score);
    if let Some(found) = &report.phase(phase).budgets_refined {
        add("with its budgets".into(), &found.losses, found.score);
    }
    Some(rows.to_string())
}

fn name(data: Data) -> &'static str {
    match data {
        Data::Text => "text",
        Data::Evidence => "evidence",
    }
}
