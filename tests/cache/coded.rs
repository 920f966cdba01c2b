//! Caches that keep their entries in codes.

use super::world::{World, allocators, phases, plan};
use crate::common::{all_variants, repeat, uniform, written};
use polykv::allocate::least_budget;
use polykv::testing::kept;
use polykv::{Budget, Codes, KvCache, Phase, Plan};

/// A world whose heads have two runs of numbers, the second one short.
fn world(prompt: usize, steps: usize) -> World {
    let mut world = World::new(3, prompt, steps);
    world.shape.head_dim = 40;
    world
}

/// The mean distance between two runs, relative to the mean size of the second.
fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let apart: f32 = found.iter().zip(wanted).map(|(x, y)| (x - y).abs()).sum();
    apart / wanted.iter().map(|y| y.abs()).sum::<f32>()
}

#[test]
fn outputs_are_near_those_of_floats_by_the_bits() {
    let world = world(80, 30);
    // What these keep does not depend on the numbers, so that only the codes make a difference.
    for plan in [
        Plan::full(3),
        uniform(3, "streaming-llm", Budget::Tokens(24), &Phase::BOTH),
        uniform(3, "random", Budget::Tokens(24), &Phase::BOTH),
    ] {
        let wanted = world.run(plan.clone()).unwrap();
        let [q8, q4] = Codes::ALL.map(|codes| {
            let found = world.run(plan.clone().with_kv(codes)).unwrap();
            assert_eq!(found.lengths, wanted.lengths);
            distance(&found.outputs, &wanted.outputs)
        });
        assert!(0.0 < q8 && q8 < 0.004, "{q8}");
        assert!(4.0 * q8 < q4 && q4 < 0.06, "{q4}");
    }
}

#[test]
fn every_policy_and_allocator_works_on_codes() {
    for policy in all_variants() {
        let budget = least_budget(&*policy).unwrap() + 3;
        for online in allocators() {
            for phase in 0..3 {
                let mut world = world(budget + 9, 6);
                world.shape.batch = 2;
                world.window = Some(budget.max(4) - 2).filter(|_| phase == 2);
                let entries = Budget::Tokens(budget);
                let Some(plan) = plan(&world, &policy, &online, entries, phases(phase)) else {
                    continue;
                };
                let floats = world.run(plan.clone()).unwrap();
                let coded = world.run(plan.clone().with_kv(Codes::Q8)).unwrap();
                let what = written(&plan);
                assert!(coded.outputs.iter().all(|x| x.is_finite()), "{what}");
                if online.is_none() {
                    assert_eq!(coded.lengths, floats.lengths, "{what}");
                }
                // The prompt itself is computed in floats.
                let prompt = world.layers * world.prompt * 2 * 4 * 40;
                assert_eq!(coded.outputs[..prompt], floats.outputs[..prompt], "{what}");
            }
        }
    }
}

/// A cache after a prompt.
fn cache(world: &World, plan: Plan) -> KvCache {
    let mut cache = world.cache(plan).unwrap();
    prompt(world, &mut cache, world.prompt);
    cache
}

fn prompt(world: &World, cache: &mut KvCache, tokens: usize) {
    let start = cache.seen();
    let mut prompt = cache.prompt(tokens).unwrap();
    for layer in 0..world.layers {
        let [q, k, v] = [0, 1, 2].map(|kind| world.part(layer, kind, start..start + tokens));
        let same = [q.clone(), k.clone(), v.clone()];
        prompt.attend(layer, q, k, v).unwrap();
        repeat(&mut prompt, layer, same).unwrap();
        prompt.end_layer(layer).unwrap();
    }
    prompt.finish().unwrap();
}

#[test]
fn memory_is_that_of_the_codes() {
    let world = world(100, 0);
    let entry = |codes: Option<Codes>| world.shape.cost(&[]).bytes_in(codes);
    assert_eq!(entry(None), 2 * 2 * 40 * 4);
    // 40 or 20 bytes of codes, and a word for each of two runs.
    assert_eq!(entry(Some(Codes::Q8)), 2 * 2 * (40 + 8));
    assert_eq!(entry(Some(Codes::Q4)), 2 * 2 * (20 + 8));
    let plan = uniform(3, "tova", Budget::Tokens(19), &Phase::BOTH);
    for codes in Codes::ALL {
        let mut coded = cache(&world, plan.clone().with_kv(codes));
        let report = coded.report().unwrap();
        let beside = world.shape.cost(&[]).bytes_beside(Some(codes));
        assert_eq!(beside, [0, 9 * 640][usize::from(codes == Codes::Q4)]);
        assert_eq!(report.bytes, 3 * (20 * entry(Some(codes)) + beside));
        assert_eq!(report.full_bytes, 3 * 100 * entry(None));
        assert_eq!(report.kept, [19.0; 3]);
    }
}

