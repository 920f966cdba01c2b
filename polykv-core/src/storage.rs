//! The number formats of weights and of cached keys and values.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use crate::ops;
use crate::ops::Q8_BLOCK;
use crate::{Error, Result};
use burn::tensor::{DType, Device};
use std::fmt;
use std::str::FromStr;

/// The number format of weights and of cached keys and values, `--dtype` on the command line. Activations, softmax,
/// statistics and the weights of norms are f32 in every format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 16-bit floating point with 5 bits of exponent; finite up to 65504.
    F16,
    /// 16-bit floating point with 8 bits of exponent, the range of f32.
    Bf16,
    /// Weights in 8 bits with one f32 scale per [`Q8_BLOCK`] values of a row; keys and values in f16.
    Q8,
    /// Weights in 4 bits as GGUF's type Q4_K has them, or Q4_1 where rows are no multiple of 256; keys and values in f16, or
    /// in f32 where the device has no f16.
    Q4K,
    /// Weights as their file holds them, blocks of a GGUF file included: nothing is converted but numbers in a type that the
    /// device does not have, to f32. Keys and values in f16, or in f32 where the device has no f16.
    Native,
}

impl Storage {
    /// All formats, from the largest weights to the smallest; at the end the one that depends on the file.
    pub const ALL: [Self; 6] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8,
        Self::Q4K,
        Self::Native,
    ];

    /// The name of the format on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4K => "q4k",
            Self::Native => "native",
        }
    }

    /// The type of the tensors that hold the weights. `None` where they are no tensors of burn, or depend on the file.
    pub fn weights(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
            Self::Q8 => Some(DType::QFloat(ops::q8_scheme())),
            Self::Q4K | Self::Native => None,
        }
    }

    /// The type in which keys and values are cached where the device has it, see [`Storage::cache_on`].
    pub fn cache(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 | Self::Q8 | Self::Q4K | Self::Native => DType::F16,
        }
    }

    /// The type in which keys and values are cached on a device. Beside weights in blocks it is f32 where the device has no
    /// f16: blocks need no such type.
    pub fn cache_on(self, device: &Device) -> DType {
        match self {
            Self::Q4K | Self::Native => Self::or_f32(self.cache(), device),
            _ => self.cache(),
        }
    }

    /// The type of numbers itself, or f32 where the device does not have it: in which [`Storage::Native`] stores a matrix that
    /// is no blocks.
    pub fn or_f32(dtype: DType, device: &Device) -> DType {
        match device.supports_dtype(dtype) {
            true => dtype,
            false => DType::F32,
        }
    }

    /// Bytes of `count` weights; `None` where they depend on the file. Those of Q4_K are counted with rows that are a
    /// multiple of 256.
    pub fn weight_bytes(self, count: u64) -> Option<u64> {
        Some(match self {
            Self::F32 => count.saturating_mul(4),
            Self::F16 | Self::Bf16 => count.saturating_mul(2),
            Self::Q8 => {
                let scales = count.div_ceil(Q8_BLOCK as u64);
                count.saturating_add(scales.saturating_mul(4))
            }
            Self::Q4K => {
                let kind = ops::BlockType::Q4K;
                let blocks = count.div_ceil(kind.elements() as u64);
                blocks.saturating_mul(kind.bytes() as u64)
            }
            Self::Native => return None,
        })
    }

    /// Checks that the device can store and compute with this format.
    ///
    /// # Errors
    /// A format that the device does not have, of kind [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported). The error
    /// names those that it has.
    pub fn check(self, device: &Device) -> Result<()> {
        if self.has_kernels(device) && device.supports_dtype(self.cache_on(device)) {
            return Ok(());
        }
        let has = |storage: &&Self| {
            storage.has_kernels(device) && device.supports_dtype(storage.cache_on(device))
        };
        let allowed: Vec<_> = Self::ALL.iter().filter(has).map(|s| s.name()).collect();
        let reason = match self.has_kernels(device) {
            true => format!("the device {device:?} does not have it"),
            false => format!("the device {device:?} has no kernels for such weights"),
        };
        let reason = format!("{reason}; allowed: {}", allowed.join(", "));
        Err(Error::unsupported(format!("dtype {self}"), reason))
    }

    /// Whether the device can compute with weights of the format, if it has the types of numbers.
    fn has_kernels(self, device: &Device) -> bool {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => true,
            Self::Q8 => ops::is_cpu(device),
            Self::Q4K | Self::Native => ops::is_cpu(device) || ops::is_cube(device),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Storage {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = |storage: &&Self| storage.name() == text;
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|s| s.name()).collect();
            format!("'{text}' is no dtype; allowed: {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for storage in Storage::ALL {
            assert_eq!(storage.name().parse(), Ok(storage));
        }
        assert!("fp16".parse::<Storage>().unwrap_err().contains("f16"));
    }

    #[test]
    fn bytes_of_weights() {
        let bytes = Storage::ALL.map(|storage| storage.weight_bytes(512));
        let [f32, half, q8, q4k] = [2048, 1024, 576, 288].map(Some);
        assert_eq!(bytes, [f32, half, half, q8, q4k, None]);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_has_every_format() {
        for storage in Storage::ALL {
            storage.check(&Device::flex()).unwrap();
        }
    }
}
