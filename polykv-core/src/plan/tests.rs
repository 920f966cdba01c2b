mod at_least;
mod storage;

use super::*;
use crate::budget::EntryCost;
use crate::codes::Codes;
use crate::error::At;
use crate::policy::{HeadBudgets, Params, Policies};
use crate::{Registry, Result};
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
    EntryCost {
        windows: vec![None; layers].into(),
        bytes: 1,
        half: 1,
        coded: [1, 1],
    }
}

fn file(text: &str) -> PlanFile {
    PlanFile::from_yaml(text).unwrap()
}

fn build(text: &str) -> Result<Plan> {
    PlanFile::from_yaml(text)?.build(&Registry::default())
}

fn policy(name: &str) -> Arc<dyn Policy> {
    Policies::default().build(name, &Params::new()).unwrap()
}

fn refusal(from: &str, to: &str) -> String {
    let text = MIXED.replace(from, to);
    assert_ne!(text, MIXED, "'{from}' is not in the plan");
    build(&text).at("p.yaml").unwrap_err().to_string()
}

#[test]
fn budgets_follow_shares_and_tokens() {
    let plan = build(MIXED).unwrap();
    let resolved = plan.resolve(1000, &cost(4)).unwrap();
    let of = |phase| -> Vec<_> {
        let layers = resolved.layers.iter();
        layers.map(|layer| layer.budget(phase).unwrap()).collect()
    };
    assert_eq!(of(Phase::Prefill), [96, 96, 32, 32]);
    assert_eq!(of(Phase::Decode), [70, 70, 70, 46]);
    assert_eq!(resolved.total(Phase::Prefill), 256);
    assert_eq!(resolved.total(Phase::Decode), 256);
}

#[test]
fn a_total_need_be_no_multiple_of_the_layers() {
    let text = MIXED
        .replace("{tokens: 64}", "{total: 257}")
        .replace("tokens: 46", "tokens: 47");
    let resolved = build(&text).unwrap().resolve(1000, &cost(4)).unwrap();
    assert_eq!(resolved.total(Phase::Prefill), 257);
    assert_eq!(resolved.total(Phase::Decode), 257);
    let error = build(&text.replace("total: 257", "total: 256"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sum of decode tokens is 257; allowed: 256, budget.total"),
        "{error}"
    );
}

#[test]
fn a_phase_that_is_left_out_keeps_everything() {
    let text = &MIXED[..MIXED.find("decode:").unwrap()];
    let plan = build(text).unwrap();
    assert!(plan.rules(Phase::Decode).all(|rule| *rule == Rule::Keep));
    assert!(plan.rules(Phase::Prefill).all(|rule| *rule != Rule::Keep));
    assert!(!file(text).to_yaml().contains("decode"));
}

#[test]
fn yaml_round_trips_and_the_hash_follows_the_content() {
    let plan = file(MIXED);
    let again = file(&plan.to_yaml());
    assert_eq!(plan, again);
    assert_eq!(plan.hash(), again.hash());
    let other = PlanFile {
        budget: Budget::Tokens(65),
        ..plan.clone()
    };
    assert_ne!(plan.hash(), other.hash());
}

/// What a plan is called in results that are committed somewhere stays what it is.
#[test]
fn a_plan_states_itself_as_the_file_it_came_from() {
    let registry = Registry::default();
    let plan = file(MIXED);
    let stated = PlanFile::of(&plan.build(&registry).unwrap(), &registry);
    let text = stated.to_yaml();
    assert_eq!(
        text,
        "schema: 1\nlayers: 4\nbudget:\n  tokens: 64\nprefill:\n- layers: 0-1\n  policy: h2o\n  share: 3.0\n\
         - layers: 2-3\n  policy: tova\ndecode:\n- layers: 0-2\n  policy: tova\n  tokens: 70\n\
         - layers: '3'\n  policy: streaming-llm\n  params:\n    sinks: 2\n  tokens: 46\n"
    );
    assert_eq!(
        PlanFile::of(&file(&text).build(&registry).unwrap(), &registry),
        stated
    );
    let full = PlanFile::of(&Plan::full(30), &registry);
    assert_eq!(full.rules(Phase::Decode)[0].policy, "full");
}

#[test]
fn a_written_plan_reads_back() {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("polykv-plan-{}.yaml", std::process::id()));
    let plan = file(MIXED);
    plan.write(&path).unwrap();
    assert_eq!(PlanFile::read(&path).unwrap(), plan);
    std::fs::write(&path, format!("\u{feff}{MIXED}")).unwrap();
    assert_eq!(PlanFile::read(&path).unwrap(), plan);
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
    let message = PlanFile::read(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert!(
        message.contains("1048577 bytes") && message.contains("1048576"),
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
    let plan = build(text).unwrap();
    let budgets = |plan: &Plan, prompt| -> Result<Vec<_>> {
        let resolved = plan.resolve(prompt, &cost(4))?;
        Ok(resolved
            .layers
            .iter()
            .map(|l| l.budget(Phase::Prefill))
            .collect())
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
    let plan = Plan::uniform(4, policy("snapkv"), Budget::Tokens(31), &[Phase::Prefill]);
    let message = plan.resolve(1000, &cost(4)).unwrap_err().to_string();
    assert!(message.contains("is 31; allowed: at least 32"), "{message}");
}

#[test]
fn another_model_is_refused() {
    let mut plan = file(MIXED);
    plan.check_model(4, "llama-x").unwrap();
    plan.model = Some("llama-y".into());
    let message = plan.check_model(4, "llama-x").unwrap_err().to_string();
    assert!(
        message.contains("'llama-y'") && message.contains("'llama-x'"),
        "{message}"
    );
    assert!(plan.check_model(5, "llama-y").is_err());
}

#[test]
fn deep_text_is_refused_at_once() {
    for text in [
        "[".repeat(50_000),
        "{a: ".repeat(50_000),
        "- ".repeat(50_000),
    ] {
        let started = std::time::Instant::now();
        let error = build(&format!("schema:\n{text}")).unwrap_err().to_string();
        assert!(error.contains("depth"), "{error}");
        assert!(started.elapsed().as_secs() < 2);
    }
}

fn with_shares(layers: usize, shares: &[f64], budget: Budget, name: [&str; 2]) -> Plan {
    let mut plan = Plan::uniform(layers, policy("tova"), budget, &[]);
    for (phase, name) in Phase::BOTH.into_iter().zip(name) {
        let rule = |share: &f64| Rule::evict(policy(name)).with_share(Share::Part(*share));
        plan.set_rules(phase, shares.iter().map(rule));
    }
    plan
}

proptest! {
    #[test]
    fn budgets_sum_to_the_total(
        layers in 1usize..64,
        average in 40usize..5000,
        prompt in 1usize..100_000,
        shares in prop::collection::vec(0.5f64..2.0, 64),
    ) {
        let plan = with_shares(layers, &shares, Budget::Tokens(average), ["tova", "random"]);
        plan.check().unwrap();
        let resolved = plan.resolve(prompt, &cost(layers)).unwrap();
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
        let entry = EntryCost { bytes: 3, ..cost(layers) };
        for budget in [Budget::Ratio(ratio), Budget::Bytes(bytes)] {
            let plan = with_shares(layers, &shares, budget, ["knorm", "knorm"]);
            let total = plan.resolve(prompt, &entry).unwrap().total(Phase::Prefill);
            prop_assert_eq!(total, budget.total(prompt, &entry));
        }
    }
}
