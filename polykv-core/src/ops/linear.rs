//! Products of activations with weights, and weights in f32.

#[cfg(feature = "flex")]
use super::flex::weights as cpu;
use super::kernels::{GemmOps, kernel};
#[cfg(feature = "flex")]
use super::route::is_cpu;
use super::route::{MOST_GEMV_ROWS, Route};
use super::tensor::product;
use super::weight::Weight;
use burn::tensor::{DType, Int, Tensor};

impl Weight {
    /// The weight in f32, `[out, in]`.
    pub fn to_f32(&self) -> Tensor<2> {
        self.widened().cast(DType::F32)
    }

    /// The rows `ids [n]` of the weight in f32, for embeddings: `[n, in]`. Ids must be below `out`.
    pub fn rows(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.clone().select(0, ids).cast(DType::F32),
            #[cfg(feature = "flex")]
            Self::Q8(weight) => cpu::q8_rows(weight, ids),
            #[cfg(feature = "flex")]
            Self::Blocks(weight) => cpu::block_rows(weight, ids),
            #[cfg(feature = "cube")]
            Self::GpuBlocks(weight) => weight.rows(ids),
        }
    }

    /// In f32 where products cannot read the type well; on GPUs half-precision types stay.
    fn widened(&self) -> Tensor<2> {
        match self {
            Self::Dense(tensor) if tensor.dtype() == DType::F32 => tensor.clone(),
            // The CPU backend would convert on one thread for every product.
            #[cfg(feature = "flex")]
            Self::Dense(tensor) if is_cpu(&tensor.device()) => cpu::widen(tensor.clone()),
            Self::Dense(tensor) => tensor.clone(),
            #[cfg(feature = "flex")]
            Self::Q8(weight) => cpu::q8_to_f32(weight),
            #[cfg(feature = "flex")]
            Self::Blocks(weight) => cpu::blocks_to_f32(weight),
            #[cfg(feature = "cube")]
            Self::GpuBlocks(weight) => weight.to_f32(),
        }
    }
}

/// `x [rows, in]` in f32 times the transpose of `weight [out, in]` → `[rows, out]` in f32.
///
/// # Panics
/// If the widths differ.
pub fn linear(x: Tensor<2>, weight: &Weight) -> Tensor<2> {
    let [output] = linears(x, [weight]);
    output
}

/// `x [rows, in]` in f32 times the transposes of several weights `[out, in]` → `[rows, out]` each, in f32.
/// On the CPU all weights of one format are handed to the threads at once.
///
/// # Panics
/// If the widths differ.
pub fn linears<const N: usize>(x: Tensor<2>, weights: [&Weight; N]) -> [Tensor<2>; N] {
    let [rows, inputs] = x.dims();
    for weight in weights {
        let found = weight.shape()[1];
        assert_eq!(found, inputs, "a weight of {found} inputs for {inputs}");
    }
    let gemv = rows <= MOST_GEMV_ROWS;
    match Route::of(&x) {
        // burn's product of few rows runs on one thread of the CPU; that of many is as fast as it gets.
        #[cfg(feature = "flex")]
        Route::Cpu if gemv => cpu::gemv(x, weights),
        Route::Gpu if gemv => weights.map(|weight| match weight.dense() {
            Some(weight) => kernel!(GemmOps::gemv(x.clone(), weight.clone())),
            None => gemm(x.clone(), weight),
        }),
        _ => gemms(x, weights),
    }
}

/// Products of many rows with several weights.
fn gemms<const N: usize>(x: Tensor<2>, weights: [&Weight; N]) -> [Tensor<2>; N] {
    #[cfg(feature = "flex")]
    {
        let in_blocks = weights.iter().filter_map(|weight| match weight {
            Weight::Blocks(weight) => Some(weight),
            _ => None,
        });
        let in_blocks: Vec<_> = in_blocks.collect();
        if in_blocks.len() == N
            && let Ok(outputs) = cpu::block_gemm(x.clone(), &in_blocks).try_into()
        {
            return outputs;
        }
    }
    weights.map(|weight| gemm(x.clone(), weight))
}

/// By the backend's own product, or that of weights of few bits.
fn gemm(x: Tensor<2>, weight: &Weight) -> Tensor<2> {
    match weight {
        #[cfg(feature = "flex")]
        Weight::Blocks(weight) => cpu::block_gemm(x, &[weight]).remove(0),
        #[cfg(feature = "cube")]
        Weight::GpuBlocks(weight) => weight.multiply(x),
        #[cfg(feature = "flex")]
        Weight::Q8(q8) => match cpu::q8_gemm(x.clone(), q8) {
            Some(output) => output,
            None => product(x, weight.widened().transpose()),
        },
        #[cfg(feature = "flex")]
        Weight::Dense(tensor) if tensor.dtype() == DType::BF16 && is_cpu(&tensor.device()) => {
            match cpu::bf16_gemm(x.clone(), tensor.clone()) {
                Some(output) => output,
                None => product(x, weight.widened().transpose()),
            }
        }
        weight => product(x, weight.widened().transpose()),
    }
}
