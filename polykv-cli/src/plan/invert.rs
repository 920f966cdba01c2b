//! `polykv plan invert`: the worst policy of each layer under the same budgets.

use crate::calibrate::Report;
use polykv::{Error, Phase, Plan, Result};
use std::path::Path;

/// Layers and phases that keep everything stay as they are.
///
/// # Errors
/// A plan or a profile that is refused, or that belong to different models; a policy that protects more than a layer's
/// budget.
pub fn plan(file: &Path, profile: Option<&Path>) -> Result<Plan> {
    let beside = file.with_file_name("profile.json");
    let profile = profile.unwrap_or(&beside);
    let (plan, report) = (Plan::read(file)?, Report::read(profile)?);
    let place = profile.display().to_string();
    if let Some(model) = &plan.model
        && *model != report.model
    {
        let allowed = format!("'{model}', the plan's");
        return Err(Error::invalid(
            place,
            "model",
            format!("'{}'", report.model),
            allowed,
        ));
    }
    let mut inverse = plan.clone();
    for phase in [Phase::Prefill, Phase::Decode] {
        if plan.rules(phase).iter().all(|rule| rule.policy == "full") {
            continue;
        }
        let worst = report.worst(&place, phase, plan.layers)?;
        let mut rules = plan.by_layer(phase);
        for (rule, worst) in rules.iter_mut().zip(worst) {
            if rule.policy != "full" {
                (rule.policy, rule.params) = (worst.policy.clone(), worst.params.clone());
            }
        }
        inverse.set_layers(phase, rules);
    }
    inverse.validate("the inverse plan")?;
    Ok(inverse)
}
