//! Counts of hits in a history of queries, to which the latest query has not been added yet.
//!
//! For each entry and each query of the history there is a digit, the number of query heads that paid the entry at least the
//! average of their attention; several digits make a word, an f32.

#[cfg(feature = "cube")]
use super::kernels::{StepOps, kernel};
#[cfg(feature = "cube")]
use super::route::Route;
use burn::tensor::{Tensor, s};
use std::sync::Arc;

/// Where the digit of a query goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitNote {
    /// The word of an entry.
    pub word: usize,
    /// How many bits of it stand before the digit.
    pub shift: usize,
    /// The bits of a digit.
    pub bits: usize,
    /// Whether the query takes the place of an earlier one, whose digit is not counted any more.
    pub replaces: bool,
}

/// Counts of hits and the row that is still to be counted.
#[derive(Clone, Debug)]
pub struct StepHits {
    /// The sums of the digits of all entries but the newest, `[batch, kv_heads, entries - 1]`.
    pub(crate) counts: Tensor<3>,
    /// Their words, `[batch, kv_heads, entries - 1, words]`.
    pub(crate) words: Tensor<4>,
    /// The attention of the latest query, `[batch, kv_heads, group, entries]`.
    pub(crate) latest: Arc<Tensor<4>>,
    pub(crate) note: HitNote,
}

impl StepHits {
    /// Counts and words of all entries, the latest query counted.
    pub(crate) fn noted(self) -> (Tensor<3>, Tensor<4>) {
        let Self {
            counts,
            words,
            latest,
            note,
        } = self;
        let rows = Tensor::clone(&latest);
        #[cfg(feature = "cube")]
        if Route::of(&rows) == Route::Gpu {
            return kernel!(StepOps::note_hits(counts, words, rows, note));
        }
        let dims @ [batch, kv_heads, _, entries] = rows.dims();
        let missing = entries.saturating_sub(counts.dims()[2]);
        let (counts, words) = (
            super::extend(counts, missing),
            super::extend(words, missing),
        );
        let hits = rows.greater_equal_elem(1.0 / dims[3] as f32).float();
        let hits = hits.sum_dim(2).reshape([batch, kv_heads, entries]);
        let column = s![.., .., .., note.word..note.word + 1];
        let word = words.clone().slice(column);
        let word = word.reshape([batch, kv_heads, entries]);
        let power = |bits: usize| (bits as f32).exp2();
        let mut change = hits;
        if note.replaces {
            let left = word.clone().div_scalar(power(note.shift)).floor();
            let above = left.clone().div_scalar(power(note.bits)).floor();
            change = change - (left - above.mul_scalar(power(note.bits)));
        }
        let word = word + change.clone().mul_scalar(power(note.shift));
        let column = s![.., .., .., note.word..note.word + 1];
        let word = word.reshape([batch, kv_heads, entries, 1]);
        (counts + change, words.slice_assign(column, word))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn a_digit_is_replaced_and_counted() {
        let device = Device::flex();
        let floats = |values: &[f32], dims: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values.to_vec(), dims), &device)
        };
        // Two heads in a group, so digits of two bits; three entries, of which the last is new.
        let rows = floats(&[0.5, 0.1, 0.4, 0.2, 0.1, 0.7], [1, 1, 2, 3]);
        let words = floats(
            &[9.0, 0b10_01_00 as f32, 9.0, 0b01_10_11 as f32],
            [1, 1, 2, 2],
        );
        let hits = |replaces| StepHits {
            counts: Tensor::from_data(TensorData::new(vec![3.0f32, 6.0], [1, 1, 2]), &device),
            words: words.clone(),
            latest: Arc::new(rows.clone()),
            note: HitNote {
                word: 1,
                shift: 2,
                bits: 2,
                replaces,
            },
        };
        let values = |(counts, words): (Tensor<3>, Tensor<4>)| {
            let counts: Vec<f32> = counts.try_into_vec_as().unwrap();
            let words: Vec<f32> = words.try_into_vec_as().unwrap();
            (counts, words)
        };
        let (counts, words) = values(hits(true).noted());
        // One head pays the first entry a third or more, none the second, both the third.
        assert_eq!(counts, [3.0, 4.0, 2.0]);
        let wanted = [
            9.0,
            0b10_01_00 as f32,
            9.0,
            0b01_00_11 as f32,
            0.0,
            0b10_00 as f32,
        ];
        assert_eq!(words, wanted);
        let (counts, _) = values(hits(false).noted());
        assert_eq!(counts, [4.0, 6.0, 2.0]);
    }
}
