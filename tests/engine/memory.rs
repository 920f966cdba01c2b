//! What requests set aside, and what they take.

use super::{
    Budget, Engine, EngineOptions, GenerateOptions, LAYERS, Log, Phase, Plan, Refusal, Request,
    all_variants, least_budget, model, options, prompt, uniform, written,
};
use polykv::models::engine::EngineEvent;

/// Keys, values and statistics never exceed what was set aside for them.
#[test]
fn no_policy_takes_more_than_it_set_aside() {
    let model = model();
    for policy in all_variants() {
        for tokens in [3, 50, 200] {
            let budget = least_budget(&*policy).unwrap() + 9;
            let plan = Plan::uniform(LAYERS, policy.clone(), Budget::Tokens(budget), &Phase::BOTH);
            let what = format!("{tokens} tokens, {}", written(&plan));
            let mut engine = Engine::new(&model, EngineOptions::default());
            engine
                .submit(Request::new(prompt(tokens, 1), plan, options(20)))
                .unwrap();
            let mut steady = 0;
            while !engine.is_idle() {
                let events = engine.step();
                for (_, event) in &events {
                    let caches = match event {
                        EngineEvent::Prompt(prompted) => &prompted.cache,
                        EngineEvent::Done(answer) => &answer.cache,
                        EngineEvent::Failed { error, .. } => panic!("{error}: {what}"),
                        _ => continue,
                    };
                    let held = (caches.bytes + caches.aux_bytes) as u64;
                    // The request is gone with its end.
                    let reserved = engine.stats().reserved_bytes.max(steady);
                    assert!(held <= reserved, "{held} of {reserved}: {what}");
                    assert!(
                        reserved < 40 * held + (1 << 18),
                        "{held} of {reserved}: {what}"
                    );
                    steady = reserved;
                }
            }
        }
    }
}

/// As many run as have room, the others wait, and whoever could never run is told so.
#[test]
fn memory_decides_who_runs() {
    let model = model();
    let need = |plan: &Plan| {
        let mut engine = Engine::new(&model, EngineOptions::default());
        let request = Request::new(prompt(300, 1), plan.clone(), options(40));
        engine.submit(request).unwrap();
        engine.step();
        engine.stats().reserved_bytes
    };
    let full = Plan::full(LAYERS);
    let small = uniform(LAYERS, "tova", Budget::Tokens(16), &Phase::BOTH);
    assert!(need(&full) > need(&small));
    let limit = need(&full) + 10;
    let most = |plan: &Plan| {
        let options = EngineOptions {
            kv_memory: Some(limit),
            chunk: 64,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(&model, options);
        for seed in 0..9 {
            let request = Request::new(prompt(300, seed), plan.clone(), self::options(40));
            engine.submit(request).unwrap();
        }
        let (mut log, mut most) = (Log::default(), 0);
        while !engine.is_idle() {
            log.add(engine.step());
            let stats = engine.stats();
            assert!(stats.reserved_bytes <= limit);
            most = most.max(stats.sequences);
        }
        assert_eq!((log.answers.len(), log.errors.len()), (9, 0));
        most
    };
    assert_eq!(most(&full), 1);
    assert!(most(&small) >= 3, "{}", most(&small));
    let options = EngineOptions {
        kv_memory: Some(need(&full) - 1),
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(&model, options);
    match engine
        .submit(Request::new(prompt(300, 1), full, self::options(40)))
        .map_err(|refused| refused.refusal)
    {
        Err(Refusal::Never { needed, limit }) => assert_eq!(needed, limit + 1),
        other => panic!("{other:?}"),
    }
    engine
        .submit(Request::new(prompt(300, 1), small, self::options(40)))
        .unwrap();
}

/// Nobody waits for memory that the caller holds itself.
#[test]
fn memory_that_is_set_aside_is_taken() {
    let model = model();
    let options = EngineOptions {
        kv_memory: Some(1_000_000),
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(&model, options);
    let request = || Request::new(prompt(50, 1), Plan::full(LAYERS), self::options(9));
    engine.set_aside(990_000);
    match engine.submit(request()).map_err(|refused| refused.refusal) {
        Err(Refusal::Held { left, .. }) => assert_eq!(left, 10_000),
        other => panic!("{other:?}"),
    }
    engine.set_aside(0);
    engine.submit(request()).unwrap();
    engine.set_aside(990_000);
    let mut log = Log::default();
    log.run(&mut engine);
    let error = log.errors.into_values().next().unwrap();
    assert!(error.to_string().contains("at most 10000 now"), "{error}");
    engine.set_aside(1_000);
    let id = engine.submit(request()).unwrap();
    let mut log = Log::default();
    log.run(&mut engine);
    assert_eq!(log.answer(id, 0).0.len(), 9);
    assert_eq!(engine.stats().reserved_bytes, 1_000);
}

#[test]
fn a_full_queue_says_so() {
    let model = model();
    let options = EngineOptions {
        queue: 1,
        rows: 1,
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(&model, options);
    let request = || {
        let options = GenerateOptions {
            max_new_tokens: 3,
            ..GenerateOptions::default()
        };
        Request::new(prompt(5, 1), Plan::full(LAYERS), options)
    };
    engine.submit(request()).unwrap();
    engine.step();
    let waiting = engine.submit(request()).unwrap();
    match engine.submit(request()).map_err(|refused| refused.refusal) {
        Err(Refusal::Full { waiting }) => assert_eq!(waiting, 1),
        other => panic!("{other:?}"),
    }
    engine.cancel(waiting);
    engine.submit(request()).unwrap();
    let mut log = Log::default();
    log.run(&mut engine);
    assert_eq!(log.answers.len(), 2);
}
