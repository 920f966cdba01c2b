//! Sessions: what is saved goes on as if it had not been, and what is no session is refused.

#[path = "session/forged.rs"]
mod forged;

use super::world::{Fill, World, allocators, phases, plan};
use crate::common::{all_variants, each_policy, repeat, uniform, written};
use burn::tensor::DType;
use polykv::allocate::least_budget;
use polykv::testing::kept;
use polykv::{
    Budget, Codes, ErrorKind, KvCache, LayerShape, Phase, Plan, PlanFile, Registry, Rule, Session,
    SessionInfo, Spans,
};
use proptest::prelude::*;

const MODEL: &str = "a model";

fn info(plan: &Plan) -> SessionInfo {
    SessionInfo {
        model: MODEL.into(),
        plan: PlanFile::of(plan, &Registry::default()),
        tokens: Vec::new(),
        pending: Vec::new(),
    }
}

/// A cache of the world that goes on from a session, under the plan that the session states.
fn load(world: &World, content: Vec<u8>) -> polykv::Result<KvCache> {
    let session = Session::from_bytes("a.session", content)?;
    let plan = session.info().plan.build(&Registry::default())?;
    let mut cache = world.cache(plan)?;
    cache.load(&session, MODEL)?;
    Ok(cache)
}

/// A prompt of the next tokens; the bits of the outputs, or of the refusal of a budget that is too small at this length.
fn prompt(world: &World, cache: &mut KvCache, tokens: usize) -> Vec<u32> {
    let start = cache.seen();
    let mut bits = Vec::new();
    let mut prompt = match cache.prompt(tokens) {
        Ok(prompt) => prompt,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Budget, "{error}");
            return error.to_string().chars().map(u32::from).collect();
        }
    };
    for layer in 0..world.layers {
        for first in (start..start + tokens).step_by(world.chunk) {
            let range = first..(start + tokens).min(first + world.chunk);
            let [q, k, v] = [0, 1, 2].map(|kind| world.part(layer, kind, range.clone()));
            let output = prompt.attend(layer, q, k, v).unwrap();
            bits.extend(output.try_into_vec_as::<f32>().unwrap());
        }
        let again = start..start + tokens;
        let parts = [0, 1, 2].map(|kind| world.part(layer, kind, again.clone()));
        repeat(&mut prompt, layer, parts).unwrap();
        prompt.end_layer(layer).unwrap();
    }
    prompt.finish().unwrap();
    bits.into_iter().map(f32::to_bits).collect()
}

fn decode(world: &World, cache: &mut KvCache, tokens: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for _ in 0..tokens {
        let at = cache.seen();
        for layer in 0..world.layers {
            let [q, k, v] = [0, 1, 2].map(|kind| world.part(layer, kind, at..at + 1));
            let output = cache.decode(layer, q, k, v).unwrap();
            bits.extend(output.try_into_vec_as::<f32>().unwrap());
        }
    }
    bits.into_iter().map(f32::to_bits).collect()
}

/// Saves after a prompt, after the steps that follow, and after another prompt, and each time goes on from there.
fn goes_on(world: &World, plan: Plan, spans: &Spans) {
    let what = format!("{world:?}\n{}", written(&plan));
    let info = info(&plan);
    let mut cache = world.cache(plan).unwrap();
    cache.protect(spans.clone());
    let mut saved = Vec::new();
    for _ in 0..2 {
        prompt(world, &mut cache, world.prompt);
        saved.push(cache.clone());
        decode(world, &mut cache, world.steps);
    }
    saved.push(cache);
    for mut original in saved {
        let content = original.to_session(&info).unwrap();
        let mut loaded = load(world, content.clone()).unwrap_or_else(|e| panic!("{e}: {what}"));
        assert_eq!(loaded.to_session(&info).unwrap(), content, "{what}");
        assert_eq!(loaded.next_positions(), original.next_positions());
        // Steps first, then a prompt, or the other way around.
        for steps in [world.steps + 2, 0] {
            let (mut a, mut b) = (original.clone(), loaded.clone());
            let run = |cache: &mut KvCache| {
                let mut bits = decode(world, cache, steps);
                bits.extend(prompt(world, cache, world.prompt));
                bits.extend(decode(world, cache, 3));
                bits
            };
            assert!(run(&mut a) == run(&mut b), "outputs differ: {what}");
            for layer in 0..world.layers {
                assert_eq!(kept(&a, layer).unwrap(), kept(&b, layer).unwrap(), "{what}");
            }
            let [a, b] = [&mut a, &mut b].map(|cache| cache.to_session(&info).unwrap());
            assert!(a == b, "what is kept differs: {what}");
        }
    }
}

