//! The eviction of one entry of every head while decoding, and what comes with it, in one launch.

mod kernels;

use super::super::choice::{UNITS, spans};
use super::super::{dense, empty, writable};
use crate::ops::hit_note::HitNote;
use crate::ops::kernels::{Counts, ScoresOf};
use crate::ops::protect::Guard;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use kernels::{evict_kernel, evict_noted_kernel, evict_summed_kernel};

/// What every eviction reads and writes.
pub struct Step {
    keys: CubeTensor,
    values: CubeTensor,
    positions: CubeTensor,
    key: CubeTensor,
    value: CubeTensor,
    position: usize,
    guard: Guard,
    before: Option<CubeTensor>,
    victim: CubeTensor,
    nans: CubeTensor,
}

impl Step {
    pub fn new(
        entries: [CubeTensor; 3],
        new: [CubeTensor; 2],
        position: usize,
        guard: Guard,
        before: Counts<CubeBackend>,
    ) -> Self {
        let [keys, values, positions] = entries.map(writable);
        let [key, value] = new.map(into_contiguous);
        let [batch, kv_heads, _, dim] = keys.shape().dims::<4>();
        debug_assert_eq!(keys.shape(), values.shape());
        debug_assert_eq!(keys.dtype, values.dtype);
        debug_assert_eq!(positions.shape().dims::<3>(), keys.shape().dims::<4>()[..3]);
        debug_assert_eq!(key.shape().num_elements(), batch * kv_heads * dim);
        debug_assert_eq!(value.shape().num_elements(), batch * kv_heads * dim);
        Self {
            victim: empty(&keys, [batch, kv_heads, 1], positions.dtype),
            nans: empty(&keys, [batch, kv_heads], DType::F32),
            before: before.tensor(),
            keys,
            values,
            positions,
            key,
            value,
            position,
            guard,
        }
    }

    fn cubes(&self) -> CubeCount {
        let [batch, kv_heads, ..] = self.keys.shape().dims::<4>();
        CubeCount::Static((batch * kv_heads) as u32, 1, 1)
    }

    fn dtypes(&self) -> [ElemType; 4] {
        let all = [&self.keys, &self.positions, &self.key, &self.value];
        all.map(|tensor| dtype_to_storage_type(tensor.dtype))
    }

    fn dim(&self) -> usize {
        self.keys.shape().dims::<4>()[3]
    }

    /// The first `count` entries by scores that are means `of` the rows `scores [batch, kv_heads, group, count]`.
    pub fn evict(self, scores: CubeTensor, of: ScoresOf, count: usize) -> Evicted {
        let scores = match of {
            // Rows of all heads lie behind each other.
            ScoresOf::Heads => into_contiguous(scores),
            ScoresOf::Group | ScoresOf::Positions => dense(scores),
        };
        let [_, kv_heads, group, _] = scores.shape().dims::<4>();
        debug_assert!((1..=self.keys.shape().dims::<4>()[2]).contains(&count));
        debug_assert!(of == ScoresOf::Positions || scores.shape().dims::<4>()[3] == count);
        let rows = match of {
            ScoresOf::Positions => 0,
            ScoresOf::Group => group,
            ScoresOf::Heads => kv_heads * group,
        };
        let client = self.keys.client.clone();
        // SAFETY: a cube has rows of a head's `count` scores, or of those of all heads, and the positions of as many entries,
        // whose slots it finds the victim among; it overwrites the elements of that entry below `dim`, through the strides
        // of tensors that nobody else holds.
        unsafe {
            evict_kernel::launch_unchecked(
                &client,
                self.cubes(),
                CubeDim::new_1d(UNITS as u32),
                scores.into_tensor_arg(),
                self.keys.clone().into_tensor_arg(),
                self.values.clone().into_tensor_arg(),
                self.positions.clone().into_tensor_arg(),
                spans(&self.victim, &self.guard),
                self.before.clone().map(CubeTensor::into_buffer_arg).into(),
                self.key.clone().into_tensor_arg(),
                self.value.clone().into_tensor_arg(),
                self.victim.clone().into_tensor_arg(),
                self.nans.clone().into_tensor_arg(),
                rows,
                of == ScoresOf::Heads,
                count,
                self.guard.sinks,
                self.guard.recent,
                self.guard.spans.len(),
                self.position,
                self.dim(),
                self.dtypes(),
            );
        }
        self.done()
    }

