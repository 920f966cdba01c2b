//! The paper's signals against attention in f64 on the host, over what a plan that compresses one layer really keeps.

use super::{BUDGET, candidates, example, measure, model, near, one_layer};
use burn::tensor::{Device, Tensor, TensorData};
use polykv::models::calibrate::Example;
use polykv::models::{LoadedModel, PrefillOptions};
use polykv::testing::kept;
use polykv::{KvCache, Phase};
use polykv_core::calibrate::Candidate;

/// `[heads][tokens][head_dim]`
type Heads = Vec<Vec<Vec<f64>>>;

fn host(tensor: Tensor<4>) -> Heads {
    let [_, heads, tokens, dim] = tensor.dims();
    let values: Vec<f32> = tensor.try_into_vec_as().unwrap();
    let vector = |at: usize| values[at * dim..][..dim].iter().map(|&x| f64::from(x));
    (0..heads)
        .map(|head| {
            (0..tokens)
                .map(|i| vector(head * tokens + i).collect())
                .collect()
        })
        .collect()
}

/// One layer under FullKV: all tokens of prompt and continuation.
struct Full {
    q: Heads,
    k: Heads,
    v: Heads,
}

impl Full {
    fn group(&self) -> usize {
        self.q.len() / self.k.len()
    }

    /// Attention of the query at `token` over these positions.
    fn row(&self, head: usize, token: usize, positions: &[usize]) -> Vec<f64> {
        let (query, keys) = (&self.q[head][token], &self.k[head / self.group()]);
        let score = |&p: &usize| {
            let dot: f64 = query.iter().zip(&keys[p]).map(|(a, b)| a * b).sum();
            (dot / (query.len() as f64).sqrt()).exp()
        };
        let scores: Vec<f64> = positions.iter().map(score).collect();
        let total: f64 = scores.iter().sum();
        scores.into_iter().map(|own| own / total).collect()
    }

    /// `[1, heads, queries, head_dim]`, where `visible` says what a head's query sees.
    fn attended(
        &self,
        queries: &[usize],
        visible: impl Fn(usize, usize) -> Vec<usize>,
    ) -> Tensor<4> {
        let (heads, dim) = (self.q.len(), self.q[0][0].len());
        let mut values = Vec::new();
        for head in 0..heads {
            let kv_head = head / self.group();
            for &token in queries {
                let positions = visible(kv_head, token);
                let row = self.row(head, token, &positions);
                let of = |d: usize| {
                    let parts = positions.iter().zip(&row);
                    parts
                        .map(|(&p, share)| share * self.v[kv_head][p][d])
                        .sum::<f64>() as f32
                };
                values.extend((0..dim).map(of));
            }
        }
        let shape = [1, heads, queries.len(), dim];
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }
}

/// Every layer of one pass over prompt and continuation, without a cache.
fn full(model: &LoadedModel, example: &Example) -> Vec<Full> {
    let own = &model.model;
    let tokens = [&example.prompt, example.run()].concat();
    let all: Vec<usize> = (0..tokens.len()).collect();
    let (mut x, rope) = (own.embed(model.ids(&tokens)), own.rope(0..tokens.len()));
    let mut layers = Vec::new();
    for layer in 0..own.config().layers.len() {
        x = own
            .layer(layer, x, &rope, &mut |q, k, v| {
                let full = Full {
                    q: host(q),
                    k: host(k),
                    v: host(v),
                };
                let attended = full.attended(&all, |_, token| (0..=token).collect());
                layers.push(full);
                Ok(attended)
            })
            .unwrap();
    }
    layers
}

/// What stays from before each token of the continuation, in a run under the plan: `[tokens][kv_heads][entries]`.
fn history(
    model: &LoadedModel,
    example: &Example,
    (phase, layer): (Phase, usize),
    candidate: &Candidate,
) -> Vec<Vec<Vec<usize>>> {
    let own = &model.model;
    let plan = one_layer(phase, layer, candidate);
    let mut cache = KvCache::new(plan, own.cache_shape(1), own.device()).unwrap();
    let prompt = model.ids(&example.prompt);
    own.prefill(prompt, &mut cache, &mut PrefillOptions::default())
        .unwrap();
    let mut before = Vec::new();
    for &token in example.run() {
        before.push(kept(&cache, layer).unwrap());
        match phase {
            Phase::Prefill => {
                let token = model.ids(&[token]);
                own.prefill(
                    token,
                    &mut cache.untrimmed(),
                    &mut PrefillOptions::default(),
                )
                .map(drop)
            }
            Phase::Decode => own.decode(model.ids(&[token]), &mut cache).map(drop),
        }
        .unwrap();
    }
    before
}

/// Mean over the tokens.
fn cosine(a: Tensor<3>, b: Tensor<3>) -> f64 {
    let [_, tokens, hidden] = a.dims();
    let values = |tensor: Tensor<3>| -> Vec<f32> { tensor.try_into_vec_as().unwrap() };
    let (a, b) = (values(a), values(b));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let rows = a.chunks_exact(hidden).zip(b.chunks_exact(hidden));
    let all: f64 = rows
        .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())
        .sum();
    all / tokens as f64
}

#[test]
fn cosines_and_entropies_equal_attention_on_the_host() {
    let (model, example) = (model(), example());
    let found = measure(&model, BUDGET);
    let layers = full(&model, &example);
    let start = example.prompt.len();
    let queries: Vec<usize> = example.queries().map(|query| start + query).collect();
    for (index, layer) in layers.iter().enumerate() {
        let everything = |_: usize, token: usize| (0..=token).collect::<Vec<_>>();
        let mut entropy = 0.0;
        for head in 0..layer.q.len() {
            for &token in &queries {
                let row = layer.row(head, token, &everything(head, token));
                entropy -= row.iter().map(|p| p * p.ln()).sum::<f64>();
            }
        }
        let rows = (layer.q.len() * queries.len()) as f64;
        near(
            found.entropy[index],
            entropy / rows,
            &format!("entropy of layer {index}"),
        );

        let output = |attended| model.model.attention_output(index, attended).unwrap();
        let reference = output(layer.attended(&queries, everything));
        for (phase, own) in [
            (Phase::Prefill, &found.prefill),
            (Phase::Decode, &found.decode),
        ] {
            for (candidate, &own) in candidates().iter().zip(&own.cosine[index]) {
                let before = history(&model, &example, (phase, index), candidate);
                let lost = layer.attended(&queries, |kv_head, token| {
                    let mut positions = before[token - start][kv_head].clone();
                    positions.push(token);
                    positions
                });
                let what = format!(
                    "cosine of {phase}, layer {index}, {}",
                    candidate.policy.key()
                );
                near(own, cosine(reference.clone(), output(lost)), &what);
            }
        }
    }
}
