use super::heads::HeadBudgets;
use super::member::{Member, through_base};
use super::{NamedPolicy, Params, Policies, check_range};
use serde::Deserialize;
use serde_yaml_ng::Value;

/// Divides a layer's budget over its KV heads by the scores of a `base` policy (AdaKV, arXiv 2407.11550): with a budget of `b`
/// entries per head, every head keeps its `floor · b` best entries, and the rest of the heads' entries together are those with
/// the highest scores of all. Entries that the base policy protects stay in every head. So heads with attention on many
/// entries keep more than heads with attention on few, in as much memory. In a plan file `base` is a policy's name, or a map of
/// `policy` and its parameters.
///
/// After the prompt the heads are divided by its scores. In the decode phase they keep that division if the prefill has made it
/// by the same policy under the same budget; otherwise it is made when the budget is first exceeded. It waits for the device
/// to read the scores, once per prompt and layer.
#[derive(Clone, Debug)]
pub struct AdaKv {
    base: Member,
    floor: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Text {
    base: Value,
    floor: f64,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            base: "snapkv".into(),
            floor: 0.2,
        }
    }
}

impl NamedPolicy for AdaKv {
    const NAME: &'static str = "adakv";
    const SUMMARY: &'static str =
        "a base policy's best entries over all heads together, a part of the budget in each: base=snapkv";
    const SOURCE: Option<&'static str> = Some("arXiv 2407.11550");
    const VARIANTS: &'static [&'static str] = &[
        "{base: {policy: snapkv, window: 4, kernel: 3}}",
        "{base: h2o, floor: 0}",
        "{base: {policy: criticalkv, base: {policy: snapkv, window: 4, kernel: 1}}, floor: 0.5}",
    ];

    fn from_params(params: &Params, policies: &Policies) -> std::result::Result<Self, String> {
        let text: Text = params.read()?;
        check_range("floor", text.floor, 0.0..=1.0)?;
        let base = Member::parse(&text.base, policies);
        Ok(Self {
            base: base.map_err(|reason| format!("base: {reason}"))?,
            floor: text.floor,
        })
    }
}

through_base!(AdaKv, |policy| {
    params: Params::new()
        .with("base", policy.base.to_value(false))
        .with("floor", policy.floor),
    heads: HeadBudgets::ByScore { floor: policy.floor },
});

#[cfg(test)]
mod tests {
    use super::super::{Params, Policies};

    #[test]
    fn wrong_bases_and_floors_are_refused_by_name() {
        for (params, reason) in [
            ("{base: full}", "base: policies that evict"),
            ("{base: cam}", "found cam"),
            ("{base: {policy: adakv}}", "base: policies that treat all heads alike (found adakv)"),
            ("{floor: 1.5}", "floor from 0 to 1"),
            ("{flor: 0.5}", "flor"),
        ] {
            let params = Params::from_yaml(params).unwrap();
            let error = Policies::default().build("adakv", &params);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
