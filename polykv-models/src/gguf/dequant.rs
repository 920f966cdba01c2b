//! The number formats of ggml and their conversion to f32. All are little-endian, in blocks along a row.

use super::k_quants::{half_at, q4_k_block, q5_k_block, q6_k_block};
use half::bf16;

/// The types that [`to_f32`] converts, for errors.
pub(super) const CONVERTIBLE: &str =
    "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K";

/// A tensor type of ggml. The types with a constant here can be converted to f32; others are known by name and size
/// only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType(u32);

/// Id, name, elements per block, bytes per block.
const TYPES: [(u32, &str, usize, usize); 35] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    // Interleaved repackings that old files carry; listed for their names.
    (31, "Q4_0_4_4", 32, 18),
    (32, "Q4_0_4_8", 32, 18),
    (33, "Q4_0_8_8", 32, 18),
];

/// The name of a type id, for errors.
pub(super) fn type_name(id: u32) -> String {
    match GgmlType::from_id(id) {
        Some(known) => known.name().to_owned(),
        None => format!("ggml type {id}"),
    }
}

impl GgmlType {
    /// IEEE 754 single precision.
    pub const F32: Self = Self(0);
    /// IEEE 754 half precision.
    pub const F16: Self = Self(1);
    /// 4 bits with a scale per 32 numbers.
    pub const Q4_0: Self = Self(2);
    /// 4 bits with a scale and a minimum per 32 numbers.
    pub const Q4_1: Self = Self(3);
    /// 5 bits with a scale per 32 numbers.
    pub const Q5_0: Self = Self(6);
    /// 5 bits with a scale and a minimum per 32 numbers.
    pub const Q5_1: Self = Self(7);
    /// 8 bits with a scale per 32 numbers.
    pub const Q8_0: Self = Self(8);
    /// 4 bits in blocks of 256 numbers, with 6-bit scales and minima per 32.
    pub const Q4_K: Self = Self(12);
    /// 5 bits in blocks of 256 numbers, with 6-bit scales and minima per 32.
    pub const Q5_K: Self = Self(13);
    /// 6 bits in blocks of 256 numbers, with 8-bit scales per 16.
    pub const Q6_K: Self = Self(14);
    /// bfloat16: the upper half of a single.
    pub const BF16: Self = Self(30);

    /// The type with ggml's number, if it is a known one.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().any(|t| t.0 == id).then_some(Self(id))
    }

    fn row(self) -> (u32, &'static str, usize, usize) {
        // Only known ids are constructed; F32 stands in rather than a panic.
        TYPES
            .iter()
            .copied()
            .find(|t| t.0 == self.0)
            .unwrap_or(TYPES[0])
    }

    /// ggml's name, such as `Q4_1`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The number of elements in a block.
    pub fn block_elements(self) -> usize {
        self.row().2
    }

    /// The number of bytes in a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The bytes of so many elements; `None` if they are no whole number of blocks.
    pub(super) fn bytes(self, elements: usize) -> Option<usize> {
        let whole = elements.is_multiple_of(self.block_elements());
        whole.then(|| elements / self.block_elements() * self.block_bytes())
    }
}

/// Converts whole blocks to f32; `None` when the type has no conversion. A partial block at the end is left out.
pub fn to_f32(ggml_type: GgmlType, bytes: &[u8]) -> Option<Vec<f32>> {
    // One instance of the loop per type, so that each conversion is inlined.
    Some(match ggml_type {
        GgmlType::F32 => convert(ggml_type, bytes, f32_block),
        GgmlType::F16 => convert(ggml_type, bytes, f16_block),
        GgmlType::BF16 => convert(ggml_type, bytes, bf16_block),
        GgmlType::Q8_0 => convert(ggml_type, bytes, q8_0_block),
        GgmlType::Q4_0 => convert(ggml_type, bytes, q4_0_block),
        GgmlType::Q4_1 => convert(ggml_type, bytes, q4_1_block),
        GgmlType::Q5_0 => convert(ggml_type, bytes, q5_0_block),
        GgmlType::Q5_1 => convert(ggml_type, bytes, q5_1_block),
        GgmlType::Q4_K => convert(ggml_type, bytes, q4_k_block),
        GgmlType::Q5_K => convert(ggml_type, bytes, q5_k_block),
        GgmlType::Q6_K => convert(ggml_type, bytes, q6_k_block),
        _ => return None,
    })
}

fn convert(ggml_type: GgmlType, bytes: &[u8], block: impl Fn(&[u8], &mut [f32])) -> Vec<f32> {
    let (elements, size) = (ggml_type.block_elements(), ggml_type.block_bytes());
    let mut out = vec![0.0; bytes.len() / size * elements];
    for (out, raw) in out.chunks_exact_mut(elements).zip(bytes.chunks_exact(size)) {
        block(raw, out);
    }
    out
}

/// One IEEE single.
fn f32_block(raw: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
}

/// One IEEE half.
fn f16_block(raw: &[u8], out: &mut [f32]) {
    out[0] = half_at(raw, 0);
}

