//! Policies inside policies.

use super::{Params, Policy, build};
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
    /// Names what is wrong: anything but a policy that evicts, without merging, with its own parameters.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let (name, share, params) = match value {
            Value::String(text) => match text.split_once(':') {
                Some((name, share)) => {
                    let wrong = |_| format!("share of {name} a number (found '{share}')");
                    (
                        name.trim().into(),
                        share.trim().parse().map_err(wrong)?,
                        Params::new(),
                    )
                }
                None => (text.trim().to_string(), 1.0, Params::new()),
            },
            Value::Mapping(map) => {
                let mut params = Params::new();
                for (key, value) in map {
                    let key = key.as_str().ok_or("parameters with names")?;
                    params.insert(key.to_string(), value.clone());
                }
                let name = params.remove("policy");
                let name = name.as_ref().and_then(Value::as_str).map(String::from);
                let share = match params.remove("share") {
                    Some(share) => share.as_f64().ok_or("share a number")?,
                    None => 1.0,
                };
                (
                    name.ok_or("a map with the name under 'policy'")?,
                    share,
                    params,
                )
            }
            _ => return Err("a policy's name, or a map of policy, share and parameters".into()),
        };
        let policy = build("inside it", &name, &params).map_err(|e| e.to_string())?;
        if !policy.evicts() || policy.merges() {
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

    /// As a plan file states it.
    pub fn to_value(&self, with_share: bool) -> Value {
        let mut map = serde_yaml_ng::Mapping::new();
        map.insert("policy".into(), self.policy.name().into());
        if with_share {
            map.insert("share".into(), self.share.into());
        }
        let params = self.policy.params().into_iter();
        map.extend(params.map(|(key, value)| (Value::String(key), value)));
        Value::Mapping(map)
    }
}
