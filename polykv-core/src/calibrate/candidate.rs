use crate::Result;
use crate::policy::{Policies, Policy, PolicySpec};
use std::sync::Arc;

/// A policy that a calibration chooses from, with the name that reports give it.
#[derive(Clone, Debug)]
pub struct CandidatePolicy {
    /// The name and parameters that tables and the report show.
    pub spec: PolicySpec,
    /// The policy itself.
    pub policy: Arc<dyn Policy>,
}

impl CandidatePolicy {
    /// A policy under its own name and with all of its parameters.
    #[must_use]
    pub fn of(policy: Arc<dyn Policy>) -> Self {
        let spec = PolicySpec {
            policy: policy.name().to_string(),
            params: policy.params(),
        };
        Self { spec, policy }
    }

    /// Builds a policy that is given by name.
    ///
    /// # Errors
    /// What [`PolicySpec::build`] refuses.
    pub fn build(spec: PolicySpec, policies: &Policies) -> Result<Self> {
        let policy = spec.build(policies)?;
        Ok(Self { spec, policy })
    }

    /// Every listed policy that a paper describes, with its default parameters.
    ///
    /// # Errors
    /// A listed policy that refuses its own defaults.
    pub fn published(policies: &Policies) -> Result<Vec<Self>> {
        let specs = PolicySpec::published(policies).into_iter();
        specs.map(|spec| Self::build(spec, policies)).collect()
    }
}
