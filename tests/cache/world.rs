//! Synthetic models of any shape, and what runs on them.

use crate::common::repeat;
use burn::tensor::{DType, Device, Tensor, TensorData};
use polykv::allocate::Allocators;
use polykv::policy::HeadBudgets;
use polykv::testing::kept;
use polykv::{
    Allocator, Budget, Error, ErrorKind, KvCache, LayerFacts, LayerShape, ModelFacts, Phase, Plan,
    Policy, RopeFacts,
};
use std::ops::Range;
use std::sync::Arc;

/// What queries, keys and values are.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Numbers between ±2.
    Any,
    /// Zeros: every score is a tie.
    Zeros,
    /// All tokens alike.
    Same,
    /// Numbers between ±2, one in 23 of another value.
    With(f32),
}

/// A synthetic model and a prompt.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub shape: LayerShape,
    pub layers: usize,
    pub prompt: usize,
    pub chunk: usize,
    pub steps: usize,
    pub fill: Fill,
    pub seed: u64,
    /// Of the layers with an even index.
    pub window: Option<usize>,
}

/// What is left of a run: outputs of all calls, and entries per layer after the prompt and after every step.
#[derive(Debug)]
pub struct Run {
    pub outputs: Vec<f32>,
    pub lengths: Vec<Vec<usize>>,
    /// Bytes of what the policies remember in the end.
    pub aux_bytes: usize,
}

fn hash(words: [u64; 6]) -> u64 {
    words.iter().fold(0x9E37_79B9_7F4A_7C15, |x: u64, word| {
        let x = (x ^ word).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x ^ (x >> 29)
    })
}

impl World {
    pub fn new(layers: usize, prompt: usize, steps: usize) -> Self {
        Self {
            shape: LayerShape {
                batch: 1,
                heads: 4,
                kv_heads: 2,
                head_dim: 8,
                dtype: DType::F32,
            },
            layers,
            prompt,
            chunk: prompt,
            steps,
            fill: Fill::Any,
            seed: 1,
            window: None,
        }
    }

    /// Queries (0), keys (1) or values (2) of a layer: `[batch, heads, tokens, head_dim]`.
    pub fn part(&self, layer: usize, kind: u64, tokens: Range<usize>) -> Tensor<4> {
        let heads = if kind == 0 {
            self.shape.heads
        } else {
            self.shape.kv_heads
        };
        let dims = [self.shape.batch, heads, tokens.len(), self.shape.head_dim];
        let mut values = Vec::new();
        for row in 0..self.shape.batch * heads {
            for token in tokens.clone() {
                let token = if matches!(self.fill, Fill::Same) {
                    0
                } else {
                    token
                };
                let number = |d: usize| {
                    let words = [
                        self.seed,
                        layer as u64,
                        kind,
                        row as u64,
                        token as u64,
                        d as u64,
                    ];
                    let hash = hash(words);
                    let number = (hash >> 40) as f32 / (1u64 << 22) as f32 - 2.0;
                    match self.fill {
                        Fill::Zeros => 0.0,
                        Fill::With(other) if hash.is_multiple_of(23) => other,
                        _ => number,
                    }
                };
                values.extend((0..self.shape.head_dim).map(number));
            }
        }
        Tensor::from_data(TensorData::new(values, dims), &Device::flex())
    }

    pub fn cache(&self, plan: Plan) -> Result<KvCache, Error> {
        let device = Device::flex();
        let mut cache = KvCache::new(plan, self.shape, &device)?;
        let pairs = self.shape.head_dim / 2;
        let width = self.shape.heads * self.shape.head_dim;
        let mut layer = LayerFacts::default();
        layer.rope = Some(RopeFacts {
            frequencies: (0..pairs).map(|pair| 0.7f64.powi(pair as i32)).collect(),
            magnitude: 1.0,
        });
        layer.output = Some(Tensor::<2>::ones([5, width], &device).into());
        let mut facts = ModelFacts::default();
        facts.layers = vec![layer; self.layers];
        for (facts, window) in facts.layers.iter_mut().zip(self.windows()) {
            facts.window = window;
        }
        cache.set_facts(&facts);
        Ok(cache)
    }

    pub fn windows(&self) -> Vec<Option<usize>> {
        let window = |layer: usize| self.window.filter(|_| layer.is_multiple_of(2));
        (0..self.layers).map(window).collect()
    }