    /// By sums to which the mean of the latest row is added.
    pub fn evict_summed(
        self,
        sums: CubeTensor,
        rows: CubeTensor,
        seen: usize,
    ) -> (
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
    ) {
        let [sums, rows] = [sums, rows].map(into_contiguous);
        let [batch, kv_heads, group, n] = rows.shape().dims::<4>();
        let scores = empty(&sums, [batch, kv_heads, n], DType::F32);
        let stay = empty(&sums, [batch, kv_heads, n - 1], DType::F32);
        debug_assert_eq!(sums.shape(), stay.shape());
        debug_assert!((1..=self.keys.shape().dims::<4>()[2]).contains(&n));
        let client = self.keys.client.clone();
        // SAFETY: as for `evict`, with `n` scores that each unit writes before it reads them; of sums and rows it reads those
        // of a head's entries, and it writes the sums of all entries but one.
        unsafe {
            evict_summed_kernel::launch_unchecked(
                &client,
                self.cubes(),
                CubeDim::new_1d(UNITS as u32),
                sums.into_tensor_arg(),
                rows.into_tensor_arg(),
                self.keys.clone().into_tensor_arg(),
                self.values.clone().into_tensor_arg(),
                self.positions.clone().into_tensor_arg(),
                spans(&self.victim, &self.guard),
                self.before.clone().map(CubeTensor::into_buffer_arg).into(),
                self.key.clone().into_tensor_arg(),
                self.value.clone().into_tensor_arg(),
                self.victim.clone().into_tensor_arg(),
                self.nans.clone().into_tensor_arg(),
                scores.into_tensor_arg(),
                stay.clone().into_tensor_arg(),
                group,
                seen.min(i32::MAX as usize) as i32,
                n,
                self.guard.sinks,
                self.guard.recent,
                self.guard.spans.len(),
                self.position,
                self.dim(),
                self.dtypes(),
            );
        }
        let (keys, values, positions, victim, nans) = self.done();
        (keys, values, positions, victim, nans, stay)
    }

    /// By counts of hits to which those of the latest row are added.
    pub fn evict_noted(
        self,
        counts: CubeTensor,
        words: CubeTensor,
        rows: CubeTensor,
        note: HitNote,
    ) -> (
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
        CubeTensor,
    ) {
        let [counts, words, rows] = [counts, words, rows].map(into_contiguous);
        let [batch, kv_heads, group, n] = rows.shape().dims::<4>();
        let width = words.shape().dims::<4>()[3];
        let scores = empty(&counts, [batch, kv_heads, n], DType::F32);
        let stay = empty(&counts, [batch, kv_heads, n - 1], DType::F32);
        let words_stay = empty(&counts, [batch, kv_heads, n - 1, width], DType::F32);
        debug_assert_eq!(counts.shape(), stay.shape());
        debug_assert_eq!(words.shape(), words_stay.shape());
        debug_assert!(note.word < width);
        debug_assert!((1..=self.keys.shape().dims::<4>()[2]).contains(&n));
        let client = self.keys.client.clone();
        // SAFETY: as for `evict_summed`, with the words of a head's entries beside their counts.
        unsafe {
            evict_noted_kernel::launch_unchecked(
                &client,
                self.cubes(),
                CubeDim::new_1d(UNITS as u32),
                counts.into_tensor_arg(),
                words.into_tensor_arg(),
                rows.into_tensor_arg(),
                self.keys.clone().into_tensor_arg(),
                self.values.clone().into_tensor_arg(),
                self.positions.clone().into_tensor_arg(),
                spans(&self.victim, &self.guard),
                self.before.clone().map(CubeTensor::into_buffer_arg).into(),
                self.key.clone().into_tensor_arg(),
                self.value.clone().into_tensor_arg(),
                self.victim.clone().into_tensor_arg(),
                self.nans.clone().into_tensor_arg(),
                scores.into_tensor_arg(),
                stay.clone().into_tensor_arg(),
                words_stay.clone().into_tensor_arg(),
                group,
                note.word,
                note.shift as u32,
                note.bits as u32,
                1.0 / n as f32,
                note.replaces,
                width,
                n,
                self.guard.sinks,
                self.guard.recent,
                self.guard.spans.len(),
                self.position,
                self.dim(),
                self.dtypes(),
            );
        }
        let (keys, values, positions, victim, nans) = self.done();
        (keys, values, positions, victim, nans, stay, words_stay)
    }

    fn done(self) -> Evicted {
        (
            self.keys,
            self.values,
            self.positions,
            self.victim,
            self.nans,
        )
    }
}

/// Keys, values, positions, the slot, and how many scores were NaN.
type Evicted = (CubeTensor, CubeTensor, CubeTensor, CubeTensor, CubeTensor);
