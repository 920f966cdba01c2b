//! Plans under names, and what a summary needs to know of them.

use polykv_core::{Budget, Phase, Plan, PlanFile, Registry};
use serde::{Deserialize, Serialize};

/// A plan under a name.
#[derive(Clone, Debug)]
pub struct NamedPlan {
    /// The name of the plan in results.
    pub name: String,
    /// The fingerprint of the plan file, see [`PlanFile::hash`].
    pub hash: String,
    /// The plan as a file.
    pub file: PlanFile,
    /// The plan as values.
    pub plan: Plan,
}

/// The facts about a plan that a summary needs, stored beside predictions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlanInfo {
    /// The name of the plan, see [`NamedPlan::name`].
    pub name: String,
    /// The fingerprint of the plan, see [`NamedPlan::hash`].
    pub hash: String,
    /// Whether one policy with the same parameters runs in all layers, in one phase or in both. Other plans are
    /// compared with the best of these.
    pub single: bool,
    /// The budget; `None` if the plan keeps everything.
    pub budget: Option<Budget>,
}

impl NamedPlan {
    /// A plan with the fingerprint of the file that states it, its policies' names looked up in `registry`.
    #[must_use]
    pub fn new(name: impl Into<String>, plan: Plan, registry: &Registry) -> Self {
        let file = PlanFile::of(&plan, registry);
        Self {
            name: name.into(),
            hash: file.hash(),
            file,
            plan,
        }
    }

    /// The facts about the plan that a summary needs.
    #[must_use]
    pub fn info(&self) -> PlanInfo {
        let keys = |phase| {
            let rules = self.plan.rules(phase);
            let keys = rules.map(|rule| rule.policy().map(|policy| policy.key()));
            keys.collect::<Vec<_>>()
        };
        let phases = Phase::BOTH.map(keys);
        let first = phases.iter().flatten().flatten().next();
        let single = first.is_some_and(|first| {
            phases.iter().all(|keys| {
                let full = keys.iter().all(Option::is_none);
                full || keys.iter().all(|key| key.as_ref() == Some(first))
            })
        });
        PlanInfo {
            name: self.name.clone(),
            hash: self.hash.clone(),
            single,
            budget: first.map(|_| self.plan.budget),
        }
    }
}