    /// The most entries that a layer holds after `seen` tokens.
    pub fn most(&self, layer: usize, seen: usize) -> usize {
        let window = self.windows()[layer].unwrap_or(usize::MAX);
        seen.min(window.saturating_sub(1).max(1))
    }

    pub fn run(&self, plan: Plan) -> Result<Run, Error> {
        let mut cache = self.cache(plan)?;
        let mut outputs = Vec::new();
        let mut take = |output: Tensor<4>| outputs.extend(output.try_into_vec_as::<f32>().unwrap());
        let mut prompt = cache.prompt(self.prompt)?;
        for layer in 0..self.layers {
            for start in (0..self.prompt).step_by(self.chunk) {
                let range = start..self.prompt.min(start + self.chunk);
                let [q, k, v] = [0, 1, 2].map(|kind| self.part(layer, kind, range.clone()));
                take(prompt.attend(layer, q, k, v)?);
            }
            let [q, k, v] = [0, 1, 2].map(|kind| self.part(layer, kind, 0..self.prompt));
            repeat(&mut prompt, layer, [q, k, v])?;
            prompt.end_layer(layer)?;
        }
        prompt.finish()?;
        let mut lengths = vec![self.lengths(&cache)];
        for i in self.prompt..self.prompt + self.steps {
            for layer in 0..self.layers {
                let [q, k, v] = [0, 1, 2].map(|kind| self.part(layer, kind, i..i + 1));
                take(cache.decode(layer, q, k, v)?);
            }
            lengths.push(self.lengths(&cache));
        }
        let aux_bytes = cache.report()?.aux_bytes;
        Ok(Run {
            outputs,
            lengths,
            aux_bytes,
        })
    }

    /// Entries per layer, the same in all rows and, on average, in all heads, each once and of what was seen.
    fn lengths(&self, cache: &KvCache) -> Vec<usize> {
        let length = |layer| {
            let heads = kept(cache, layer).unwrap();
            let last = heads.iter().flatten().max();
            assert!(last.is_some_and(|&last| last < cache.seen()));
            assert_eq!(heads.len(), self.shape.batch * self.shape.kv_heads);
            let divided = cache.layers()[layer].head_entries();
            let even = divided.iter().all(|held| held == &divided[0]);
            assert!(!even || heads.iter().all(|head| head.len() == divided[0]));
            let rows = heads.chunks(self.shape.kv_heads);
            let sums = rows.map(|row| row.iter().map(Vec::len).sum::<usize>());
            sums.max().unwrap().div_ceil(self.shape.kv_heads)
        };
        (0..self.layers).map(length).collect()
    }
}

/// None, and every allocator that a plan can name.
pub fn allocators() -> Vec<Option<Arc<dyn Allocator>>> {
    let allocators = Allocators::default();
    let online = allocators.iter().filter(|own| own.basis().is_online());
    std::iter::once(None)
        .chain(online.cloned().map(Some))
        .collect()
}

/// The policy in all layers; none where the allocator or the number of heads does not go with it.
pub fn plan(
    world: &World,
    policy: &Arc<dyn Policy>,
    online: &Option<Arc<dyn Allocator>>,
    budget: Budget,
    phases: &[Phase],
) -> Option<Plan> {
    if let HeadBudgets::Shares(shares) = policy.heads()
        && shares.len() != world.shape.kv_heads
    {
        return None;
    }
    let mut plan = Plan::uniform(world.layers, policy.clone(), budget, phases);
    plan.online = online.clone();
    match plan.check() {
        Ok(()) => Some(plan),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Plan, "{error}");
            assert!(!policy.can_cut_in_steps() && online.is_some(), "{error}");
            None
        }
    }
}

pub fn phases(index: usize) -> &'static [Phase] {
    [&Phase::BOTH[..1], &Phase::BOTH[1..], &Phase::BOTH][index]
}

/// How many entries a layer of a budget of its own holds after each call.
pub fn expected(world: &World, budget: usize, phases: &[Phase]) -> Vec<usize> {
    let cut = |held: usize, phase| match phases.contains(&phase) {
        true => held.min(budget),
        false => held,
    };
    let mut all = vec![cut(world.prompt, Phase::Prefill)];
    for _ in 0..world.steps {
        all.push(cut(all[all.len() - 1] + 1, Phase::Decode));
    }
    all
}
