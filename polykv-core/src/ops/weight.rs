//! Weight matrices in the formats in which they are stored; what is computed with them stands in `linear`. A format of its
//! own type goes into files beside `q8`, which says what it is, and `packed`, its layout.

#[cfg(feature = "flex")]
mod packed;
mod q8;

#[cfg(feature = "flex")]
pub use packed::Q8Weight;
#[cfg(feature = "flex")]
pub(super) use packed::{Block, Blocks};
pub use q8::{Q8_BLOCK, q8_scheme};

#[cfg(feature = "flex")]
use super::flex::bridge::on_huge_pages;
#[cfg(feature = "flex")]
use super::route::is_cpu;
use super::tensor;
use burn::tensor::{DType, Device, Tensor};

/// A weight matrix `[out, in]`, ready to be read with every token.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one per matrix of a model")]
pub enum Weight {
    /// In f32, f16 or bf16.
    Dense(Tensor<2>),
    /// In 8 bits with a scale per block of a row; on the CPU only.
    #[cfg(feature = "flex")]
    Q8(Q8Weight),
}

impl From<Tensor<2>> for Weight {
    fn from(tensor: Tensor<2>) -> Self {
        Self::new(tensor)
    }
}

impl Weight {
    /// Takes over a tensor `[out, in]`. On the CPU it moves to huge pages where the system has them, and a tensor that
    /// burn holds in the format of [`q8_scheme`] becomes a [`Q8Weight`]; in another quantised format, or on another
    /// device, it becomes f32.
    pub fn new(tensor: Tensor<2>) -> Self {
        #[cfg(feature = "flex")]
        if is_cpu(&tensor.device()) {
            return match tensor.dtype() {
                DType::QFloat(scheme) if scheme == q8_scheme() => {
                    Self::Q8(Q8Weight::from_burn(tensor))
                }
                DType::QFloat(_) => Self::Dense(tensor.dequantize()),
                _ => Self::Dense(on_huge_pages(tensor)),
            };
        }
        match tensor.dtype() {
            DType::QFloat(_) => Self::Dense(tensor.dequantize()),
            _ => Self::Dense(tensor),
        }
    }

    /// Rounds a weight `[out, in]` in f32, `in` a multiple of [`Q8_BLOCK`], to 8 bits; on other devices than the CPU the
    /// rounded values are stored in f32.
    pub fn q8(tensor: Tensor<2>) -> Self {
        Self::new(tensor.quantize_dynamic(&q8_scheme()))
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            #[cfg(feature = "flex")]
            Self::Q8(weight) => weight.shape(),
        }
    }

    /// Bytes that the weight occupies, its scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor::bytes(tensor),
            #[cfg(feature = "flex")]
            Self::Q8(weight) => weight.bytes(),
        }
    }

    /// The device that the weight lies on.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            #[cfg(feature = "flex")]
            Self::Q8(_) => Device::flex(),
        }
    }

    /// The tensor, if the weight is one of a type that the GPU kernels read.
    pub(super) fn dense(&self) -> Option<&Tensor<2>> {
        match self {
            Self::Dense(tensor) => {
                let read = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
                read.then_some(tensor)
            }
            #[cfg(feature = "flex")]
            Self::Q8(_) => None,
        }
    }
}