#[test]
fn every_policy_and_allocator_goes_on_from_a_session() {
    for policy in all_variants() {
        let budget = least_budget(&*policy).unwrap() + 3;
        for online in allocators() {
            for phase in 0..3 {
                let mut world = World::new(3, budget + 9, 4);
                world.shape.batch = 2;
                world.window = Some(budget.max(4) - 2).filter(|_| phase == 2);
                let budget = Budget::Tokens(budget);
                if let Some(mut plan) = plan(&world, &policy, &online, budget, phases(phase)) {
                    plan.every = 1 + 2 * phase;
                    let codes = Codes::ALL[phase % 2];
                    goes_on(&world, plan.clone().with_kv(codes), &Spans::default());
                    goes_on(&world, plan, &Spans::default());
                }
            }
        }
    }
}

prop_compose! {
    fn worlds()(
        batch in 1usize..3,
        kv_heads in 1usize..4,
        group in 1usize..4,
        pairs in 1usize..7,
        layers in 1usize..4,
        prompt in 1usize..60,
        chunk in 1usize..60,
        steps in 0usize..9,
        seed in any::<u64>(),
        dtype in 0usize..3,
        window in prop::option::of(1usize..70),
    ) -> World {
        let dtype = [DType::F32, DType::F16, DType::BF16][dtype];
        let shape = LayerShape { batch, heads: kv_heads * group, kv_heads, head_dim: 2 * pairs, dtype };
        World { shape, layers, prompt, chunk, steps, fill: Fill::Any, seed, window }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_cache_goes_on_from_a_session(
        world in worlds(),
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4), 6),
        online in any::<prop::sample::Index>(),
        more in 0usize..30,
        span in prop::option::of((0usize..40, 1usize..4)),
        ratio in prop::option::of(0.3f64..1.0),
    ) {
        let variants = all_variants();
        let spans = Spans::new(span.map(|(start, count)| start..start + count));
        let mut plan = Plan::full(world.layers);
        let mut budget = 1;
        for (index, (pick, what)) in picks.into_iter().enumerate() {
            let policy = pick.get(&variants);
            budget = budget.max(least_budget(&**policy).unwrap() + spans.count());
            if let (Some(layer), true) = (plan.layers.get_mut(index / 2), what > 0) {
                *layer.rule_mut(Phase::BOTH[index % 2]) = Rule::evict(policy.clone());
            }
        }
        plan.budget = Budget::Tokens(budget + more);
        plan.allow_full_extra = true;
        plan.online = online.get(&allocators()).clone();
        if let Some(ratio) = ratio {
            plan.budget = Budget::Ratio(ratio);
        }
        let runs = |plan: &Plan| {
            plan.check()?;
            let mut cache = world.cache(plan.clone())?;
            cache.protect(spans.clone());
            cache.prompt(world.prompt).map(drop)
        };
        match runs(&plan) {
            Ok(()) => goes_on(&world, plan, &spans),
            // A small part of a short prompt, or a policy that an allocator does not go with.
            Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::Budget | ErrorKind::Plan), "{}", error),
        }
    }
}

