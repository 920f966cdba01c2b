//! The operators that backends implement with kernels of their own: Flex in plain Rust (`flex/`), every CubeCL runtime
//! (wgpu, CUDA and others) with one set of CubeCL kernels (`cube/`). What runs where is decided here.

// In a build in which no backend implements an operator, the dispatcher reads no argument.
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod attention;
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod entries;
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod keys;
#[cfg_attr(not(feature = "cube"), expect(unused_variables))]
mod layers;

pub use attention::*;
pub use entries::*;
pub use keys::*;
pub use layers::*;

#[cfg(any(feature = "flex", feature = "cube"))]
use burn::backend::DispatchDevice;
use burn::backend::DispatchTensor;
use burn::tensor::{DType, Device, Tensor};
use std::ops::Range;

/// Positions that stay whatever their score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Positions below this one.
    pub sinks: i32,
    /// Positions from this one on.
    pub recent: i32,
    /// Ranges of positions beside those.
    pub spans: Vec<Range<i32>>,
}

impl Guard {
    /// For choices without protection.
    pub fn none() -> Self {
        Self {
            sinks: 0,
            recent: i32::MAX,
            spans: Vec::new(),
        }
    }

    pub fn contains(&self, position: i64) -> bool {
        let in_span =
            |span: &Range<i32>| i64::from(span.start) <= position && position < i64::from(span.end);
        position < i64::from(self.sinks)
            || position >= i64::from(self.recent)
            || self.spans.iter().any(in_span)
    }
}

/// How far below an even part, as a logarithm, attention still counts as one: the rounding of scores in f32.
pub const HIT_SLACK: f32 = 1e-6;

/// The shape of the product of matrices `[.., m, k]` and `[.., k, n]`; leading axes of length 1 are broadcast.
#[cfg(feature = "cube")]
pub(super) fn product_dims(left: &[usize], right: &[usize]) -> Vec<usize> {
    let mut dims: Vec<usize> = left.iter().zip(right).map(|(&a, &b)| a.max(b)).collect();
    let rank = dims.len();
    (dims[rank - 2], dims[rank - 1]) = (left[rank - 2], right[rank - 1]);
    dims
}

/// What lazy execution must know of results in advance.
#[cfg(feature = "cube")]
mod shapes {
    use burn::backend::fusion::custom::TensorSpec;

    pub fn like<const D: usize>(spec: &TensorSpec, dims: [usize; D]) -> TensorSpec {
        TensorSpec::new(dims.into(), spec.dtype)
    }

    pub fn without_last(spec: &TensorSpec) -> TensorSpec {
        let mut dims = spec.shape.to_vec();
        dims.pop();
        TensorSpec::new(dims.into(), spec.dtype)
    }

    /// A number per vector, in f32.
    pub fn norms(vectors: &TensorSpec) -> TensorSpec {
        let mut dims = vectors.shape.to_vec();
        dims.pop();
        TensorSpec::new(dims.into(), burn::tensor::DType::F32)
    }

    /// Of matrices `[.., m, k]` and `[.., k, n]`, in f32.
    pub fn product(lhs: &TensorSpec, rhs: &TensorSpec) -> TensorSpec {
        let dims = super::product_dims(&lhs.shape.to_vec(), &rhs.shape.to_vec());
        TensorSpec::new(dims.into(), burn::tensor::DType::F32)
    }

    /// Of rows `[.., in]` with a weight `[out, in]`.
    pub fn rows(x: &TensorSpec, weight: &TensorSpec) -> TensorSpec {
        let mut dims = x.shape.to_vec();
        if let Some(last) = dims.last_mut() {
            *last = weight.shape[0];
        }
        TensorSpec::new(dims.into(), x.dtype)
    }

    /// One entry less, `[batch, kv_heads, n − 1, ..]`.
    pub fn one_less(spec: &TensorSpec) -> TensorSpec {
        let mut dims = spec.shape.to_vec();
        dims[2] -= 1;
        TensorSpec::new(dims.into(), spec.dtype)
    }
}

/// Whether the tensor's device implements [`KvOps`] for its dtype; elsewhere plain tensor operations do the same.
pub fn has_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    let device = tensor.device();
    tensor.dtype() == DType::F32 && (is_cpu(&device) || is_cube(&device))
}

/// Whether the CPU has a kernel for the tensor's dtype.
pub fn has_cpu_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_cpu(&tensor.device())
}

/// As [`has_cpu_kernels`] for a GPU.
pub fn has_gpu_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_cube(&tensor.device())
}

/// Whether the device chooses and moves entries with kernels, which take every type that is stored.
pub fn moves_entries(device: &Device) -> bool {
    is_cpu(device) || is_cube(device)
}

/// Whether a unit of a kernel may take `rounds` rounds of its loops. Software Vulkan (llvmpipe) ends all loops of a unit
/// after 65,535 rounds together, and nothing tells that the result is a part; like it, only software has no plane
/// operations.
pub fn has_rounds(device: &Device, rounds: usize) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(own) => {
            rounds < 60_000 || !own.client().properties().features.plane.is_empty()
        }
        _ => {
            let _ = rounds;
            true
        }
    }
}

/// Whether the device is the CPU backend.
pub fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Whether the device runs CubeCL kernels.
pub fn is_cube(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return matches!(device.as_dispatch(), DispatchDevice::Cube(_));
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

fn pair<const A: usize, const B: usize>(
    (a, b): (DispatchTensor, DispatchTensor),
) -> (Tensor<A>, Tensor<B>) {
    (Tensor::from_dispatch(a), Tensor::from_dispatch(b))
}