/// One bfloat16: the upper half of an IEEE single.
fn bf16_block(raw: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([raw[0], raw[1]]).to_f32();
}

/// `d: f16, q: [i8; 32]`; number i is `d * q[i]`.
fn q8_0_block(raw: &[u8], out: &mut [f32]) {
    let d = half_at(raw, 0);
    for (x, q) in out.iter_mut().zip(&raw[2..]) {
        *x = d * f32::from(*q as i8);
    }
}

/// `d: f16, q: [u8; 16]`; number i is `d * (low nibble of q[i] - 8)`, number i + 16 the same of the high nibble.
fn q4_0_block(raw: &[u8], out: &mut [f32]) {
    let d = half_at(raw, 0);
    let (low, high) = out.split_at_mut(16);
    for ((x, y), q) in low.iter_mut().zip(high).zip(&raw[2..]) {
        *x = d * f32::from((q & 15) as i8 - 8);
        *y = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// `d: f16, m: f16, q: [u8; 16]`; number i is `d * low nibble of q[i] + m`, number i + 16 the same of the high nibble.
fn q4_1_block(raw: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(raw, 0), half_at(raw, 2));
    let (low, high) = out.split_at_mut(16);
    for ((x, y), q) in low.iter_mut().zip(high).zip(&raw[4..]) {
        *x = d * f32::from(q & 15) + m;
        *y = d * f32::from(q >> 4) + m;
    }
}

/// `d: f16, h: u32, q: [u8; 16]`; as Q4_0, with bit i of h as the fifth bit of number i, less 16.
fn q5_0_block(raw: &[u8], out: &mut [f32]) {
    let d = half_at(raw, 0);
    five_bits(&raw[2..], out, |q| d * (f32::from(q) - 16.0));
}

/// `d: f16, m: f16, h: u32, q: [u8; 16]`; as Q4_1, with bit i of h as the fifth bit of number i.
fn q5_1_block(raw: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(raw, 0), half_at(raw, 2));
    five_bits(&raw[4..], out, |q| d * f32::from(q) + m);
}

/// `h: u32, q: [u8; 16]`: low nibbles of q first, then its high ones, each with its bit of h above.
fn five_bits(raw: &[u8], out: &mut [f32], number: impl Fn(u8) -> f32) {
    let (high_bits, nibbles) = raw.split_at(4);
    let fifth = |i: usize| (high_bits[i / 8] >> (i % 8) & 1) << 4;
    for (i, q) in nibbles.iter().enumerate() {
        out[i] = number(q & 15 | fifth(i));
        out[i + 16] = number(q >> 4 | fifth(i + 16));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn plain_formats() {
        let values = [1.0f32, -2.5, 0.0, 65504.0];
        let f32s: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(to_f32(GgmlType::F32, &f32s).unwrap(), values);
        let halves: Vec<u8> = values
            .iter()
            .flat_map(|x| f16::from_f32(*x).to_le_bytes())
            .collect();
        assert_eq!(to_f32(GgmlType::F16, &halves).unwrap(), values);
        let brains: Vec<u8> = [1.0f32, -2.5]
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect();
        assert_eq!(to_f32(GgmlType::BF16, &brains).unwrap(), [1.0, -2.5]);
    }

    #[test]
    fn quantised_formats() {
        let d = f16::from_f32(0.5).to_le_bytes();
        let m = f16::from_f32(-3.0).to_le_bytes();
        let nibbles: Vec<u8> = (0..16).map(|i| i | ((15 - i) << 4)).collect();

        let expected: Vec<f32> = (0..32).map(|i| 0.5 * (i - 16) as f32).collect();
        let q8: Vec<u8> = d
            .into_iter()
            .chain((0..32).map(|i| (i - 16i8) as u8))
            .collect();
        assert_eq!(to_f32(GgmlType::Q8_0, &q8).unwrap(), expected);

        let q4: Vec<u8> = d.into_iter().chain(nibbles.clone()).collect();
        let out = to_f32(GgmlType::Q4_0, &q4).unwrap();
        assert_eq!((out[0], out[15], out[16], out[31]), (-4.0, 3.5, 3.5, -4.0));

        let q41: Vec<u8> = d.into_iter().chain(m).chain(nibbles).collect();
        let out = to_f32(GgmlType::Q4_1, &q41).unwrap();
        assert_eq!((out[0], out[15], out[16], out[31]), (-3.0, 4.5, 4.5, -3.0));
    }

    #[test]
    fn names_and_unknown_types() {
        assert_eq!(type_name(12), "Q4_K");
        assert_eq!(type_name(99), "ggml type 99");
        assert_eq!(to_f32(GgmlType::from_id(10).unwrap(), &[0; 84]), None);
        for known in CONVERTIBLE.replace(" and ", ", ").split(", ") {
            let id = TYPES.iter().find(|t| t.1 == known).unwrap().0;
            assert!(to_f32(GgmlType(id), &[]).is_some(), "{known}");
        }
    }
}
