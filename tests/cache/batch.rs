//! Sequences side by side are sequences alone.

use super::variants::variants;
use super::{BOTH, case};
use crate::reference::harness::{Case, facts, inputs, shape, tensor};
use burn::tensor::{Device, Tensor};
use polykv::{Budget, KvCache, LayerShape, Plan};
use std::ops::Range;

const PROMPT: usize = 45;
const STEPS: usize = 20;

/// Runs sequences of these seeds in one cache; the outputs `[batch, heads, tokens, head_dim]` in order of time.
fn run(plan: &Plan, seeds: &[u64]) -> (KvCache, Vec<Tensor<4>>) {
    let device = Device::flex();
    let all: Vec<_> = seeds
        .iter()
        .map(|&seed| {
            let case = Case {
                seed,
                ..case(plan.clone())
            };
            inputs(&case, 0)
        })
        .collect();
    let part = |range: Range<usize>| {
        let stack = |of: &dyn Fn(usize) -> Tensor<4>| {
            Tensor::cat((0..all.len()).map(of).collect::<Vec<_>>(), 0)
        };
        [
            stack(&|i| tensor(&all[i].q[range.clone()], &device)),
            stack(&|i| tensor(&all[i].k[range.clone()], &device)),
            stack(&|i| tensor(&all[i].v[range.clone()], &device)),
        ]
    };
    let shape = LayerShape {
        batch: seeds.len(),
        ..shape()
    };
    let mut cache = KvCache::new(plan.clone(), shape, &device).unwrap();
    cache.set_facts(&facts(1, &device));
    cache.begin_prefill(PROMPT).unwrap();
    let [q, k, v] = part(0..PROMPT);
    let mut outputs = vec![cache.prefill(0, q, k, v).unwrap()];
    cache.end_prefill(0).unwrap();
    for i in PROMPT..PROMPT + STEPS {
        let [q, k, v] = part(i..i + 1);
        outputs.push(cache.decode(0, q, k, v).unwrap());
    }
    cache.check().unwrap();
    (cache, outputs)
}

/// Kept positions per sequence and head, ascending.
fn kept_of_all(cache: &KvCache) -> Vec<Vec<i64>> {
    let positions = cache.layers()[0].positions().unwrap();
    let [_, _, entries] = positions.dims();
    let values: Vec<i64> = positions.try_into_vec_as().unwrap();
    let sorted = |head: &[i64]| {
        let mut head = head.to_vec();
        head.sort_unstable();
        head
    };
    values.chunks_exact(entries).map(sorted).collect()
}

#[test]
fn every_policy_treats_each_sequence_of_a_batch_alone() {
    for (name, params) in variants() {
        let plan = Plan::uniform(1, name, params, Budget::Tokens(12), &BOTH);
        let (together, found) = run(&plan, &[3, 4]);
        let mut sets = Vec::new();
        for (sequence, seed) in [3, 4].into_iter().enumerate() {
            let (alone, wanted) = run(&plan, &[seed]);
            for (found, wanted) in found.iter().zip(wanted) {
                let own = found.clone().narrow(0, sequence, 1);
                let worst: f32 = (own - wanted).abs().max().into_scalar();
                assert!(worst < 1e-5, "{}: {worst}", plan.to_yaml());
            }
            sets.extend(kept_of_all(&alone));
        }
        assert_eq!(kept_of_all(&together), sets, "{}", plan.to_yaml());
    }
}
