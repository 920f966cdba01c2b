use super::heads::HeadBudgets;
use super::member::{Member, through_base};
use super::{NamedPolicy, Params, Policies, Policy};
use serde::Deserialize;
use serde_yaml_ng::Value;
use std::sync::Arc;

/// Divides a layer's budget over its KV heads in proportion to `shares`, one number per KV head: with a budget of `b` entries
/// per head and H heads, head h keeps about H · b · share_h / Σ share entries, the best by the scores of a `base` policy, at
/// least those that it protects. Without shares all heads keep as many. In a plan file `base` is a policy's name, or a map of
/// `policy` and its parameters.
#[derive(Clone, Debug)]
pub struct PerHead {
    base: Member,
    shares: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Text {
    base: Value,
    shares: Vec<f64>,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            base: "snapkv".into(),
            shares: Vec::new(),
        }
    }
}

impl NamedPolicy for PerHead {
    const NAME: &'static str = "per-head";
    const SUMMARY: &'static str =
        "a base policy's choice, in each head as many entries as its share says: base=snapkv shares=[2, 1]";
    const SOURCE: Option<&'static str> = None;
    const VARIANTS: &'static [&'static str] = &[
        "{base: {policy: snapkv, window: 4, kernel: 3}, shares: [3, 1]}",
        "{base: tova, shares: [0.4, 0.6]}",
    ];

    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String> {
        let text: Text = params.read()?;
        let usable = |share: &f64| *share > 0.0 && *share <= 1e6;
        if let Some(found) = text.shares.iter().find(|share| !usable(share)) {
            return Err(format!("shares above 0, at most 1e6 (found {found})"));
        }
        let base = Member::parse(&text.base, policies);
        Ok(Self {
            base: base.map_err(|reason| format!("base: {reason}"))?,
            shares: text.shares,
        })
    }
}

impl PerHead {
    /// A policy that treats all heads alike and does not merge, under these shares.
    pub(crate) fn over(policy: Arc<dyn Policy>, shares: &[f64]) -> Arc<dyn Policy> {
        Arc::new(Self {
            base: Member { policy, share: 1.0 },
            shares: shares.to_vec(),
        })
    }
}

through_base!(PerHead, |policy| {
    params: Params::new()
        .with("base", policy.base.to_value(false))
        .with("shares", policy.shares.clone()),
    heads: match policy.shares.is_empty() {
        true => HeadBudgets::Even,
        false => HeadBudgets::Shares(policy.shares.clone()),
    },
});

#[cfg(test)]
mod tests {
    use super::super::{Params, Policies};

    #[test]
    fn wrong_shares_are_refused_by_name() {
        for params in ["{shares: [1, 0]}", "{shares: [1, .nan]}", "{shares: [1e7]}"] {
            let params = Params::from_yaml(params).unwrap();
            let error = Policies::default().build("per-head", &params);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("shares above 0"), "{error}");
        }
    }
}
