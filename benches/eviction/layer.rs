//! One layer: its attention through a cache, and its products.

use crate::{CHUNK, DIM, HEADS, HIDDEN, INNER, KV_HEADS, random};
use burn::tensor::{Device, Tensor};
use polykv::ops::Weight;
use polykv::{KvCache, ops};
use std::hint::black_box;

/// Inputs of a layer for a prompt and the tokens after it.
pub struct Layer {
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    x: Tensor<2>,
    gate: Weight,
    up: Weight,
    down: Weight,
    projections: [Weight; 4],
}

impl Layer {
    pub fn new(tokens: usize, device: &Device) -> Self {
        let weight = |out, input| Weight::Dense(random([out, input], device).mul_scalar(0.02));
        Self {
            q: random([1, HEADS, tokens, DIM], device).mul_scalar(2.0),
            k: random([1, KV_HEADS, tokens, DIM], device).mul_scalar(2.0),
            v: random([1, KV_HEADS, tokens, DIM], device),
            x: random([tokens, HIDDEN], device),
            gate: weight(INNER, HIDDEN),
            up: weight(INNER, HIDDEN),
            down: weight(HIDDEN, INNER),
            projections: [
                weight(HEADS * DIM, HIDDEN),
                weight(KV_HEADS * DIM, HIDDEN),
                weight(KV_HEADS * DIM, HIDDEN),
                weight(HIDDEN, HEADS * DIM),
            ],
        }
    }

    pub fn mlp(&self, first: usize, count: usize) {
        let x = self.x.clone().narrow(0, first, count);
        let [gate, up] = ops::linears(x, [&self.gate, &self.up]);
        black_box(ops::linear(ops::swiglu(gate, up), &self.down));
    }

    pub fn project(&self, first: usize) {
        for weight in &self.projections {
            let x = self.x.clone().narrow(0, first, 1);
            black_box(ops::linear(x, weight));
        }
    }

    pub fn part(&self, first: usize, count: usize) -> [Tensor<4>; 3] {
        [&self.q, &self.k, &self.v].map(|x| x.clone().narrow(2, first, count))
    }

    /// A prompt of `tokens`, with room for as many tokens more as `room`.
    pub fn prefill(&self, cache: &mut KvCache, tokens: usize, room: usize) {
        let mut prompt = cache.prompt(tokens).expect("a valid plan");
        for first in (0..tokens).step_by(CHUNK) {
            let [q, k, v] = self.part(first, CHUNK.min(tokens - first));
            black_box(prompt.attend(0, q, k, v).expect("shapes match"));
        }
        if prompt.layers_to_repeat() > 0 {
            let [q, k, v] = self.part(0, CHUNK.min(tokens));
            black_box(prompt.repeat(0, q, k, v).expect("shapes match"));
        }
        prompt.end_layer(0).expect("no score is NaN");
        prompt.finish().expect("no score is NaN");
        cache.reserve(room);
    }
}
