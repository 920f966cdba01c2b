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
}

impl Storage {
    /// All formats, from the largest weights to the smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8];

    /// The name of the format on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }

    /// The type of the weights.
    pub fn weights(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
            Self::Q8 => DType::QFloat(ops::q8_scheme()),
        }
    }

    /// The type in which keys and values are cached.
    pub fn cache(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 | Self::Q8 => DType::F16,
        }
    }

    /// Bytes of `count` weights.
    pub fn weight_bytes(self, count: u64) -> u64 {
        match self {
            Self::F32 => count.saturating_mul(4),
            Self::F16 | Self::Bf16 => count.saturating_mul(2),
            Self::Q8 => {
                let scales = count.div_ceil(Q8_BLOCK as u64);
                count.saturating_add(scales.saturating_mul(4))
            }
        }
    }

    /// Checks that the device can store and compute with this format.
    ///
    /// # Errors
    /// A format that the device does not have, of kind [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported). The error
    /// names those that it has.
    pub fn check(self, device: &Device) -> Result<()> {
        let what = || format!("dtype {self}");
        if self == Self::Q8 && !ops::is_cpu(device) {
            let reason = "8-bit weights have kernels on the CPU only; allowed: f32, f16, bf16";
            return Err(Error::unsupported(what(), reason));
        }
        if device.supports_dtype(self.cache()) {
            return Ok(());
        }
        let has = |storage: &&Self| **storage != Self::Q8 && device.supports_dtype(storage.cache());
        let allowed: Vec<_> = Self::ALL.iter().filter(has).map(|s| s.name()).collect();
        let reason = format!(
            "the device {device:?} does not have it; allowed: {}",
            allowed.join(", ")
        );
        Err(Error::unsupported(what(), reason))
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
        let bytes = Storage::ALL.map(|storage| storage.weight_bytes(64));
        assert_eq!(bytes, [256, 128, 128, 72]);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_has_every_format() {
        for storage in Storage::ALL {
            storage.check(&Device::flex()).unwrap();
        }
    }
}
