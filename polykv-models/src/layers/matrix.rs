use super::LoadedWeights;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use polykv_core::ops::Weight;

/// A weight matrix `[out, in]`. A checkpoint is loaded into a parameter; [`Matrix::finish_loading`] turns it into what the
/// operators read, which may have another layout.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per matrix of a model")]
pub enum Matrix {
    /// The parameter that a checkpoint is loaded into, in the number format of the storage.
    Loading(Param<Tensor<2>>),
    /// The weight that the operators read.
    Loaded(Loaded),
}

/// A weight in the layout of the operators, after loading.
#[derive(Module, Debug)]
pub struct Loaded {
    #[module(skip)]
    weight: Weight,
}

impl Matrix {
    /// A matrix without values, to load a checkpoint into.
    pub fn new(outputs: usize, inputs: usize, device: &Device) -> Self {
        Self::Loading(super::parameter([outputs, inputs], device))
    }

    /// Ends loading, with the weight that `loaded` has for the parameter, or else what was loaded into it. The loaded tensor
    /// is dropped, so that a weight that takes another layout exists only once.
    pub fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        if let Self::Loading(parameter) = self {
            let unused = super::parameter([0, 0], &parameter.lazy_device());
            let weight = loaded.take(std::mem::replace(parameter, unused));
            *self = Self::Loaded(Loaded { weight });
        }
    }

    /// The weight, as the operators read it.
    ///
    /// # Panics
    /// Before [`Matrix::finish_loading`].
    pub fn weight(&self) -> &Weight {
        match self {
            Self::Loaded(loaded) => &loaded.weight,
            Self::Loading(_) => panic!("a matrix is read before its loading is finished"),
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::module::ParamId;
    use burn::tensor::Distribution;
    use polykv_core::ops::q8_scheme;

    #[test]
    fn a_loaded_matrix_has_the_values_and_is_no_parameter() {
        let values = Tensor::<2>::random([3, 64], Distribution::Default, &Device::flex());
        let rounded = values.clone().quantize_dynamic(&q8_scheme());
        for (stored, wanted) in [
            (values.clone(), values),
            (rounded.clone(), rounded.dequantize()),
        ] {
            let mut matrix = Matrix::Loading(Param::initialized(ParamId::new(), stored));
            assert_eq!(matrix.num_params(), 3 * 64);
            let mut loaded = LoadedWeights::default();
            matrix.finish_loading(&mut loaded);
            assert_eq!(loaded.bytes(), matrix.weight().bytes() as u64);
            assert_eq!(matrix.num_params(), 0);
            assert_eq!(matrix.weight().shape(), [3, 64]);
            let apart = matrix.weight().to_f32().not_equal(wanted).any();
            assert!(!apart.into_scalar::<bool>());
        }
    }
}
