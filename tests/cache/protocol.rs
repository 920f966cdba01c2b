//! The order of calls and the counts of tokens.

use super::{BOTH, data, decode, length, prefill};
use crate::common::{each_policy, repeat, uniform};
use burn::tensor::{Device, Tensor};
use polykv::testing::{Inputs, cache, kept, max_difference, shape};
use polykv::{Budget, Error, ErrorKind, KvCache, Plan, Prompt, PromptCache, SharedPrefill};

pub fn refused(error: Error, kind: ErrorKind, parts: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

pub fn ones(heads: usize, tokens: usize) -> Tensor<4> {
    Tensor::ones([1, heads, tokens, 16], &Device::flex())
}

pub fn give<C: PromptCache>(
    prompt: &mut Prompt<C>,
    layer: usize,
    tokens: usize,
) -> polykv::Result<()> {
    let [q, k, v] = [6, 2, 2].map(|heads| ones(heads, tokens));
    prompt.attend(layer, q, k, v).map(drop)
}

pub fn step(cache: &mut KvCache, layer: usize) -> polykv::Result<()> {
    let [q, k, v] = [6, 2, 2].map(|heads| ones(heads, 1));
    cache.decode(layer, q, k, v).map(drop)
}

pub fn two_layers() -> KvCache {
    cache(
        uniform(2, "tova", Budget::Tokens(4), &BOTH),
        &Device::flex(),
    )
    .unwrap()
}

fn shared() -> SharedPrefill {
    let plan = uniform(2, "tova", Budget::Tokens(4), &BOTH);
    SharedPrefill::new(vec![plan.clone(), plan], shape(), &Device::flex()).unwrap()
}

/// What is refused of any cache; the prompt goes on as if nothing had been said.
fn wrong_orders<C: PromptCache>(cache: C) -> C {
    let mut prompt = Prompt::new(cache, 8).unwrap();
    let order = |result: polykv::Result<()>, parts: &[&str]| {
        refused(result.unwrap_err(), ErrorKind::Order, parts);
    };
    order(
        give(&mut prompt, 1, 3),
        &["layer is 1", "0, the one at hand"],
    );
    order(give(&mut prompt, 7, 3), &["layer is 7"]);
    order(
        prompt.end_layer(0),
        &["tokens of layer 0 is 0", "8, as announced"],
    );
    give(&mut prompt, 0, 5).unwrap();
    order(
        give(&mut prompt, 0, 4),
        &["tokens of layer 0 is 9", "8, as announced"],
    );
    order(prompt.end_layer(0), &["tokens of layer 0 is 5"]);
    order(prompt.end_layer(1), &["layer is 1"]);
    give(&mut prompt, 0, 3).unwrap();
    order(give(&mut prompt, 0, 1), &["tokens of layer 0 is 9"]);
    assert_eq!((prompt.layer(), prompt.given(), prompt.tokens()), (0, 8, 8));
    prompt.end_layer(0).unwrap();
    order(
        give(&mut prompt, 0, 8),
        &["layer is 0", "1, the one at hand"],
    );
    order(prompt.end_layer(0), &["layer is 0"]);
    give(&mut prompt, 1, 8).unwrap();
    assert!(!prompt.is_complete());
    prompt.end_layer(1).unwrap();
    assert!(prompt.is_complete());
    order(
        give(&mut prompt, 1, 1),
        &["layer is 1", "none: all layers have had the prompt"],
    );
    order(prompt.end_layer(2), &["layer is 2"]);
    prompt.finish().unwrap()
}

#[test]
fn other_orders_and_counts_than_announced_are_refused() {
    let cache = wrong_orders(two_layers());
    assert_eq!(length(&cache, 1), 4);
    let caches = wrong_orders(shared()).into_caches();
    assert_eq!(kept(&caches[1], 1).unwrap(), kept(&cache, 1).unwrap());
    let mut cache = two_layers();
    prefill(&mut cache, &data(2, 9, 1), 0..9, 9).unwrap();
    wrong_orders(cache.untrimmed());
    assert_eq!(length(&cache, 1), 12);
}

#[test]
fn shapes_are_refused_and_change_nothing() {
    let mut cache = two_layers();
    let mut prompt = cache.prompt(2).unwrap();
    let wrong = prompt.attend(0, ones(6, 2), ones(3, 2), ones(2, 2));
    refused(
        wrong.unwrap_err(),
        ErrorKind::Shape,
        &["shape of k is [1, 3, 2, 16]"],
    );
    let wrong = prompt.attend(0, ones(6, 2), ones(2, 2), ones(2, 1));
    refused(wrong.unwrap_err(), ErrorKind::Shape, &["shape of v"]);
    let wrong = give(&mut prompt, 0, 0);
    refused(wrong.unwrap_err(), ErrorKind::Shape, &["no empty axis"]);
    assert_eq!(prompt.given(), 0);
    for layer in 0..2 {
        give(&mut prompt, layer, 2).unwrap();
        prompt.end_layer(layer).unwrap();
    }
    prompt.finish().unwrap();
    refused(
        step(&mut cache, 2).unwrap_err(),
        ErrorKind::Shape,
        &["layer is 2; allowed: 0 to 1"],
    );
    let wrong = cache.decode(0, ones(6, 2), ones(2, 2), ones(2, 2));
    refused(
        wrong.unwrap_err(),
        ErrorKind::Shape,
        &["tokens is 2; allowed: 1"],
    );
    assert_eq!(cache.layers()[0].seen(), 2);
}

#[test]
fn an_empty_prompt_is_refused_and_decoding_needs_one() {
    refused(
        two_layers().prompt(0).unwrap_err(),
        ErrorKind::Content,
        &["length is 0 tokens; allowed: at least 1"],
    );
    refused(
        step(&mut two_layers(), 0).unwrap_err(),
        ErrorKind::Order,
        &["tokens before any prompt", "KvCache::prompt first"],
    );
}

#[test]
fn a_prompt_ends_after_its_last_layer_only() {
    let mut cache = two_layers();
    let mut prompt = cache.prompt(8).unwrap();
    give(&mut prompt, 0, 8).unwrap();
    prompt.end_layer(0).unwrap();
    refused(
        prompt.finish().unwrap_err(),
        ErrorKind::Order,
        &["end is after 1", "after 2 layers"],
    );
    // The prompt is gone: the cache is within it until it is cleared.
    refused(
        step(&mut cache, 0).unwrap_err(),
        ErrorKind::Order,
        &["decode within a prompt of 8"],
    );
    refused(
        cache.prompt(3).unwrap_err(),
        ErrorKind::Order,
        &["within a prompt of 8"],
    );
    cache.clear();
    prefill(&mut cache, &data(2, 9, 1), 0..9, 4).unwrap();
    step(&mut cache, 0).unwrap();
}

#[test]
fn a_prompt_that_is_refused_leaves_the_cache_as_it_was() {
    let mut cache = cache(
        uniform(2, "snapkv", Budget::Ratio(0.5), &BOTH),
        &Device::flex(),
    )
    .unwrap();
    refused(
        cache.prompt(20).unwrap_err(),
        ErrorKind::Budget,
        &["is 10; allowed: at least 32"],
    );
    prefill(&mut cache, &data(2, 80, 1), 0..80, 80).unwrap();
    assert_eq!(length(&cache, 0), 40);
}

#[test]
fn layers_that_stand_apart_take_no_prompt() {
    let mut cache = two_layers();
    prefill(&mut cache, &data(2, 9, 1), 0..9, 9).unwrap();
    step(&mut cache, 0).unwrap();
    refused(
        cache.prompt(3).unwrap_err(),
        ErrorKind::Order,
        &["layer 1 is after 9 tokens; allowed: after 10"],
    );
    step(&mut cache, 1).unwrap();
    prefill(&mut cache, &data(2, 3, 2), 0..3, 3).unwrap();
    assert_eq!(cache.seen(), 13);
}

#[test]
fn a_shared_prompt_is_the_only_one() {
    let (shared, _) = prefill(shared(), &data(2, 9, 1), 0..9, 9).unwrap();
    refused(
        Prompt::new(shared, 3).unwrap_err(),
        ErrorKind::Order,
        &["prompts is 2; allowed: one"],
    );
}

/// A scheduler holds a prompt and continues it between the tokens of another sequence.
#[test]
fn a_prompt_can_wait_while_others_decode() {
    let (tokens, steps) = (45, 12);
    for policy in each_policy() {
        let plan = Plan::uniform(2, policy, Budget::Tokens(14), &BOTH);
        let (mine, other) = (data(2, tokens + steps, 5), data(2, tokens + steps, 6));
        let new = || cache(plan.clone(), &Device::flex()).unwrap();
        let alone = |data: &[Inputs]| {
            let (mut cache, mut outputs) = prefill(new(), data, 0..tokens, 15).unwrap();
            outputs.extend(decode(&mut cache, data, tokens..tokens + steps).unwrap());
            (cache, outputs)
        };
        let mut second = new();
        let mut found_other = prefill(&mut second, &other, 0..tokens, 15).unwrap().1;
        let mut waiting = vec![Prompt::new(new(), tokens).unwrap()];
        let mut found = Vec::new();
        let mut next = tokens;
        for (layer, inputs) in mine.iter().enumerate() {
            for start in (0..tokens).step_by(15) {
                let mut prompt = waiting.pop().unwrap();
                let [q, k, v] = inputs.part(start..start + 15, &Device::flex());
                let output = prompt.attend(layer, q, k, v).unwrap();
                found.extend(output.try_into_vec_as::<f32>().unwrap());
                if prompt.given() == tokens {
                    let parts = inputs.part(0..tokens, &Device::flex());
                    repeat(&mut prompt, layer, parts).unwrap();
                    prompt.end_layer(layer).unwrap();
                }
                waiting.push(prompt);
                found_other.extend(decode(&mut second, &other, next..next + 2).unwrap());
                next += 2;
            }
        }
        let mut first = waiting.pop().unwrap().finish().unwrap();
        found.extend(decode(&mut first, &mine, tokens..tokens + steps).unwrap());
        for (cache, found, data) in [(first, found, mine), (second, found_other, other)] {
            let (wanted_cache, wanted) = alone(&data);
            assert_eq!(max_difference(&found, &wanted), 0.0, "{plan:?}");
            for layer in 0..2 {
                assert_eq!(
                    kept(&cache, layer).unwrap(),
                    kept(&wanted_cache, layer).unwrap()
                );
            }
        }
    }
}
