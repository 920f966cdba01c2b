//! Products of what models store and compute.

#[cfg(feature = "cube")]
use super::shapes;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};

#[backend_extension(Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait LayerOps: Backend {
    /// `lhs [.., m, k]` times `rhs [.., k, n]` in f32, without rounding what goes in.
    #[fusion(meta = |lhs, rhs| shapes::product(lhs, rhs))]
    fn multiply(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The matrix product, in f32 if both are: burn's own rounds factors to TF32, 10 bits, where a GPU has that.
pub fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>) -> Tensor<D> {
    match lhs.dtype() == DType::F32 && rounds_products(&lhs) {
        true => Tensor::from_dispatch(Dispatch::multiply(lhs.into_dispatch(), rhs.into_dispatch())),
        false => lhs.matmul(rhs),
    }
}

fn rounds_products<const D: usize>(tensor: &Tensor<D>) -> bool {
    match tensor.device().as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(own) => {
            use cubecl::prelude::*;
            let tf32 = cubecl::tf32::elem_type_native();
            own.client().properties().supports_type(tf32)
        }
        _ => false,
    }
}