/// The keys of one head by position.
fn by_position(cache: &KvCache, layer: usize, head: usize) -> Vec<(usize, Vec<f32>)> {
    let layer = &cache.layers()[layer];
    let (keys, positions) = (layer.keys().unwrap(), layer.positions().unwrap());
    let positions: Vec<i64> = positions.narrow(1, head, 1).try_into_vec_as().unwrap();
    let keys: Vec<f32> = keys.narrow(1, head, 1).try_into_vec_as().unwrap();
    let keys = keys.chunks_exact(40).map(<[f32]>::to_vec);
    let held = positions.into_iter().zip(keys);
    // A head with a budget of its own may have fewer than others.
    let held = held.filter(|(position, _)| *position >= 0);
    held.map(|(position, key)| (position as usize, key))
        .collect()
}

#[test]
fn in_four_bits_the_first_and_the_latest_entries_stay_in_floats() {
    let world = world(50, 0);
    for policy in all_variants() {
        let budget = least_budget(&*policy).unwrap() + 12;
        let plan = Plan::uniform(3, policy.clone(), Budget::Tokens(budget), &Phase::BOTH);
        let mut cache = cache(&world, plan.with_kv(Codes::Q4));
        for step in 0..25 {
            for (layer, head) in [(0, 0), (1, 1)] {
                let given = world.part(layer, 1, 0..cache.seen()).narrow(1, head, 1);
                let given: Vec<f32> = given.try_into_vec_as().unwrap();
                let held = by_position(&cache, layer, head);
                let exact = |(position, key): &&(usize, Vec<f32>)| {
                    key[..] == given[40 * position..40 * (position + 1)]
                };
                let exact = held.iter().filter(exact).map(|(position, _)| *position);
                let mut exact: Vec<usize> = exact.collect();
                exact.sort_unstable();
                let seen = cache.seen();
                let among = |position: &usize| *position == 0 || position + 8 >= seen;
                // Merging policies change what others leave behind.
                let merges = Phase::BOTH.iter().any(|&phase| policy.merges(phase));
                if !merges && step > 8 {
                    let latest = held.iter().map(|(position, _)| *position).filter(among);
                    let mut latest: Vec<usize> = latest.collect();
                    latest.sort_unstable();
                    assert_eq!(exact, latest, "{} {step}", policy.key());
                }
            }
            decode(&world, &mut cache);
        }
    }
}

fn decode(world: &World, cache: &mut KvCache) {
    let at = cache.seen();
    for layer in 0..world.layers {
        let [q, k, v] = [0, 1, 2].map(|kind| world.part(layer, kind, at..at + 1));
        cache.decode(layer, q, k, v).unwrap();
    }
}

#[test]
fn a_further_prompt_does_not_wear_out_what_is_kept() {
    let world = world(150, 0);
    for codes in Codes::ALL {
        let mut cache = cache(&world, Plan::full(3).with_kv(codes));
        // Neither the first nor the latest, which four bits leave in floats for a while.
        let keys = |cache: &KvCache| {
            let keys = cache.layers()[1].keys().unwrap().narrow(2, 1, 140);
            keys.try_into_vec_as::<f32>().unwrap()
        };
        let before = keys(&cache);
        for _ in 0..8 {
            prompt(&world, &mut cache, 1);
        }
        let apart = distance(&keys(&cache), &before);
        assert!(apart < 1e-3, "{codes}: {apart}");
    }
}

#[test]
fn bytes_are_divided_by_what_entries_cost() {
    let world = world(200, 0);
    let mut plan = uniform(3, "tova", Budget::Bytes(30_000), &Phase::BOTH);
    plan.layers[0].kv = Some(Codes::Q4);
    plan.layers[1].kv = Some(Codes::Q8);
    let cache = cache(&world, plan.clone());
    let cost = cache.cost();
    let bytes = |layer: usize| {
        let entries = kept(&cache, layer).unwrap()[0].len();
        entries * plan.entry_bytes(layer, &cost)
    };
    let beside = cost.bytes_beside(Some(Codes::Q4));
    let total = beside + (0..3).map(bytes).sum::<usize>();
    assert!(total <= 30_000, "{total}");
    let one_more: usize = (0..3).map(|layer| plan.entry_bytes(layer, &cost)).sum();
    assert!(total + one_more > 30_000, "{total}");
    // As many entries more as they are smaller.
    let total = |codes: Option<Codes>| {
        let plan = uniform(3, "tova", Budget::Bytes(30_000), &Phase::BOTH);
        let plan = codes.map_or(plan.clone(), |codes| plan.with_kv(codes));
        plan.resolve(200, &cost).unwrap().total(Phase::Prefill)
    };
    assert_eq!(total(None), 30_000 / 640);
    assert_eq!(total(Some(Codes::Q4)), (30_000 - 3 * beside) / 112);
}
