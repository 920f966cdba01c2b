//! `polykv plan`: plan files as tables and data.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod diff;
mod invert;
mod memory;

use crate::args::{Kept, PlanAction, PlanArgs};
use crate::output::{
    console, describe_budget, describe_codes, describe_heads, describe_params, picture, table,
    write_whole,
};
use crate::registry::registry;
use anyhow::Context;
use polykv::plan::{FileRule, Moved};
use polykv::{At, Error, Phase, Plan, PlanFile, Result};
use std::path::Path;

/// # Errors
/// A plan file or a model that is refused.
pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let text = match &args.action {
        PlanAction::Show { file, json, out } => {
            let draw = out.as_deref().map(drawing).transpose()?;
            let (plan, _) = read(file)?;
            if let (Some(out), Some(draw)) = (out, draw) {
                write_whole(out, draw(&plan)?)?;
            }
            match json {
                true => as_json(&plan)?,
                false => as_table(&plan),
            }
        }
        PlanAction::Diff { a, b, json } => diff::text(a, b, *json)?,
        PlanAction::Shuffle {
            file,
            seed,
            keep,
            out,
        } => {
            let (file, plan) = read(file)?;
            let moved = match keep {
                None => Moved::Layers,
                Some(Kept::Budgets) => Moved::Policies,
                Some(Kept::Route) => Moved::Budgets,
            };
            let shuffled = plan.shuffled(*seed, moved);
            return finish(&restated(&file, &shuffled), out.as_deref());
        }
        PlanAction::Invert { file, profile, out } => {
            return finish(&invert::plan(file, profile.as_deref())?, out.as_deref());
        }
        PlanAction::Memory(args) => memory::text(args)?,
    };
    console::print(&text)
}

/// A plan file and what it means.
///
/// # Errors
/// What [`PlanFile::read`] and [`PlanFile::build`] refuse.
fn read(path: &Path) -> Result<(PlanFile, Plan)> {
    let file = PlanFile::read(path)?;
    let plan = file.build(registry()).at(path.display())?;
    Ok((file, plan))
}

/// Another plan under the name and for the model of a file.
fn restated(file: &PlanFile, plan: &Plan) -> PlanFile {
    let mut stated = PlanFile::of(plan, registry());
    stated.name.clone_from(&file.name);
    stated.model.clone_from(&file.model);
    stated
}

/// A plan goes to its file, or to standard output.
fn finish(plan: &PlanFile, out: Option<&Path>) -> anyhow::Result<()> {
    match out {
        Some(path) => Ok(plan.write(path)?),
        None => console::write(&plan.to_yaml()).context("standard output"),
    }
}

/// Makes a picture's file.
type Draw = fn(&PlanFile) -> Result<Vec<u8>>;

/// How a picture is made, by the file's name.
fn drawing(path: &Path) -> Result<Draw> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => Ok(|plan| Ok(picture::svg(plan).into_bytes())),
        Some("png") => Ok(|plan| picture::png(&picture::svg(plan))),
        _ => {
            let found = format!("'{}'", path.display());
            let allowed = "a name that ends in .svg or .png";
            Err(Error::invalid("command line", "--out", found, allowed))
        }
    }
}

fn as_json(plan: &PlanFile) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(plan)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("hash".into(), plan.hash().into());
    }
    serde_json::to_string(&value)
}

/// A plan as a table, under what holds for all of it.
pub fn as_table(plan: &PlanFile) -> String {
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
    if plan.every > 1 {
        lines.push(format!(
            "evictions while decoding: every {} tokens",
            plan.every
        ));
    }
    if !plan.kv.is_empty() {
        lines.push(format!("entries: {}", describe_codes(plan)));
    }
    if let Some(heads) = describe_heads(plan) {
        lines.push(format!("KV heads: budgets {heads}"));
    }
    let mut table = table(&["phase", "layers", "policy", "params", "entries per layer"]);
    for phase in Phase::BOTH {
        for rule in plan.rules(phase) {
            table.add_row([
                phase.to_string(),
                rule.layers.to_string(),
                rule.policy.clone(),
                describe_params(&rule.params),
                entries(rule, plan.online.is_some()),
            ]);
        }
    }
    lines.push(table.to_string());
    lines.join("\n")
}

fn entries(rule: &FileRule, online: bool) -> String {
    match (rule.tokens, rule.share) {
        (Some(tokens), _) => tokens.to_string(),
        _ if rule.keeps() => "all".into(),
        _ if online => "split per prompt".into(),
        (None, share) => format!("share {}", share.unwrap_or(1.0)),
    }
}
