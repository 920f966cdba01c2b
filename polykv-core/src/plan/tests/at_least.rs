//! Budgets that short prompts do not fall below.

use super::*;

fn evicting(budget: Budget, codes: &[Option<Codes>]) -> Plan {
    let mut plan = Plan::uniform(codes.len(), policy("streaming-llm"), budget, &Phase::BOTH);
    for (layer, codes) in plan.layers.iter_mut().zip(codes) {
        layer.kv = *codes;
    }
    plan.at_least = 20;
    plan
}

fn budgets(plan: &Plan, prompt: usize, cost: &EntryCost) -> Vec<usize> {
    let layers = plan.resolve(prompt, cost).unwrap().layers;
    let budgets = layers.iter().map(|layer| layer.budget(Phase::Prefill));
    budgets.map(Option::unwrap).collect()
}

#[test]
fn short_prompts_have_as_many_entries() {
    let mut plan = evicting(Budget::Ratio(0.1), &[None; 4]);
    assert_eq!(budgets(&plan, 1000, &cost(4)), [100; 4]);
    assert_eq!(budgets(&plan, 201, &cost(4)), [20; 4]);
    assert_eq!(budgets(&plan, 50, &cost(4)), [20; 4]);
    // Nothing is evicted from a prompt that is shorter.
    assert_eq!(budgets(&plan, 3, &cost(4)), [20; 4]);
    let same = plan.fingerprint();
    plan.at_least = 0;
    assert_ne!(plan.fingerprint(), same);
    let error = plan.resolve(20, &cost(4)).unwrap_err().to_string();
    assert!(
        error.contains("at least 5, what policy streaming-llm protects"),
        "{error}"
    );
}

#[test]
fn budgets_in_bytes_have_as_many_entries_in_their_formats() {
    let cost = EntryCost {
        bytes: 256,
        half: 256,
        coded: [136, 72],
        ..cost(2)
    };
    for codes in [
        [None; 2],
        [Some(Codes::Q8); 2],
        [Some(Codes::Q4); 2],
        [None, Some(Codes::Q4)],
    ] {
        for budget in [Budget::ByteRatio(0.0625), Budget::Bytes(10)] {
            let plan = evicting(budget, &codes);
            assert_eq!(budgets(&plan, 40, &cost), [20; 2], "{codes:?}");
        }
    }
    let plan = evicting(Budget::ByteRatio(0.5), &[None; 2]);
    assert_eq!(budgets(&plan, 1000, &cost), [500; 2]);
}

#[test]
fn files_state_it_within_its_range() {
    let text = MIXED.replace("schema: 1", "schema: 1\nat_least: 80");
    let file = file(&text);
    assert_eq!(file.at_least, 80);
    assert_eq!(
        PlanFile::of(
            &file.build(&Registry::default()).unwrap(),
            &Registry::default()
        )
        .at_least,
        80
    );
    let found = refusal("schema: 1", "schema: 1\nat_least: 1048577");
    assert_eq!(found, "p.yaml: at_least is 1048577; allowed: 0 to 1048576");
}
