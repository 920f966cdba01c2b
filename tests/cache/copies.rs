//! Copies of a cache share what its prompt left, and go on as if they did not.

use super::{ENTRY, data, decode, policy, prefill, uniform};
use burn::tensor::{DType, Device};
use polykv::testing::{Inputs, cache, kept};
use polykv::{Budget, Codes, KvCache, Phase, Plan};

const LAYERS: usize = 2;
const PROMPT: usize = 150;

/// Plans that keep what comes after the prompt, as floats or not, and one that does not.
fn plans() -> Vec<Plan> {
    let prefill = [Phase::Prefill];
    let budget = || Budget::Tokens(100);
    let mut codes = uniform(LAYERS, "snapkv", budget(), &prefill);
    codes.layers[1].kv = Some(Codes::Q8);
    vec![
        Plan::full(LAYERS),
        uniform(LAYERS, "snapkv", budget(), &prefill),
        uniform(LAYERS, "h2o", budget(), &prefill),
        Plan::uniform(
            LAYERS,
            policy("adakv", "{base: {policy: snapkv}}"),
            budget(),
            &prefill,
        ),
        codes,
        uniform(LAYERS, "h2o", budget(), &Phase::BOTH),
    ]
}

fn prompted(plan: &Plan, data: &[Inputs]) -> KvCache {
    let empty = cache(plan.clone(), &Device::flex()).unwrap();
    prefill(empty, data, 0..PROMPT, 64).unwrap().0
}

/// A few tokens, another prompt and a few tokens more, of which each branch has others; the bits of the outputs.
fn go_on(cache: &mut KvCache, branch: u64) -> Vec<u32> {
    let own = data(LAYERS, PROMPT + 80, 100 + branch);
    let tokens = 20 + branch as usize;
    let mut outputs = decode(cache, &own, PROMPT..PROMPT + tokens).unwrap();
    let (_, more) = prefill(&mut *cache, &own, PROMPT + tokens..PROMPT + tokens + 30, 16).unwrap();
    outputs.extend(more);
    outputs.extend(decode(cache, &own, PROMPT + tokens + 30..PROMPT + tokens + 40).unwrap());
    outputs.into_iter().map(f32::to_bits).collect()
}

#[test]
fn copies_go_on_as_if_each_were_alone() {
    let data = data(LAYERS, PROMPT, 5);
    for plan in plans() {
        let alone: Vec<_> = (0..4)
            .map(|branch| {
                let mut cache = prompted(&plan, &data);
                let outputs = go_on(&mut cache, branch);
                (outputs, kept(&cache, 1).unwrap())
            })
            .collect();
        let mut caches = vec![prompted(&plan, &data)];
        caches.push(caches[0].clone());
        caches.push(caches[1].clone());
        let mut found: Vec<_> = (0..3)
            .map(|branch| go_on(&mut caches[branch as usize], branch))
            .collect();
        // A copy of one that has gone on goes on from there; the others are no longer there.
        let mut last = prompted(&plan, &data);
        caches = vec![caches.remove(2), last.clone()];
        found.push(go_on(&mut caches[1], 3));
        for (branch, (outputs, _)) in alone.iter().enumerate() {
            assert!(
                *outputs == found[branch],
                "branch {branch} of {:?}",
                plan.layers[0]
            );
        }
        assert_eq!(kept(&caches[0], 1).unwrap(), alone[2].1);
        assert_eq!(kept(&caches[1], 1).unwrap(), alone[3].1);
        assert!(
            go_on(&mut last, 0) == alone[0].0,
            "the original of {:?}",
            plan.layers[0]
        );
    }
}

#[test]
fn what_copies_share_is_held_once() {
    let data = data(LAYERS, PROMPT, 5);
    let more = super::data(LAYERS, PROMPT + 10, 6);
    let cache = prompted(&Plan::full(LAYERS), &data);
    let one = cache.kv_bytes();
    let mut copies = vec![cache.clone(), cache.clone(), cache];
    assert_eq!(KvCache::holdings(&copies).bytes, one);
    assert_eq!(KvCache::holdings(&copies).shared_bytes, one);
    for copy in &mut copies {
        decode(copy, &more, PROMPT..PROMPT + 10).unwrap();
        assert!(copy.kv_bytes() > one);
    }
    // Each has a slot for the first token and 16 free ones more in each layer.
    let held = KvCache::holdings(&copies);
    assert_eq!(held.shared_bytes, one);
    assert!(
        held.bytes <= one + 3 * LAYERS * 17 * ENTRY,
        "{held:?} beside {one}"
    );
    assert_eq!((held.free_bytes, held.free_run_bytes), (0, 0));
    let estimate = Plan::full(LAYERS)
        .estimate(PROMPT, 10, &copies[0].cost())
        .unwrap();
    assert!(
        held.bytes <= estimate.of_copies(3),
        "{held:?}, {estimate:?}"
    );
    assert!(estimate.of_copies(3) < 2 * one, "{estimate:?} beside {one}");
    // The last one changes what nobody else has any longer.
    let mut last = copies.swap_remove(0);
    drop(copies);
    assert_eq!(last.layers()[0].entries(), PROMPT + 10);
    prefill(
        &mut last,
        &super::data(LAYERS, PROMPT + 40, 7),
        PROMPT + 10..PROMPT + 40,
        30,
    )
    .unwrap();
    assert_eq!(KvCache::holdings([&last]).bytes, last.kv_bytes());
}

#[test]
fn a_cache_without_copies_is_as_large_as_before() {
    let data = data(LAYERS, PROMPT + 40, 5);
    let mut cache = prompted(&Plan::full(LAYERS), &data);
    let after_prompt = cache.kv_bytes();
    // Within the slots that the prompt left free nothing is allocated.
    decode(&mut cache, &data, PROMPT..PROMPT + 10).unwrap();
    assert_eq!(cache.kv_bytes(), after_prompt);
    let held = KvCache::holdings([&cache]);
    assert_eq!((held.bytes, held.shared_bytes), (after_prompt, 0));
    assert_eq!(cache.shape().dtype, DType::F32);
}
