//! Weight matrices in the formats in which they are stored; what is computed with them stands in `linear`. A format of its
//! own type goes into files beside `q8`, which says what it is, and `packed`, its layout.

mod block_type;
#[cfg(any(feature = "flex", feature = "cube"))]
mod blocks;
#[cfg(feature = "cube")]
mod gpu_blocks;
#[cfg(feature = "flex")]
mod packed;
mod q8;
#[cfg(any(feature = "flex", feature = "cube"))]
mod quantize;
mod shared;

pub use block_type::BlockType;
#[cfg(feature = "flex")]
pub(super) use block_type::six_bits;
#[cfg(feature = "flex")]
pub(super) use blocks::BlockRows;
#[cfg(any(feature = "flex", feature = "cube"))]
pub use blocks::BlockWeight;
#[cfg(feature = "cube")]
pub use gpu_blocks::GpuBlocks;
#[cfg(feature = "flex")]
pub use packed::Q8Weight;
#[cfg(feature = "flex")]
pub(super) use packed::{Block, Blocks};
pub use q8::{Q8_BLOCK, q8_scheme};
pub use shared::SharedBytes;

#[cfg(feature = "flex")]
use super::flex::bridge::on_huge_pages;
#[cfg(feature = "flex")]
use super::route::is_cpu;
#[cfg(feature = "cube")]
use super::route::is_cube;
use super::tensor;
use crate::Result;
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
    /// In blocks of one of ggml's types, as a file holds them; on the CPU.
    #[cfg(feature = "flex")]
    Blocks(BlockWeight),
    /// The same on a GPU.
    #[cfg(feature = "cube")]
    GpuBlocks(GpuBlocks),
}

#[cfg(feature = "flex")]
impl From<BlockWeight> for Weight {
    fn from(weight: BlockWeight) -> Self {
        Self::Blocks(weight)
    }
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

    /// A weight `[out, in]` in blocks that lie row after row in `bytes`; row i is row `order[i]` of them, if there is an
    /// order. The CPU reads the bytes where they are, GPUs get a copy.
    ///
    /// # Errors
    /// A shape that does not fit the blocks, and an order that does not name every row once; a device without kernels.
    pub fn in_blocks(
        kind: BlockType,
        shape: [usize; 2],
        bytes: SharedBytes,
        order: Option<Vec<u32>>,
        device: &Device,
    ) -> Result<Self> {
        #[cfg(any(feature = "flex", feature = "cube"))]
        {
            let weight = BlockWeight::new(kind, shape, bytes)?;
            let weight = match order {
                Some(order) => weight.with_order(order)?,
                None => weight,
            };
            Self::on_device(weight, device)
        }
        #[cfg(not(any(feature = "flex", feature = "cube")))]
        {
            let _ = (shape, bytes, order);
            Err(no_blocks(kind, device))
        }
    }

    /// Rounds a weight `[out, in]` in f32 to 4 bits: to Q4_K, or to Q4_1 if `in` is no multiple of 256.
    ///
    /// # Errors
    /// `in` that is no multiple of 32; another number of values than the shape has; numbers that are not finite or too
    /// large; a device without kernels.
    pub fn q4k(shape: [usize; 2], values: &[f32], device: &Device) -> Result<Self> {
        let kind = match shape[1].is_multiple_of(BlockType::Q4K.elements()) {
            true => BlockType::Q4K,
            false => BlockType::Q4_1,
        };
        #[cfg(any(feature = "flex", feature = "cube"))]
        {
            Self::on_device(BlockWeight::quantize(kind, shape, values)?, device)
        }
        #[cfg(not(any(feature = "flex", feature = "cube")))]
        {
            let _ = values;
            Err(no_blocks(kind, device))
        }
    }

    /// A weight in blocks on the device that is to compute with it.
    ///
    /// # Errors
    /// A device without kernels for blocks.
    #[cfg(any(feature = "flex", feature = "cube"))]
    pub fn on_device(weight: BlockWeight, device: &Device) -> Result<Self> {
        match () {
            #[cfg(feature = "flex")]
            () if is_cpu(device) => Ok(Self::Blocks(weight)),
            #[cfg(feature = "cube")]
            () if is_cube(device) => Ok(Self::GpuBlocks(GpuBlocks::new(&weight, device))),
            () => Err(no_blocks(weight.kind(), device)),
        }
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            #[cfg(feature = "flex")]
            Self::Q8(weight) => weight.shape(),
            #[cfg(feature = "flex")]
            Self::Blocks(weight) => weight.shape(),
            #[cfg(feature = "cube")]
            Self::GpuBlocks(weight) => weight.shape(),
        }
    }

    /// Bytes that the weight occupies, its scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor::bytes(tensor),
            #[cfg(feature = "flex")]
            Self::Q8(weight) => weight.bytes(),
            #[cfg(feature = "flex")]
            Self::Blocks(weight) => weight.bytes(),
            #[cfg(feature = "cube")]
            Self::GpuBlocks(weight) => weight.bytes(),
        }
    }

    /// The device that the weight lies on.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            #[cfg(feature = "flex")]
            Self::Q8(_) | Self::Blocks(_) => Device::flex(),
            #[cfg(feature = "cube")]
            Self::GpuBlocks(weight) => weight.device(),
        }
    }

    /// The tensor, if the weight is one of a type that the GPU kernels of tensors read.
    pub(super) fn dense(&self) -> Option<&Tensor<2>> {
        match self {
            Self::Dense(tensor) => {
                let read = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
                read.then_some(tensor)
            }
            #[cfg(feature = "flex")]
            Self::Q8(_) | Self::Blocks(_) => None,
            #[cfg(feature = "cube")]
            Self::GpuBlocks(_) => None,
        }
    }
}

fn no_blocks(kind: BlockType, device: &Device) -> crate::Error {
    let reason = format!("the device {device:?} has no kernels for it");
    crate::Error::unsupported(format!("a weight in {kind}"), reason)
}
