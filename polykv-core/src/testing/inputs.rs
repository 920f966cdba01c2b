//! A synthetic model: the shape of its layers, its facts, and seeded tokens.

use crate::facts::{LayerFacts, ModelFacts, RopeFacts};
use crate::{KvCache, LayerShape, Plan, Result};
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::ops::Range;

/// The number of query heads.
pub const HEADS: usize = 6;
/// The number of heads of keys and values.
pub const KV_HEADS: usize = 2;
/// The number of query heads per KV head.
pub const GROUP: usize = HEADS / KV_HEADS;
/// The number of elements of a head's query, key or value.
pub const DIM: usize = 16;
/// The number of elements of a hidden state.
pub const HIDDEN: usize = 10;

/// What the attention of the synthetic model's layers is beside causal. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    /// The window of each layer, see [`LayerFacts::window`]; none for layers beyond the list's end.
    pub layers: Vec<Option<usize>>,
    /// The soft-cap, see [`ModelFacts::softcap`].
    pub softcap: Option<f64>,
}

impl Windows {
    /// The window of a layer.
    pub fn of(&self, layer: usize) -> Option<usize> {
        self.layers.get(layer).copied().flatten()
    }

    /// These facts with the windows and the soft-cap.
    #[must_use]
    pub fn in_facts(&self, mut facts: ModelFacts) -> ModelFacts {
        for (layer, facts) in facts.layers.iter_mut().enumerate() {
            facts.window = self.of(layer);
        }
        facts.softcap = self.softcap;
        facts
    }
}

const FREQUENCIES: [f64; DIM / 2] = [1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-9];

/// The queries, keys or values of one token, `[heads][DIM]`.
pub type Token = Vec<Vec<f64>>;

/// Queries, keys and values of one layer, token by token.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The queries, `[tokens][HEADS][DIM]`.
    pub q: Vec<Token>,
    /// The keys, `[tokens][KV_HEADS][DIM]`.
    pub k: Vec<Token>,
    /// The values, `[tokens][KV_HEADS][DIM]`.
    pub v: Vec<Token>,
}

impl Inputs {
    /// Numbers for `count` tokens that differ by seed and layer.
    pub fn seeded(count: usize, seed: u64, layer: usize) -> Self {
        let seed = seed * 1000 + layer as u64 * 10;
        Self {
            q: tokens(count, HEADS, seed + 1, 2.0),
            k: tokens(count, KV_HEADS, seed + 2, 2.0),
            v: tokens(count, KV_HEADS, seed + 3, 1.0),
        }
    }

    /// The queries, keys and values of a range of tokens as tensors, `[1, heads, tokens, DIM]` each.
    pub fn part(&self, range: Range<usize>, device: &Device) -> [Tensor<4>; 3] {
        [&self.q, &self.k, &self.v].map(|all| tensor(&all[range.clone()], device))
    }
}

/// Seeded numbers, `[count][heads][DIM]`, uniformly distributed between −`scale` and `scale`.
pub fn tokens(count: usize, heads: usize, seed: u64, scale: f64) -> Vec<Token> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    let mut vector = || (0..DIM).map(|_| next() * scale).collect();
    (0..count)
        .map(|_| (0..heads).map(|_| vector()).collect())
        .collect()
}

/// Tokens as a tensor, `[1, heads, tokens, DIM]`.
pub fn tensor(tokens: &[Token], device: &Device) -> Tensor<4> {
    let heads = tokens.first().map_or(0, Vec::len);
    let head = |head: usize| tokens.iter().flat_map(move |token| token[head].iter());
    let values: Vec<f32> = (0..heads).flat_map(head).map(|&x| x as f32).collect();
    let dims = [1, heads, tokens.len(), DIM];
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// The shape of the layers of the synthetic model, with a batch of one row in f32.
pub fn shape() -> LayerShape {
    LayerShape {
        batch: 1,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        dtype: DType::F32,
    }
}

/// The rotary embedding of the synthetic model.
pub fn rope() -> RopeFacts {
    RopeFacts {
        frequencies: FREQUENCIES.as_slice().into(),
        magnitude: 1.25,
    }
}

/// The weight of the output projection of a layer, `[HIDDEN][HEADS * DIM]`.
pub fn output_weight(layer: usize) -> Vec<Vec<f64>> {
    let rows = tokens(HIDDEN, HEADS, 77 + layer as u64, 1.0);
    rows.into_iter().map(|row| row.concat()).collect()
}

/// The facts of the synthetic model with this number of layers.
pub fn facts(layers: usize, device: &Device) -> ModelFacts {
    let layer = |layer| {
        let rows = output_weight(layer).concat();
        let values: Vec<f32> = rows.into_iter().map(|x| x as f32).collect();
        let values = TensorData::new(values, [HIDDEN, HEADS * DIM]);
        LayerFacts {
            rope: Some(rope()),
            output: Some(Tensor::<2>::from_data(values, device).into()),
            ..LayerFacts::default()
        }
    };
    ModelFacts {
        layers: (0..layers).map(layer).collect(),
        ..ModelFacts::default()
    }
}

/// An empty cache of the synthetic model, with its facts set.
///
/// # Errors
/// What [`KvCache::new`] refuses.
pub fn cache(plan: Plan, device: &Device) -> Result<KvCache> {
    let layers = plan.layers.len();
    let mut cache = KvCache::new(plan, shape(), device)?;
    cache.set_facts(&facts(layers, device));
    Ok(cache)
}
