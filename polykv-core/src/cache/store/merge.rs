//! What merging policies add to entries.

use super::{Store, Vectors};
use crate::ops;
use crate::policy::Merge;
use burn::tensor::{DType, Int, Tensor, s};

impl Store {
    /// Adds to keys and values, in place while nobody else holds the tensors; to the entries in `merge.slots`, or to the
    /// first ones.
    pub fn merge(&mut self, merge: Merge) {
        self.own();
        let slots = merge.slots.as_ref();
        match &mut self.vectors {
            Vectors::Floats([keys, values]) => {
                if let Some(delta) = merge.keys {
                    add(keys, slots, delta);
                }
                add(values, slots, merge.values);
            }
            Vectors::Codes(coded) => coded.add(slots, merge.keys, merge.values),
        }
    }
}

/// Adds to the vectors in `slots`, or to the first ones.
fn add(all: &mut Tensor<4>, slots: Option<&Tensor<3, Int>>, delta: Tensor<4>) {
    let count = delta.dims()[2];
    let dtype = all.dtype();
    let old = match slots {
        Some(slots) => ops::take(all.clone(), slots.clone()),
        None => all.clone().narrow(2, 0, count),
    };
    let sum = old.cast(DType::F32).add(delta).cast(dtype);
    all.inplace(|t| match slots {
        Some(slots) => ops::put(t, slots.clone(), sum),
        None => t.slice_assign(s![.., .., 0..count, ..], sum),
    });
}
