mod frequencies;

use crate::config::{LayerConfig, RopeConfig};
use burn::tensor::{Device, Tensor, TensorData};
use frequencies::frequencies;
use polykv_core::{RopeFacts, ops};
use std::ops::Range;
use std::sync::Arc;

/// The rotary position embeddings of a model's layers, in the rotate-half layout of Hugging Face checkpoints: of the
/// elements that are rotated, `i` turns with the one half of them further.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Different embeddings; one without frequencies rotates nothing.
    kinds: Vec<RopeFacts>,
    /// Each layer's place in `kinds`.
    of_layer: Arc<[usize]>,
}

/// The cosines and sines of consecutive positions for every layer of a model.
#[derive(Clone, Debug)]
pub struct RopeTable {
    kinds: Vec<Rotation>,
    of_layer: Arc<[usize]>,
}

/// How one layer rotates queries and keys at consecutive positions, for all rows of a batch or for each of them.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Cosines and sines, `[rows, 1, tokens, pairs]`, where one row stands for all rows of a batch; `None` if nothing is
    /// rotated.
    table: Option<[Tensor<4>; 2]>,
}

impl Rope {
    /// The rotary embeddings of layers.
    pub fn new(layers: &[LayerConfig]) -> Self {
        let mut known: Vec<Option<&RopeConfig>> = Vec::new();
        let mut of_layer = Vec::with_capacity(layers.len());
        for layer in layers {
            let rope = layer.rope.as_ref();
            let place = known.iter().position(|known| *known == rope);
            of_layer.push(place.unwrap_or(known.len()));
            if place.is_none() {
                known.push(rope);
            }
        }
        let facts = |rope: Option<&RopeConfig>| RopeFacts {
            frequencies: rope.map_or(Vec::new(), frequencies).into(),
            magnitude: rope.map_or(1.0, |rope| rope.scaling.magnitude()),
        };
        Self {
            kinds: known.into_iter().map(facts).collect(),
            of_layer: of_layer.into(),
        }
    }

    /// The facts about one layer's rotary embedding that eviction policies can use.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn facts(&self, layer: usize) -> RopeFacts {
        self.kinds[self.of_layer[layer]].clone()
    }

    /// The cosines and sines of `tokens` consecutive positions in each row of a batch, on a device. Row `i` starts at position
    /// `first[i]`.
    pub fn table_of_rows(&self, first: &[usize], tokens: usize, device: &Device) -> RopeTable {
        // One row stands for all that start together.
        let alike = first.windows(2).all(|pair| pair[0] == pair[1]);
        let first = match alike {
            true => &first[..first.len().min(1)],
            false => first,
        };
        let kinds = self.kinds.iter();
        RopeTable {
            kinds: kinds
                .map(|rope| Rotation::new(rope, first, tokens, device))
                .collect(),
            of_layer: self.of_layer.clone(),
        }
    }

    /// The cosines and sines of a range of positions, on a device. They are the same in all rows of a batch.
    pub fn table(&self, positions: Range<usize>, device: &Device) -> RopeTable {
        self.table_of_rows(&[positions.start], positions.len(), device)
    }
}

impl RopeTable {
    /// The rotation of one layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn of(&self, layer: usize) -> &Rotation {
        &self.kinds[self.of_layer[layer]]
    }
}

impl Rotation {
    fn new(rope: &RopeFacts, first: &[usize], tokens: usize, device: &Device) -> Self {
        let pairs = rope.frequencies.len();
        if pairs == 0 {
            return Self { table: None };
        }
        let table = |f: fn(f64) -> f64| {
            let positions = first.iter().flat_map(|&first| first..first + tokens);
            let values: Vec<f32> = positions
                .flat_map(|p| rope.frequencies.iter().map(move |w| f(p as f64 * w)))
                .map(|x| (x * rope.magnitude) as f32)
                .collect();
            let dims = [first.len(), 1, tokens, pairs];
            Tensor::from_data(TensorData::new(values, dims), device)
        };
        Self {
            table: Some([table(f64::cos), table(f64::sin)]),
        }
    }

    /// Cosines and sines `[rows, 1, tokens, head_dim / 2]`, if heads are rotated as a whole.
    pub(super) fn of_whole_heads(&self, head_dim: usize) -> Option<[&Tensor<4>; 2]> {
        let table = self.table.as_ref()?;
        let pairs = table[0].dims()[3];
        (2 * pairs == head_dim).then(|| table.each_ref())
    }

    /// Rotates queries or keys, `[batch, heads, tokens, head_dim]`.
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let Some(table) = &self.table else {
            return x;
        };
        let head_dim = x.dims()[3];
        let rotated = 2 * table[0].dims()[3];
        if rotated < head_dim {
            let rest = x.clone().narrow(3, rotated, head_dim - rotated);
            let turned = self.rotate(x.narrow(3, 0, rotated));
            return Tensor::cat(vec![turned, rest], 3);
        }
        let [cos, sin] = table.clone();
        ops::rotate(x, cos, sin)
    }
}
