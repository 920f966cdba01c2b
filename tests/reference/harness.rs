//! Runs a cache and the reference side by side.

pub use super::kept::kept;
use super::scores::{FREQUENCIES, HIDDEN, MAGNITUDE, output_weight};
use super::{DIM, HEADS, KV_HEADS, Reference, Token, tokens};
use burn::tensor::{DType, Device, Tensor, TensorData};
use polykv::policy::Params;
use polykv::{KvCache, LayerShape, ModelFacts, Phase, Plan, RopeFacts};

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Case {
    pub plan: Plan,
    pub prompt: usize,
    /// Prompt tokens per call.
    pub chunk: usize,
    pub steps: usize,
    pub seed: u64,
}

/// How a cache differs from the reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    /// Largest absolute difference of attention outputs.
    pub output: f64,
    /// Entries kept by one of the two only, over all steps.
    pub kept: usize,
}

pub struct Inputs {
    pub q: Vec<Token>,
    pub k: Vec<Token>,
    pub v: Vec<Token>,
}

pub fn inputs(case: &Case, layer: usize) -> Inputs {
    let count = case.prompt + case.steps;
    let seed = case.seed * 1000 + layer as u64 * 10;
    Inputs {
        q: tokens(count, HEADS, seed + 1, 2.0),
        k: tokens(count, KV_HEADS, seed + 2, 2.0),
        v: tokens(count, KV_HEADS, seed + 3, 1.0),
    }
}

pub fn shape() -> LayerShape {
    LayerShape {
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        dtype: DType::F32,
    }
}

/// What a model with these layers would tell its cache.
pub fn facts(layers: usize, device: &Device) -> ModelFacts {
    let output = (0..layers).map(|layer| {
        let rows = output_weight(layer).concat();
        let values: Vec<f32> = rows.into_iter().map(|x| x as f32).collect();
        Tensor::from_data(TensorData::new(values, [HIDDEN, HEADS * DIM]), device)
    });
    ModelFacts {
        rope: Some(RopeFacts {
            frequencies: FREQUENCIES.as_slice().into(),
            magnitude: MAGNITUDE,
        }),
        output: output.collect(),
    }
}

/// An empty cache of a model that has told its facts.
pub fn cache(plan: Plan, device: &Device) -> KvCache {
    let layers = plan.layers;
    let mut cache = KvCache::new(plan, shape(), device).unwrap();
    cache.set_facts(&facts(layers, device));
    cache
}

/// Parameters with which a policy acts on a dozen entries; none where its defaults do.
pub fn small(policy: &str) -> Params {
    let text = match policy {
        "snapkv" | "pyramidkv" | "cake" => "{window: 4, kernel: 3}",
        "scissorhands" => "{history: 9, recent: 3}",
        "cam" => "{window: 3, sinks: 2}",
        "lagkv" => "{lag: 3, sinks: 2}",
        "d2o" => "{sinks: 2}",
        "criticalkv" => "{base: {policy: snapkv, window: 4, kernel: 3}}",
        _ => "{}",
    };
    serde_yaml_ng::from_str(text).unwrap()
}

/// `[1, heads, tokens, DIM]`
pub fn tensor(tokens: &[Token], device: &Device) -> Tensor<4> {
    let heads = tokens[0].len();
    let mut values = Vec::with_capacity(heads * tokens.len() * DIM);
    for head in 0..heads {
        values.extend(
            tokens
                .iter()
                .flat_map(|token| token[head].iter().map(|&x| x as f32)),
        );
    }
    Tensor::from_data(
        TensorData::new(values, [1, heads, tokens.len(), DIM]),
        device,
    )
}

/// Runs every layer of the case's plan on `device` and on the reference.
pub fn compare(case: &Case, device: &Device) -> Difference {
    let mut difference = Difference::default();
    let mut cache = cache(case.plan.clone(), device);
    cache.begin_prefill(case.prompt).unwrap();
    for layer in 0..case.plan.layers {
        let data = inputs(case, layer);
        let mut reference = Reference::new(&case.plan, layer, case.prompt);
        for start in (0..case.prompt).step_by(case.chunk) {
            let range = start..case.prompt.min(start + case.chunk);
            let part = |t: &[Token]| tensor(&t[range.clone()], device);
            let output = cache
                .prefill(layer, part(&data.q), part(&data.k), part(&data.v))
                .unwrap();
            let expected: Vec<Token> = range
                .map(|i| reference.step(&data.q[i], &data.k[i], &data.v[i]))
                .collect();
            difference.add_output(output, &expected);
        }
        cache.end_prefill(layer).unwrap();
        reference.evict(Phase::Prefill);
        difference.add_kept(&cache, layer, &reference);
        for i in case.prompt..case.prompt + case.steps {
            let one = |t: &[Token]| tensor(&t[i..=i], device);
            let output = cache
                .decode(layer, one(&data.q), one(&data.k), one(&data.v))
                .unwrap();
            difference.add_output(
                output,
                &[reference.step(&data.q[i], &data.k[i], &data.v[i])],
            );
            reference.evict(Phase::Decode);
            difference.add_kept(&cache, layer, &reference);
        }
    }
    cache.check().unwrap();
    difference
}

impl Difference {
    fn add_output(&mut self, output: Tensor<4>, expected: &[Token]) {
        let found: Vec<f32> = output.try_into_vec_as().unwrap();
        for (i, token) in expected.iter().enumerate() {
            for (head, vector) in token.iter().enumerate() {
                for (d, &wanted) in vector.iter().enumerate() {
                    let at = (head * expected.len() + i) * DIM + d;
                    self.output = self.output.max((f64::from(found[at]) - wanted).abs());
                }
            }
        }
    }

    fn add_kept(&mut self, cache: &KvCache, layer: usize, reference: &Reference) {
        for (found, wanted) in kept(cache, layer).iter().zip(reference.positions()) {
            assert!(
                found.windows(2).all(|pair| pair[0] < pair[1]),
                "an entry is kept twice: {found:?}"
            );
            assert_eq!(found.len(), wanted.len(), "layer {layer}");
            self.kept += found.iter().filter(|p| !wanted.contains(p)).count();
        }
    }
}
