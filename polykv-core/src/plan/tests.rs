use super::*;
use crate::budget::EntryCost;
use proptest::prelude::*;

const MIXED: &str = "
schema: 1
layers: 4
budget: {tokens: 64}
prefill:
  - {layers: 0-1, policy: h2o, share: 3}
  - {layers: 2-3, policy: tova}
decode:
  - {layers: 0-2, policy: tova, tokens: 70}
  - {layers: 3, policy: streaming-llm, tokens: 46, params: {sinks: 2}}
";

fn cost(layers: usize) -> EntryCost {
    EntryCost { layers, bytes: 1 }
}

fn refusal(from: &str, to: &str) -> String {
    let text = MIXED.replace(from, to);
    assert_ne!(text, MIXED, "'{from}' is not in the plan");
    Plan::from_yaml("p.yaml", &text).unwrap_err().to_string()
}

#[test]
fn budgets_follow_shares_and_tokens() {
    let plan = Plan::from_yaml("p.yaml", MIXED).unwrap();
    let resolved = plan.resolve("p.yaml", 1000, cost(4)).unwrap();
    let of = |phase: fn(&LayerRules) -> &PhaseRule| -> Vec<_> {
        resolved
            .layers
            .iter()
            .map(|l| phase(l).budget.unwrap())
            .collect()
    };
    assert_eq!(of(|l| &l.prefill), [96, 96, 32, 32]);
    assert_eq!(of(|l| &l.decode), [70, 70, 70, 46]);
    assert_eq!(resolved.total(Phase::Prefill), 256);
    assert_eq!(resolved.total(Phase::Decode), 256);
}

#[test]
fn yaml_round_trips_and_the_hash_follows_the_content() {
    let plan = Plan::from_yaml("p.yaml", MIXED).unwrap();
    let again = Plan::from_yaml("p.yaml", &plan.to_yaml()).unwrap();
    assert_eq!(plan, again);
    assert_eq!(plan.hash(), again.hash());
    let other = Plan {
        budget: Budget::Tokens(65),
        ..plan.clone()
    };
    assert_ne!(plan.hash(), other.hash());
}

