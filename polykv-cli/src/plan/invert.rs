//! `polykv plan invert`: the worst policy of each layer under the same budgets.

use super::{read, restated};
use crate::registry::registry;
use polykv::models::calibrate::Report;
use polykv::{At, Error, PlanFile, Result};
use std::path::Path;

/// Layers and phases that keep everything stay as they are.
///
/// # Errors
/// A plan or a profile that is refused, or that belong to different models; a policy that protects more than a layer's
/// budget.
pub fn plan(file: &Path, profile: Option<&Path>) -> Result<PlanFile> {
    let beside = file.with_file_name("profile.json");
    let profile = profile.unwrap_or(&beside);
    let ((file, plan), report) = (read(file)?, Report::read(profile)?);
    if let Some(model) = &file.model
        && *model != report.model
    {
        let (found, allowed) = (
            format!("'{}'", report.model),
            format!("'{model}', the plan's"),
        );
        return Err(Error::invalid(profile.display(), "model", found, allowed));
    }
    let candidates = report
        .candidates(&registry().policies)
        .at(profile.display())?;
    let inverse = report.invert(&plan, &candidates).at(profile.display())?;
    let inverse = restated(&file, &inverse);
    inverse.build(registry()).at("the inverse plan")?;
    Ok(inverse)
}
