//! The number formats of ggml and their conversion to f32. All are little-endian, in blocks along a row.

use half::{bf16, f16};
use polykv_core::ops::BlockType;

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

    /// The type of the blocks, of those that products read as they are.
    pub fn block_type(self) -> Option<BlockType> {
        let named = |kind: &BlockType| kind.name() == self.name();
        BlockType::ALL.into_iter().find(named)
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
    Some(match ggml_type {
        GgmlType::F32 => convert(bytes, f32::from_le_bytes),
        GgmlType::F16 => convert(bytes, |raw| f16::from_le_bytes(raw).to_f32()),
        GgmlType::BF16 => convert(bytes, |raw| bf16::from_le_bytes(raw).to_f32()),
        _ => {
            let kind = ggml_type.block_type()?;
            let mut output = vec![0.0; bytes.len() / kind.bytes() * kind.elements()];
            kind.decode(bytes, &mut output);
            output
        }
    })
}

fn convert<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|raw| number(*raw)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