#[test]
fn a_written_plan_reads_back() {
    let path = std::env::temp_dir().join(format!("polykv-plan-{}.yaml", std::process::id()));
    let plan = Plan::from_yaml("p.yaml", MIXED).unwrap();
    plan.write(&path).unwrap();
    assert_eq!(Plan::read(&path).unwrap(), plan);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn refusals_name_field_found_and_allowed() {
    for (from, to, wanted) in [
        ("schema: 1", "schema: 9", "schema is 9; allowed: 1"),
        ("layers: 4", "layers: 0", "layers is 0; allowed: 1 to 1024"),
        (
            "layers: 4",
            "layers: 3",
            "prefill[1].layers is 2-3; allowed: layers 0 to 2",
        ),
        (
            "layers: 4",
            "layers: 5",
            "prefill is without a rule for layer 4",
        ),
        ("2-3", "1-3", "repeats layer 1 of prefill[0]"),
        ("2-3", "3-2", "'3-2' is no range"),
        (
            "policy: tova}",
            "policy: tvoa}",
            "policy is 'tvoa'; allowed: full, streaming-llm",
        ),
        ("share: 3", "share: -1", "prefill[0].share is -1"),
        ("share: 3", "share: 3, tokens: 4", "tokens or share"),
        (
            "tokens: 46",
            "tokens: 45",
            "sum of decode tokens is 255; allowed: 256",
        ),
        (
            "tokens: 46",
            "tokens: 2",
            "decode[1].tokens is 2; allowed: at least 3",
        ),
        (", tokens: 46", "", "tokens in all rules or in none"),
        ("{tokens: 64}", "{ratio: 1.5}", "budget.ratio is 1.5"),
        ("{tokens: 64}", "{ratio: 0.5}", "budget in another unit"),
        ("{tokens: 64}", "{tokens: 0}", "budget.tokens is 0"),
        ("{sinks: 2}", "{sink: 2}", "unknown field `sink`"),
        ("share: 3", "sahre: 3", "sahre"),
        ("schema: 1", "schema: [", "not a plan"),
    ] {
        let message = refusal(from, to);
        assert!(
            message.starts_with("p.yaml: ") && message.contains(wanted),
            "{message}\nlacks: {wanted}"
        );
    }
}

#[test]
fn a_huge_file_is_refused_before_it_is_parsed() {
    let path = std::env::temp_dir().join(format!("polykv-huge-{}.yaml", std::process::id()));
    std::fs::write(&path, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
    let message = Plan::read(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert!(
        message.contains("size is more than 1048576 bytes"),
        "{message}"
    );
}

#[test]
fn full_layers_are_charged_their_length_or_allowed_on_top() {
    let text = "
schema: 1
layers: 4
budget: {tokens: 100}
prefill: [{layers: 0, policy: full}, {layers: 1-3, policy: tova}]
decode: [{layers: 0-3, policy: full}]
";
    let plan = Plan::from_yaml("p.yaml", text).unwrap();
    let budgets = |plan: &Plan, prompt| -> Result<Vec<_>> {
        let resolved = plan.resolve("p.yaml", prompt, cost(4))?;
        Ok(resolved.layers.iter().map(|l| l.prefill.budget).collect())
    };
    let charged = budgets(&plan, 160).unwrap();
    assert_eq!(charged, [None, Some(80), Some(80), Some(80)]);
    let message = budgets(&plan, 401).unwrap_err().to_string();
    assert!(
        message.contains("401") && message.contains("400"),
        "{message}"
    );
    let extra = Plan {
        allow_full_extra: true,
        ..plan
    };
    let on_top = budgets(&extra, 401).unwrap();
    assert_eq!(on_top, [None, Some(100), Some(100), Some(100)]);
}

#[test]
fn a_budget_below_the_protected_window_is_refused() {
    let plan = Plan::uniform(
        4,
        "snapkv",
        Params::new(),
        Budget::Tokens(31),
        &[Phase::Prefill],
    );
    let message = plan.resolve("cli", 1000, cost(4)).unwrap_err().to_string();
    assert!(message.contains("is 31; allowed: at least 32"), "{message}");
}

#[test]
fn another_model_is_refused() {
    let mut plan = Plan::from_yaml("p.yaml", MIXED).unwrap();
    plan.check_model("p.yaml", 4, "llama-x").unwrap();
    plan.model = Some("llama-y".into());
    let message = plan
        .check_model("p.yaml", 4, "llama-x")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("'llama-y'") && message.contains("'llama-x'"),
        "{message}"
    );
    assert!(plan.check_model("p.yaml", 5, "llama-y").is_err());
}

proptest! {
    #[test]
    fn budgets_sum_to_the_total(
        layers in 1usize..64,
        average in 40usize..5000,
        prompt in 1usize..100_000,
        shares in prop::collection::vec(0.5f64..2.0, 64),
    ) {
        let rules = |policy: &str| (0..layers).map(|layer| Rule {
            share: Some(shares[layer]),
            ..Rule::new(LayerRange { first: layer, last: layer }, policy)
        }).collect::<Vec<_>>();
        let plan = Plan {
            prefill: rules("tova"),
            decode: rules("random"),
            ..Plan::uniform(layers, "tova", Params::new(), Budget::Tokens(average), &[])
        };
        plan.validate("p").unwrap();
        let resolved = plan.resolve("p", prompt, cost(layers)).unwrap();
        prop_assert_eq!(resolved.total(Phase::Prefill), average * layers);
        prop_assert_eq!(resolved.total(Phase::Decode), average * layers);
    }

    #[test]
    fn parts_of_the_prompt_and_bytes_are_used_up(
        layers in 1usize..64,
        prompt in 100usize..100_000,
        ratio in 0.1f64..1.0,
        bytes in 2000u64..5_000_000,
        shares in prop::collection::vec(0.5f64..2.0, 64),
    ) {
        let entry = EntryCost { layers, bytes: 3 };
        for budget in [Budget::Ratio(ratio), Budget::Bytes(bytes)] {
            let rule = |layer: usize| Rule {
                share: Some(shares[layer]),
                ..Rule::new(LayerRange { first: layer, last: layer }, "knorm")
            };
            let plan = Plan {
                prefill: (0..layers).map(rule).collect(),
                ..Plan::uniform(layers, "knorm", Params::new(), budget, &[])
            };
            let total = plan.resolve("p", prompt, entry).unwrap().total(Phase::Prefill);
            prop_assert_eq!(total, budget.total(prompt, entry));
        }
    }
}
