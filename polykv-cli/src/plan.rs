//! `polykv plan`: plan files as tables and data.

mod memory;

use crate::args::{PlanAction, PlanArgs};
use crate::output::{describe_budget, describe_params, table};
use anyhow::Context;
use polykv::{Phase, Plan, Rule};
use std::io::Write;

/// # Errors
/// A plan file or a model that is refused.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let text = match &args.action {
        PlanAction::Show { file, json: true } => as_json(&Plan::read(file)?)?,
        PlanAction::Show { file, json: false } => as_table(&Plan::read(file)?),
        PlanAction::Memory(args) => memory::text(args)?,
    };
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

fn as_json(plan: &Plan) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(plan)?;
    value["hash"] = plan.hash().into();
    serde_json::to_string(&value)
}

fn as_table(plan: &Plan) -> String {
    let mut lines = vec![format!(
        "{} ({} layers, hash {})",
        plan.name.as_deref().unwrap_or("plan without a name"),
        plan.layers,
        plan.hash()
    )];
    if let Some(model) = &plan.model {
        lines.push(format!("for the model {model}"));
    }
    let extra = match plan.allow_full_extra {
        true => ", full layers on top",
        false => "",
    };
    lines.push(format!("budget: {}{extra}", describe_budget(plan)));
    let mut table = table(&["phase", "layers", "policy", "params", "entries per layer"]);
    for phase in [Phase::Prefill, Phase::Decode] {
        for rule in plan.rules(phase) {
            table.add_row([
                phase.to_string(),
                rule.layers.to_string(),
                rule.policy.clone(),
                describe_params(&rule.params),
                entries(rule),
            ]);
        }
    }
    lines.push(table.to_string());
    lines.join("\n")
}

fn entries(rule: &Rule) -> String {
    match (rule.tokens, rule.share) {
        (Some(tokens), _) => tokens.to_string(),
        _ if rule.policy == "full" => "all".into(),
        (None, share) => format!("share {}", share.unwrap_or(1.0)),
    }
}
