//! Weights that are no numbers, or that the format they are stored in cannot hold: one pass over the data at loading.

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

/// Bytes that a thread looks at in one go.
const PIECE: usize = 1 << 20;

/// The smallest magnitude that becomes infinite in a format, rounding included, as the bits of an f32.
fn limit(stored: DType) -> u32 {
    match stored {
        // Half way between the largest f16, 65504, and the next power of two.
        DType::F16 => 65_520f32.to_bits(),
        // The same for bf16, whose bits are the upper half of an f32.
        DType::BF16 => 0x7f7f_8000,
        _ => f32::INFINITY.to_bits(),
    }
}

/// The first value that is not finite once it is stored as `stored`: its place in row-major order and what the file
/// says. Data of other types than f32, f16 and bf16 are not looked at.
pub(super) fn first_lost(data: &TensorData, stored: DType) -> Option<(usize, f32)> {
    let bytes: &[u8] = data.bytes();
    let limit = limit(stored);
    match data.dtype() {
        DType::F32 => search(bytes, limit, f32::from_ne_bytes),
        DType::F16 => search(bytes, limit, |b| f16::from_ne_bytes(b).to_f32()),
        DType::BF16 => search(bytes, limit, |b| bf16::from_ne_bytes(b).to_f32()),
        _ => None,
    }
}

fn search<const N: usize>(
    bytes: &[u8],
    limit: u32,
    value: impl Fn([u8; N]) -> f32 + Sync,
) -> Option<(usize, f32)> {
    let magnitude = |b: &[u8; N]| value(*b).to_bits() & 0x7fff_ffff;
    // A maximum, not a search, is what the compiler turns into vector instructions; NaN is above all of them.
    let largest = |piece: &[u8]| values(piece).iter().map(magnitude).fold(0, u32::max);
    let pieces = bytes.par_chunks(PIECE).enumerate();
    let (index, piece) = pieces.find_first(|(_, piece)| largest(piece) >= limit)?;
    let at = values(piece).iter().position(|b| magnitude(b) >= limit)?;
    let before = index.saturating_mul(PIECE.checked_div(N)?);
    Some((before.saturating_add(at), value(*values(piece).get(at)?)))
}

fn values<const N: usize>(piece: &[u8]) -> &[[u8; N]] {
    piece.as_chunks().0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(values: &[f32], stored: DType) -> Option<(usize, f32)> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        first_lost(&data, stored)
    }

    #[test]
    fn limits_are_those_of_the_conversion() {
        for (stored, largest) in [
            (DType::F16, 65_519.996f32),
            (DType::BF16, f32::from_bits(0x7f7f_7fff)),
            (DType::F32, f32::MAX),
        ] {
            assert_eq!(lost(&[1.0, -largest, largest], stored), None);
            let next = f32::from_bits(largest.to_bits() + 1);
            assert_eq!(lost(&[1.0, -next], stored), Some((1, -next)));
            let converted = |x: f32| {
                let data = TensorData::new(vec![x], [1]).convert_dtype(stored);
                data.iter::<f32>().next().unwrap()
            };
            assert!(converted(largest).is_finite());
            assert!(stored == DType::F32 || converted(next).is_infinite());
        }
    }

    #[test]
    fn every_source_format_is_searched_beyond_the_first_piece() {
        let count = PIECE + 10;
        for source in [DType::F32, DType::F16, DType::BF16] {
            let mut values = vec![1.5f32; count];
            let data = TensorData::new(values.clone(), [count]).convert_dtype(source);
            assert_eq!(first_lost(&data, DType::F32), None);
            values[PIECE + 3] = f32::NEG_INFINITY;
            values[PIECE + 4] = f32::NAN;
            let data = TensorData::new(values, [count]).convert_dtype(source);
            let found = first_lost(&data, DType::F32);
            assert_eq!(found, Some((PIECE + 3, f32::NEG_INFINITY)), "{source:?}");
        }
        let (at, value) = lost(&[0.0, f32::NAN], DType::F32).unwrap();
        assert!(at == 1 && value.is_nan());
    }
}
