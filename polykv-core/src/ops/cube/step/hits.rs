//! Hits of the latest query in the words of entries and in the sums of their digits.

use super::super::empty;
use super::UNITS;
use crate::ops::hit_note::HitNote;
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// See [`StepOps::note_hits`](crate::ops::kernels::StepOps::note_hits).
pub fn note(
    counts: CubeTensor,
    words: CubeTensor,
    rows: CubeTensor,
    note: HitNote,
) -> (CubeTensor, CubeTensor) {
    let [counts, words, rows] = [counts, words, rows].map(into_contiguous);
    let [batch, kv_heads, group, n] = rows.shape().dims::<4>();
    let [_, _, known, width] = words.shape().dims::<4>();
    let new_counts = empty(&counts, [batch, kv_heads, n], DType::F32);
    let new_words = empty(&counts, [batch, kv_heads, n, width], DType::F32);
    let client = counts.client.clone();
    debug_assert_eq!(counts.shape().dims::<3>(), [batch, kv_heads, known]);
    debug_assert_eq!(words.shape().dims::<4>()[..2], [batch, kv_heads]);
    debug_assert!(known <= n && note.word < width);
    // SAFETY: units beyond the `n · width` words of a head end; the others read their word, if it is one of the `known` entries,
    // and their column of `group` rows.
    unsafe {
        note_kernel::launch_unchecked(
            &client,
            CubeCount::Static(
                (batch * kv_heads) as u32,
                (n * width).div_ceil(UNITS) as u32,
                1,
            ),
            CubeDim::new_1d(UNITS as u32),
            counts.into_tensor_arg(),
            words.into_tensor_arg(),
            rows.into_tensor_arg(),
            new_counts.clone().into_tensor_arg(),
            new_words.clone().into_tensor_arg(),
            note.word,
            note.shift as u32,
            note.bits as u32,
            1.0 / n as f32,
            note.replaces,
            known,
            width,
            n,
            group,
        );
    }
    (new_counts, new_words)
}

/// One unit per word.
#[cube(launch_unchecked)]
fn note_kernel(
    counts: &Tensor<f32>,
    words: &Tensor<f32>,
    rows: &Tensor<f32>,
    new_counts: &mut Tensor<f32>,
    new_words: &mut Tensor<f32>,
    word: usize,
    shift: u32,
    bits: u32,
    least: f32,
    #[comptime] replaces: bool,
    known: usize,
    width: usize,
    n: usize,
    group: usize,
) {
    let head = CUBE_POS_X as usize;
    let i = CUBE_POS_Y as usize * UNITS + UNIT_POS_X as usize;
    if i >= n * width {
        terminate!();
    }
    let (entry, own) = (i / width, i % width);
    new_words[head * n * width + i] = word_so_far(
        words, rows, head, entry, own, word, shift, bits, least, replaces, known, width, n, group,
    );
    if own == 0 {
        new_counts[head * n + entry] = count_so_far(
            counts, words, rows, head, entry, word, shift, bits, least, replaces, known, width, n,
            group,
        );
    }
}

/// How many query heads pay a head's entry at least so much.
#[cube]
fn hits(rows: &Tensor<f32>, head: usize, entry: usize, least: f32, n: usize, group: usize) -> f32 {
    let mut count = 0.0f32;
    for g in 0..group {
        if rows[(head * group + g) * n + entry] >= least {
            count += 1.0f32;
        }
    }
    count
}

/// A word of a head's entry, 0 if it is none of the `known` ones.
#[cube]
fn word_before(
    words: &Tensor<f32>,
    head: usize,
    entry: usize,
    word: usize,
    known: usize,
    width: usize,
) -> f32 {
    let mut before = 0.0f32;
    if entry < known {
        before += words[(head * known + entry) * width + word];
    }
    before
}

/// The digit that the latest query takes the place of.
#[cube]
fn replaced(before: f32, shift: u32, bits: u32, #[comptime] replaces: bool) -> f32 {
    let mut digit = 0u32;
    if replaces {
        digit += (u32::cast_from(before) >> shift) & ((1u32 << bits) - 1u32);
    }
    f32::cast_from(digit)
}

/// The sum of the digits of a head's entry with those of the latest query.
#[cube]
pub fn count_so_far(
    counts: &Tensor<f32>,
    words: &Tensor<f32>,
    rows: &Tensor<f32>,
    head: usize,
    entry: usize,
    word: usize,
    shift: u32,
    bits: u32,
    least: f32,
    #[comptime] replaces: bool,
    known: usize,
    width: usize,
    n: usize,
    group: usize,
) -> f32 {
    let mut count = hits(rows, head, entry, least, n, group);
    if entry < known {
        count += counts[head * known + entry];
    }
    let before = word_before(words, head, entry, word, known, width);
    count - replaced(before, shift, bits, replaces)
}

/// The word `own` of a head's entry, with the digit of the latest query if it is the one that that goes into.
#[cube]
pub fn word_so_far(
    words: &Tensor<f32>,
    rows: &Tensor<f32>,
    head: usize,
    entry: usize,
    own: usize,
    word: usize,
    shift: u32,
    bits: u32,
    least: f32,
    #[comptime] replaces: bool,
    known: usize,
    width: usize,
    n: usize,
    group: usize,
) -> f32 {
    let before = word_before(words, head, entry, own, known, width);
    let mut after = before;
    if own == word {
        let new = hits(rows, head, entry, least, n, group);
        after += (new - replaced(before, shift, bits, replaces)) * f32::cast_from(1u32 << shift);
    }
    after
}
