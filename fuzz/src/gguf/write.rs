//! The bytes of a GGUF file, and faults in them.

use super::super::Draw;

/// ggml's numbers of the types of metadata values.
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Types of tensors: number, elements and bytes of a block. The first has no blocks; the last two have no conversion.
pub const TYPES: [(u32, u64, u64); 13] = [
    (0, 1, 4),
    (1, 1, 2),
    (30, 1, 2),
    (8, 32, 34),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (10, 256, 84),
    (20, 32, 18),
];

/// A metadata value in the file's own form.
#[derive(Clone)]
pub struct Value {
    kind: u32,
    bytes: Vec<u8>,
}

impl Value {
    pub fn u32(value: u64) -> Self {
        let bytes = (value as u32).to_le_bytes().to_vec();
        Self { kind: U32, bytes }
    }

    pub fn f32(value: f32) -> Self {
        let bytes = value.to_le_bytes().to_vec();
        Self { kind: F32, bytes }
    }

    pub fn flag(value: bool) -> Self {
        let bytes = vec![u8::from(value)];
        Self { kind: BOOL, bytes }
    }

    pub fn text(value: &str) -> Self {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        Self { kind: TEXT, bytes }
    }

    /// A list of values that are of type `of` already.
    pub fn list(of: u32, items: impl IntoIterator<Item = Self>) -> Self {
        let items: Vec<Self> = items.into_iter().collect();
        let mut bytes = of.to_le_bytes().to_vec();
        bytes.extend((items.len() as u64).to_le_bytes());
        items.iter().for_each(|item| bytes.extend(&item.bytes));
        Self { kind: LIST, bytes }
    }

    pub fn i32(value: i32) -> Self {
        let bytes = value.to_le_bytes().to_vec();
        Self { kind: I32, bytes }
    }

    /// Another value in its place.
    fn other(draw: &mut Draw<'_>) -> Self {
        match draw.below(7) {
            0 => Self::u32(draw.number()),
            1 => {
                let odd = [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40, 1e38, 0.5];
                Self::f32(draw.pick(&odd))
            }
            2 => {
                let bytes = draw.number().to_le_bytes().to_vec();
                // As a whole number with or without a sign, or as the bits of a double.
                let kind = draw.pick(&[10, 11, 12]);
                Self { kind, bytes }
            }
            3 => Self::text(&draw.text()),
            4 => Self::flag(draw.flag()),
            5 => {
                let count = draw.below(5);
                Self::list(U32, (0..count).map(|_| Self::u32(draw.number())))
            }
            _ => {
                let count = draw.below(5);
                Self::list(TEXT, (0..count).map(|_| Self::text(&draw.text())))
            }
        }
    }
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Row-major.
    pub shape: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
}

pub struct File {
    pub values: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
    /// Added to the offsets of the last tensor.
    shift: u64,
}

impl File {
    pub fn new(values: Vec<(String, Value)>, tensors: Vec<Tensor>) -> Self {
        let (alignment, shift) = (32, 0);
        Self {
            values,
            tensors,
            alignment,
            shift,
        }
    }

    /// Changes one thing in it.
    pub fn spoil(&mut self, draw: &mut Draw<'_>) {
        let value = draw.below(self.values.len().max(1));
        let tensor = draw.below(self.tensors.len().max(1));
        match (
            draw.below(14),
            self.values.get_mut(value),
            self.tensors.get_mut(tensor),
        ) {
            (0..=2, Some((_, value)), _) => *value = Value::other(draw),
            (3, Some(_), _) => drop(self.values.remove(value)),
            (4, Some((_, value)), _) => {
                let at = draw.below(value.bytes.len().max(1));
                if let Some(byte) = value.bytes.get_mut(at) {
                    *byte ^= 1 << draw.below(8);
                }
            }
            (5, _, Some(tensor)) => {
                let dim = draw.below(tensor.shape.len().max(1));
                if let Some(dim) = tensor.shape.get_mut(dim) {
                    *dim = draw.number();
                }
            }
            (6, _, Some(tensor)) => tensor.shape.push(draw.pick(&[1, 0, 2])),
            (7, _, Some(tensor)) => tensor.kind = draw.pick(&TYPES).0,
            (8, _, Some(tensor)) => {
                let names = [
                    "blk.00.attn_q.weight",
                    "blk.+0.attn_q.weight",
                    "blk.7.attn_q.weight",
                    "output.weight",
                    "token_embd.weight",
                    "rope_freqs.weight",
                    "blk.0.ffn_up_exps.weight",
                ];
                tensor.name = draw.pick(&names).to_owned();
            }
            (9, _, Some(_)) => drop(self.tensors.remove(tensor)),
            (10, _, Some(tensor)) => {
                let at = draw.below(tensor.data.len().clamp(1, 1 << 16));
                if let Some(byte) = tensor.data.get_mut(at) {
                    *byte = draw.byte();
                }
            }
            (11, _, Some(tensor)) => {
                let length = tensor.data.len() + draw.below(64);
                tensor.data.resize(length.saturating_sub(32), 1);
            }
            (12, _, _) => self.shift = draw.number(),
            (13, _, _) => {
                self.alignment = draw.pick(&[32, 1, 8, 64]);
                let stated = Value::u32(draw.pick(&[32, 1, 8, 64, 0, 3, 1 << 30]));
                self.values.push(("general.alignment".into(), stated));
            }
            _ => {}
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            put_text(&mut out, key);
            out.extend(value.kind.to_le_bytes());
            out.extend(&value.bytes);
        }
        let mut data = Vec::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            put_text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            let last = index + 1 == self.tensors.len();
            let shift = if last { self.shift } else { 0 };
            out.extend((data.len() as u64).wrapping_add(shift).to_le_bytes());
            data.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
