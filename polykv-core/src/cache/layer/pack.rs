//! Moving a layer's keys to other rotary positions.

use super::LayerCache;
use crate::facts::RopeFacts;
use crate::ops::read_error;
use crate::{Error, Result};
use burn::tensor::{DType, Tensor, TensorData};

impl LayerCache {
    /// Moves the entries to consecutive positions, the latest to one before the next token's, which is `shift` below the number
    /// of tokens seen, and the remembered queries down by `moved`.
    pub(in crate::cache) fn pack(&mut self, shift: usize, moved: usize) -> Result<()> {
        if self.is_divided() {
            let mut heads = self.heads.iter_mut();
            heads.try_for_each(|part| part.pack(shift, moved))?;
            self.shift = shift;
            return Ok(());
        }
        let (Some(store), Some(rope)) = (&self.store, &self.facts.rope) else {
            return Err(Error::Failed(format!(
                "layer {} cannot be packed",
                self.layer
            )));
        };
        let positions: Vec<i64> = store.positions().try_into_vec_as().map_err(read_error)?;
        let old = match self.states.behind() {
            Some(behind) => behind.try_into_vec_as::<f32>().map_err(read_error)?,
            None => vec![0.0; positions.len()],
        };
        let entries = store.len();
        let next = self.seen.saturating_sub(shift) as i64;
        let first = next.saturating_sub(entries as i64);
        let mut behind = vec![0.0f32; positions.len()];
        let heads = positions.chunks(entries).zip(behind.chunks_mut(entries));
        for (positions, behind) in heads {
            let mut slots: Vec<(&i64, &mut f32)> = positions.iter().zip(behind).collect();
            slots.sort_unstable_by_key(|(position, _)| **position);
            for (place, (position, behind)) in (first..).zip(slots) {
                *behind = position.saturating_sub(place) as f32;
            }
        }
        let steps: Vec<f64> = behind
            .iter()
            .zip(&old)
            .map(|(new, old)| f64::from(old - new))
            .collect();
        let dims = [self.shape.batch, self.shape.kv_heads, entries];
        let keys = store.keys().cast(DType::F32);
        let keys = turn(keys, rope, &steps, dims).cast(self.shape.dtype);
        let queries = self.queries.latest(self.needs.queries);
        let queries = queries.map(|queries| turn(queries, rope, &[-(moved as f64)], [1, 1, 1]));
        let behind = Tensor::<3>::from_data(TensorData::new(behind, dims), &self.device);
        if let Some(store) = &mut self.store {
            store.set_keys(keys);
        }
        if let Some(queries) = queries {
            self.queries = super::Queries::of(queries);
        }
        self.states.set_behind(behind);
        self.shift = shift;
        Ok(())
    }
}

/// Turns vectors on by so many positions, `steps` of the shape `rows [batch, heads, tokens]`, where 1 stands for all. Elements
/// beyond the pairs stay, and so does the length of every pair.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "of tensors, and of elements of a head"
)]
fn turn(x: Tensor<4>, rope: &RopeFacts, steps: &[f64], rows: [usize; 3]) -> Tensor<4> {
    let pairs = rope.frequencies.len();
    let head_dim = x.dims()[3];
    if pairs == 0 || x.dims()[2] == 0 {
        return x;
    }
    let device = x.device();
    let [a, b, c] = rows;
    let table = |f: fn(f64) -> f64| {
        let angles = steps
            .iter()
            .flat_map(|step| rope.frequencies.iter().map(move |w| f(step * w) as f32));
        let values: Vec<f32> = angles.collect();
        Tensor::<4>::from_data(TensorData::new(values, [a, b, c, pairs]), &device)
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let (first, second) = (
        x.clone().narrow(3, 0, pairs),
        x.clone().narrow(3, pairs, pairs),
    );
    let mut parts = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    if 2 * pairs < head_dim {
        parts.push(x.narrow(3, 2 * pairs, head_dim - 2 * pairs));
    }
    Tensor::cat(parts, 3)
}
