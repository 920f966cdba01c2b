use crate::Result;
use crate::codes::Codes;
use crate::phase::Phase;
use crate::policy::{Policies, Policy, PolicySpec};
use std::sync::Arc;

/// What a calibration chooses for a layer: a policy, and how the layer keeps its entries.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Decides which entries stay.
    pub policy: Arc<dyn Policy>,
    /// The codes of the entries that stay; `None` keeps them in the type of the cache.
    pub kv: Option<Codes>,
}

impl Candidate {
    /// Every policy in the first format, then every policy in the next one and so on.
    pub fn all(policies: &[Arc<dyn Policy>], formats: &[Option<Codes>]) -> Vec<Self> {
        let pair = |policy: &Arc<dyn Policy>, kv| Self {
            policy: policy.clone(),
            kv,
        };
        let of_format = |&kv| policies.iter().map(move |policy| pair(policy, kv));
        formats.iter().flat_map(of_format).collect()
    }

    /// The formats of layers that have the candidates `picks`.
    pub fn formats(candidates: &[Self], picks: &[usize]) -> Vec<Option<Codes>> {
        picks.iter().map(|&pick| candidates[pick].kv).collect()
    }

    /// The candidates of one phase of a calibration of `phases`: a layer has one format for both, which is chosen with the
    /// policy of the prefill, so that only policies are left to choose for the decode phase beside it.
    pub fn of_phase<'a>(candidates: &'a [Self], phase: Phase, phases: &[Phase]) -> &'a [Self] {
        let beside = phase == Phase::Decode && phases.contains(&Phase::Prefill);
        let first = candidates.first().map(|candidate| candidate.kv);
        let mut all = candidates.iter();
        match all.position(|candidate| beside && Some(candidate.kv) != first) {
            Some(policies) => &candidates[..policies],
            None => candidates,
        }
    }
}

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

    /// Every listed policy that a paper describes, with its default parameters, without those that need a second run of the
    /// prompt ([`Needs::repetition`](crate::policy::Needs::repetition)): a plan has them where they are named.
    ///
    /// # Errors
    /// A listed policy that refuses its own defaults.
    pub fn published(policies: &Policies) -> Result<Vec<Self>> {
        let specs = PolicySpec::published(policies).into_iter();
        let built = specs.map(|spec| Self::build(spec, policies));
        let mut all = built.collect::<Result<Vec<_>>>()?;
        all.retain(|one| !one.policy.needs().repetition);
        Ok(all)
    }
}
