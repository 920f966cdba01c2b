//! Which implementation of an operator runs: the one rule, asked by every public operator.

#[cfg(any(feature = "flex", feature = "cube"))]
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};

/// Where an operator runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Plain tensor operations, in `oracle`: any backend of burn, any type.
    Plain,
    /// The CPU kernels in `flex`.
    Cpu,
    /// The GPU kernels in `cube`, for every CubeCL runtime (wgpu, CUDA and others).
    Gpu,
}

impl Route {
    /// Of operators that move, choose or compare entries: kernels read them in every type in which they are stored.
    pub fn on(device: &Device) -> Self {
        #[cfg(feature = "flex")]
        if matches!(device.as_dispatch(), DispatchDevice::Flex(_)) {
            return Self::Cpu;
        }
        #[cfg(feature = "cube")]
        if matches!(device.as_dispatch(), DispatchDevice::Cube(_)) {
            return Self::Gpu;
        }
        let _ = device;
        Self::Plain
    }

    /// Of operators that compute with activations, queries or scores: kernels take these in f32 only.
    pub fn of<const D: usize>(x: &Tensor<D>) -> Self {
        match x.dtype() {
            DType::F32 => Self::on(&x.device()),
            _ => Self::Plain,
        }
    }

    /// The same if another operand is in f32 too, as kernels read it.
    pub fn if_f32<const D: usize>(self, operand: &Tensor<D>) -> Self {
        self.if_alike([operand.dtype(), DType::F32])
    }

    /// The same if operands that a kernel reads as one type have one.
    pub fn if_alike<const N: usize>(self, types: [DType; N]) -> Self {
        match types.iter().all(|dtype| *dtype == types[0]) {
            true => self,
            false => Self::Plain,
        }
    }

    /// The same for a kernel of which one unit makes `rounds` rounds of its loops, unless the device cannot do so many.
    /// Software Vulkan (llvmpipe) ends all loops of a unit after 65,535 rounds together, and nothing tells that the
    /// result is a part; like it, only software has no plane operations.
    pub fn for_rounds(self, device: &Device, rounds: usize) -> Self {
        match device.as_dispatch() {
            #[cfg(feature = "cube")]
            DispatchDevice::Cube(cube)
                if rounds >= 60_000 && cube.client().properties().features.plane.is_empty() =>
            {
                Self::Plain
            }
            _ => {
                let _ = rounds;
                self
            }
        }
    }
}

/// The most rows of activations whose product with a weight is bound by the memory that the weight lies in. Kernels do
/// these as a GEMV per row that shares the reading of the weight; more rows are a GEMM, which the backend does best.
pub(super) const MOST_GEMV_ROWS: usize = 8;

/// Whether the device is the CPU backend, Flex.
pub fn is_cpu(device: &Device) -> bool {
    Route::on(device) == Route::Cpu
}

/// Whether the device runs CubeCL kernels.
pub fn is_cube(device: &Device) -> bool {
    Route::on(device) == Route::Gpu
}

/// The most bytes that a tensor on the device may have: what a kernel reads through one binding.
pub(crate) fn most_tensor_bytes(device: &Device) -> usize {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(cube) => {
            let most = cube.client().properties().memory.max_page_size;
            usize::try_from(most).unwrap_or(usize::MAX)
        }
        #[allow(unreachable_patterns, reason = "with no other backend")]
        _ => usize::MAX,
    }
}

/// Whether burn's own products of f32 on the device round their factors to TF32, 10 bits of mantissa.
pub(super) fn rounds_products(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(cube) => {
            use cubecl::prelude::*;
            let tf32 = cubecl::tf32::elem_type_native();
            cube.client().properties().supports_type(tf32)
        }
        #[allow(unreachable_patterns, reason = "with no other backend")]
        _ => false,
    }
}
