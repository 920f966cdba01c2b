//! Policies inside policies.

use super::{Params, Policies, Policy};
use serde_yaml_ng::Value;
use std::sync::Arc;

/// A policy that another one is made of. In a plan file it is its name, or a map of `policy`, `share` and its
/// parameters; on the command line `NAME` or `NAME:SHARE`.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub policy: Arc<dyn Policy>,
    pub share: f64,
}

impl Member {
    /// # Errors
    /// Names what is wrong: anything but a policy that does not merge, with parameters of its own.
    pub fn parse(value: &Value, policies: &Policies) -> Result<Self, String> {
        let (name, share, params) = match value {
            Value::String(text) => match text.split_once(':') {
                Some((name, share)) => {
                    let wrong = |_| format!("share of {name} a number (found '{share}')");
                    let share = share.trim().parse().map_err(wrong)?;
                    (name.trim().to_string(), share, Params::new())
                }
                None => (text.trim().to_string(), 1.0, Params::new()),
            },
            Value::Mapping(map) => {
                let mut params = Params::from_map(map.clone())?;
                let name = params.take("policy");
                let name = name.as_ref().and_then(Value::as_str).map(String::from);
                let share = match params.take("share") {
                    Some(share) => share.as_f64().ok_or("share a number")?,
                    None => 1.0,
                };
                let name = name.ok_or("a map with the name under 'policy'")?;
                (name, share, params)
            }
            _ => return Err("a policy's name, or a map of policy, share and parameters".into()),
        };
        if name == Policies::KEEP {
            return Err(format!("policies that evict (found {name})"));
        }
        let policy = policies
            .build(&name, &params)
            .map_err(|error| error.at("inside it").to_string())?;
        if policy.merges() {
            return Err(format!(
                "policies that evict without merging (found {name})"
            ));
        }
        if !(share > 0.0 && share <= 1e6) {
            return Err(format!(
                "share of {name} above 0, at most 1e6 (found {share})"
            ));
        }
        Ok(Self { policy, share })
    }

    /// The map that a plan file holds: policy, share if `with_share`, and parameters.
    pub fn to_value(&self, with_share: bool) -> Value {
        let mut map = serde_yaml_ng::Mapping::new();
        map.insert("policy".into(), self.policy.name().into());
        if with_share {
            map.insert("share".into(), self.share.into());
        }
        map.extend(self.policy.params().to_map());
        Value::Mapping(map)
    }
}