/// Rows at different positions, token ids, what is to be fed next.
#[test]
fn what_the_caller_knows_comes_back() {
    let mut world = World::new(2, 20, 0);
    world.shape.batch = 2;
    let plan = uniform(2, "h2o", Budget::Tokens(8), &Phase::BOTH);
    let mut cache = world.cache(plan.clone()).unwrap();
    cache = cache.starting_at(&[5, 70]).unwrap();
    prompt(&world, &mut cache, 20);
    let tokens: Vec<Vec<u32>> = vec![(0..20).collect(), (100..120).collect()];
    let known = SessionInfo {
        tokens: tokens.clone(),
        pending: vec![7, u32::MAX],
        ..info(&plan)
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.session");
    let bytes = cache.save(&path, &known).unwrap();
    assert_eq!(bytes as u64, path.metadata().unwrap().len());
    let session = Session::read(&path).unwrap();
    assert_eq!((session.bytes(), session.seen()), (bytes, 20));
    assert_eq!((session.batch(), session.is_complete()), (2, false));
    let found = session.info();
    assert_eq!((&found.tokens, &found.pending), (&tokens, &known.pending));
    assert_eq!((&found.model, &found.plan), (&known.model, &known.plan));
    let loaded = load(&world, std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(loaded.next_positions(), [25, 90]);
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 1, "a temporary file is left");
}

#[test]
fn only_what_is_kept_is_written() {
    let world = World::new(2, 1500, 0);
    let size = |name: &str, budget: usize| {
        let plan = uniform(2, name, Budget::Tokens(budget), &Phase::BOTH);
        let mut cache = world.cache(plan.clone()).unwrap();
        prompt(&world, &mut cache, 1500);
        cache.reserve(1000);
        let content = cache.to_session(&info(&plan)).unwrap();
        let session = Session::from_bytes("a.session", content.clone()).unwrap();
        assert_eq!(session.is_complete(), budget >= 1500);
        content.len()
    };
    // Keys, values, a position and a sum for each entry of two layers with two heads.
    let entry = 2 * 2 * (2 * 8 * 4 + 4 + 4);
    for budget in [16, 1500] {
        let found = size("h2o", budget);
        let content = budget * entry;
        assert!((content..content + 4000).contains(&found), "{found}");
    }
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let world = World::new(2, 12, 0);
    let plan = uniform(2, "h2o", Budget::Tokens(8), &Phase::BOTH);
    let known = info(&plan);
    let refused = |cache: &mut KvCache, known: &SessionInfo, kind: ErrorKind, text: &str| {
        let error = cache.to_session(known).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{text}: {error}");
    };
    let mut cache = world.cache(plan.clone()).unwrap();
    refused(
        &mut cache,
        &known,
        ErrorKind::Order,
        "save before any token",
    );
    let unfinished = cache.prompt(12).unwrap();
    let _ = unfinished;
    refused(
        &mut cache,
        &known,
        ErrorKind::Order,
        "within a prompt of 12",
    );
    cache.clear();
    prompt(&world, &mut cache, 12);
    for (tokens, pending, text) in [
        (vec![vec![1; 11]], vec![], "tokens is 11; allowed: 12"),
        (vec![vec![1; 12]; 2], vec![], "tokens is of 2 rows"),
        (vec![], vec![1, 2], "pending tokens is of 2 rows"),
    ] {
        let known = SessionInfo {
            tokens,
            pending,
            ..known.clone()
        };
        refused(&mut cache, &known, ErrorKind::Shape, text);
    }
    let [q, k, v] = [0, 1, 2].map(|kind| world.part(0, kind, 12..13));
    cache.decode(0, q, k, v).unwrap();
    refused(&mut cache, &known, ErrorKind::Order, "before layer 1");

    // Infinite values do no harm to a policy that looks at attention only.
    let world = World {
        fill: Fill::With(f32::INFINITY),
        ..world
    };
    let mut cache = world.cache(Plan::full(2)).unwrap();
    prompt(&world, &mut cache, 12);
    refused(&mut cache, &known, ErrorKind::NotFinite, "layer.0.keys");
}

/// A session that was saved on one machine can be read by tools that know safetensors.
#[test]
fn the_file_is_plain_safetensors() {
    let world = World::new(1, 12, 3);
    for policy in each_policy() {
        let budget = Budget::Tokens(least_budget(&*policy).unwrap());
        let plan = Plan::uniform(1, policy.clone(), budget, &Phase::BOTH);
        let mut cache = world.cache(plan.clone()).unwrap();
        prompt(&world, &mut cache, 12);
        let content = cache.to_session(&info(&plan)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&content).unwrap();
        let layer = &cache.layers()[0];
        match tensors.tensor("layer.0.keys") {
            Ok(keys) => assert_eq!(keys.shape(), [1, 2, length(&cache), 8]),
            // Heads with budgets of their own.
            Err(_) => {
                for (head, entries) in layer.head_entries().into_iter().enumerate() {
                    let keys = tensors.tensor(&format!("layer.0.head.{head}.keys"));
                    assert_eq!(keys.unwrap().shape(), [1, 1, entries, 8]);
                }
            }
        }
    }
}

fn length(cache: &KvCache) -> usize {
    super::length(cache, 0)
}

/// A plan that states parts of a layer's budget for its KV heads divides them after a session, too.
#[test]
fn heads_with_parts_go_on() {
    for phases in [&Phase::BOTH[..], &[Phase::Prefill]] {
        let mut plan = uniform(2, "h2o", Budget::Tokens(12), phases);
        plan.layers[0].heads = Some([3.0, 1.0].into());
        goes_on(&World::new(2, 40, 5), plan, &Spans::default());
    }
}
