//! Random requests that come, go and are cancelled at any time.

use super::{
    Budget, Engine, EngineOptions, LAYERS, Log, Phase, Plan, Request, alone, model, options,
    prompt, uniform,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Operation {
    /// Policy, tokens of the prompt, new tokens.
    Submit(usize, usize, usize),
    Step(usize),
    /// Which of those that were submitted, counted from the last.
    Cancel(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => (0..6usize, 1..70usize, 0..12usize).prop_map(|(p, t, n)| Operation::Submit(p, t, n)),
        4 => (1..12usize).prop_map(Operation::Step),
        1 => (0..8usize).prop_map(Operation::Cancel),
    ]
}

fn plan(policy: usize) -> Plan {
    match policy {
        0 => Plan::full(LAYERS),
        1 => uniform(LAYERS, "tova", Budget::Tokens(8), &Phase::BOTH),
        2 => uniform(LAYERS, "h2o", Budget::Tokens(13), &[Phase::Decode]),
        3 => uniform(LAYERS, "snapkv", Budget::Tokens(40), &[Phase::Prefill]),
        4 => uniform(LAYERS, "streaming-llm", Budget::Ratio(0.5), &Phase::BOTH),
        _ => uniform(LAYERS, "d2o", Budget::Tokens(12), &Phase::BOTH),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    /// Whoever is not cancelled gets what it gets alone; nothing is left of anybody.
    #[test]
    fn nobody_is_disturbed_and_nothing_leaks(operations in prop::collection::vec(operation(), 1..40)) {
        let model = model();
        let limit = 600_000;
        let options_of_engine = EngineOptions { kv_memory: Some(limit), chunk: 24, rows: 5, ..EngineOptions::default() };
        let mut engine = Engine::new(&model, options_of_engine);
        let mut log = Log::default();
        let mut requests = BTreeMap::new();
        for operation in operations {
            match operation {
                Operation::Submit(policy, tokens, new) => {
                    let seed = requests.len() as u32;
                    let request = Request::new(prompt(tokens, seed), plan(policy), options(new));
                    if let Ok(id) = engine.submit(request.clone()) {
                        requests.insert(id, request);
                    }
                }
                Operation::Step(count) => (0..count).for_each(|_| log.add(engine.step())),
                Operation::Cancel(index) => {
                    let id = requests.keys().rev().nth(index).copied();
                    if let Some(id) = id && !log.answers.contains_key(&(id, 0)) {
                        engine.cancel(id);
                        requests.remove(&id);
                    }
                }
            }
            let stats = engine.stats();
            prop_assert!(stats.reserved_bytes <= limit);
            prop_assert!(stats.kv_bytes as u64 <= stats.reserved_bytes);
            prop_assert!(stats.sequences <= 5);
        }
        log.run(&mut engine);
        let stats = engine.stats();
        prop_assert_eq!((stats.reserved_bytes, stats.kv_bytes), (0, 0));
        prop_assert!(log.errors.is_empty(), "{:?}", log.errors);
        for (id, request) in requests {
            prop_assert_eq!(log.answer(id, 0), alone(&request));
        }
    }
}
