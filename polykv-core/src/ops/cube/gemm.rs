//! GEMM that keeps f32: cubek's without matrix units, which would take TF32.

use super::{dense, empty, gemv};
use crate::ops::kernels::{GemmOps, product_dims};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy;
use cubek::std::InputBinding;

impl GemmOps for CubeBackend {
    fn gemm(lhs: CubeTensor, rhs: CubeTensor) -> CubeTensor {
        let dims = product_dims(&lhs.shape().to_vec(), &rhs.shape().to_vec());
        let output = empty(&lhs, dims, DType::F32);
        let f32 = dtype_to_storage_type(DType::F32);
        let attempt = |strategy: Strategy| {
            let input = |tensor: &CubeTensor| InputBinding::new(tensor.clone().binding(), f32);
            let mut elems = MatmulElems::from_globals(&MatmulGlobalElems {
                lhs: f32,
                rhs: f32,
                out: f32,
            });
            launch_ref(
                &strategy.into(),
                &output.client,
                input(&lhs),
                input(&rhs),
                output.clone().binding(),
                &mut elems,
            )
        };
        // The naive kernel takes all shapes and layouts.
        let launched =
            attempt(Strategy::SimpleUnit(Default::default())).or_else(|_| attempt(Strategy::Naive));
        assert!(launched.is_ok(), "cubek has no product for these shapes");
        output
    }

    fn gemv(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        gemv::multiply(into_contiguous(x), dense(weight), None)
    }
}
