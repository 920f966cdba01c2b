//! The operators that backends implement with kernels of their own: Flex in plain Rust (`flex`), every CubeCL runtime
//! with one set of CubeCL kernels (`cube`). An operator's signature stands here, at its public function and at its
//! implementations; [`kernel!`] calls it for burn's tensors.
//!
//! What comes in has been checked by the public functions as far as shapes go. Slots, positions and lengths are numbers
//! on a device and unchecked: whatever they are, a kernel stays inside its tensors.

// In a build in which no backend implements an operator, the dispatcher reads no argument.
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod attention;
#[cfg(feature = "cube")]
mod blocks;
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod codes;
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod entries;
#[cfg_attr(not(any(feature = "flex", feature = "cube")), expect(unused_variables))]
mod keys;
#[cfg_attr(not(feature = "cube"), expect(unused_variables))]
mod layers;
#[cfg(feature = "cube")]
mod ranges;
#[cfg(feature = "cube")]
mod step;

pub use attention::{HitOps, Mask, PromptOps, TokenOps, Window, WindowOps};
#[cfg(feature = "cube")]
pub use blocks::BlockOps;
pub use codes::{CodeOps, ExactEntries, ExactRows, Place, Relative};
pub use entries::{ChoiceOps, Counts, EntryOps, OrderOps};
pub use keys::{KeyOps, MergeOps};
pub use layers::{FusedOps, GemmOps, HeadNorms, OutputWeights, PointwiseOps, QkvWeights};
#[cfg(feature = "cube")]
pub use ranges::RangeOps;
#[cfg(feature = "cube")]
pub use step::{ScoresOf, StepOps};

#[cfg(feature = "cube")]
use super::hit_note::HitNote;
use super::pool::Pool;
use super::protect::Guard;
use super::weight::BlockType;
use crate::codes::Codes;
use burn::backend::{Dispatch, DispatchTensor};
use burn::tensor::Tensor;
use burn::tensor::kind::Basic;

/// `kernel!(KeyOps::key_norms(keys))` runs an operator on the backend of the tensors in its arguments; arguments and
/// results are burn's tensors.
macro_rules! kernel {
    ($ops:ident::$name:ident($($arg:expr),* $(,)?)) => {
        $crate::ops::kernels::Output::wrap(
            <burn::backend::Dispatch as $ops>::$name($($crate::ops::kernels::Input::unwrap($arg)),*)
        )
    };
}
pub(super) use kernel;

/// An argument of an operator in the form that [`Dispatch`] takes.
pub trait Input {
    type Unwrapped;

    fn unwrap(self) -> Self::Unwrapped;
}

impl<const D: usize, K: Basic> Input for Tensor<D, K> {
    type Unwrapped = DispatchTensor;

    fn unwrap(self) -> DispatchTensor {
        self.into_dispatch()
    }
}

macro_rules! plain_input {
    ($($ty:ty),*) => {$(
        impl Input for $ty {
            type Unwrapped = Self;

            fn unwrap(self) -> Self {
                self
            }
        }
    )*};
}
plain_input!(
    bool,
    f32,
    usize,
    Option<usize>,
    Option<f32>,
    Guard,
    Pool,
    BlockType,
    Codes,
    Mask<Dispatch>,
    Relative<Dispatch>,
    ExactRows<Dispatch>,
    ExactEntries<Dispatch>,
    Place<Dispatch>,
    Counts<Dispatch>,
    QkvWeights<Dispatch>,
    OutputWeights<Dispatch>
);
#[cfg(feature = "cube")]
plain_input!(ScoresOf, HitNote);

/// A result of an operator.
pub trait Output<T> {
    fn wrap(unwrapped: T) -> Self;
}

impl<const D: usize, K: Basic> Output<DispatchTensor> for Tensor<D, K> {
    fn wrap(unwrapped: DispatchTensor) -> Self {
        Self::from_dispatch(unwrapped)
    }
}

impl<A, B, X, Y> Output<(X, Y)> for (A, B)
where
    A: Output<X>,
    B: Output<Y>,
{
    fn wrap((a, b): (X, Y)) -> Self {
        (A::wrap(a), B::wrap(b))
    }
}

impl<A, B, C, X, Y, Z> Output<(X, Y, Z)> for (A, B, C)
where
    A: Output<X>,
    B: Output<Y>,
    C: Output<Z>,
{
    fn wrap((a, b, c): (X, Y, Z)) -> Self {
        (A::wrap(a), B::wrap(b), C::wrap(c))
    }
}

impl<A, B, C, D, E, V, W, X, Y, Z> Output<(V, W, X, Y, Z)> for (A, B, C, D, E)
where
    A: Output<V>,
    B: Output<W>,
    C: Output<X>,
    D: Output<Y>,
    E: Output<Z>,
{
    fn wrap((a, b, c, d, e): (V, W, X, Y, Z)) -> Self {
        (A::wrap(a), B::wrap(b), C::wrap(c), D::wrap(d), E::wrap(e))
    }
}

#[cfg(feature = "cube")]
impl<A, B, C, D, E, F, G, T, U, V, W, X, Y, Z> Output<(T, U, V, W, X, Y, Z)>
    for (A, B, C, D, E, F, G)
where
    A: Output<T>,
    B: Output<U>,
    C: Output<V>,
    D: Output<W>,
    E: Output<X>,
    F: Output<Y>,
    G: Output<Z>,
{
    fn wrap((a, b, c, d, e, f, g): (T, U, V, W, X, Y, Z)) -> Self {
        let ((a, b, c, d, e), f) = (<(A, B, C, D, E)>::wrap((a, b, c, d, e)), F::wrap(f));
        (a, b, c, d, e, f, G::wrap(g))
    }
}

#[cfg(feature = "cube")]
impl<A, B, C, D, E, F, U, V, W, X, Y, Z> Output<(U, V, W, X, Y, Z)> for (A, B, C, D, E, F)
where
    A: Output<U>,
    B: Output<V>,
    C: Output<W>,
    D: Output<X>,
    E: Output<Y>,
    F: Output<Z>,
{
    fn wrap((a, b, c, d, e, f): (U, V, W, X, Y, Z)) -> Self {
        (
            A::wrap(a),
            B::wrap(b),
            C::wrap(c),
            D::wrap(d),
            E::wrap(e),
            F::wrap(f),
        )
    }
}

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

    pub fn floats<const D: usize>(dims: [usize; D]) -> TensorSpec {
        TensorSpec::new(dims.into(), burn::tensor::DType::F32)
    }

    /// 32-bit integers.
    pub fn numbers<const D: usize>(dims: [usize; D]) -> TensorSpec {
        TensorSpec::new(dims.into(), burn::tensor::DType::I32)
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
