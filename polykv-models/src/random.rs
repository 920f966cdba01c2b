//! Models of an exact shape with seeded random weights, made on the device: speed and memory without a file.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use crate::causal_lm::CausalLm;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer, Weights};
use crate::families::with_layer;
use crate::layers::{LoadedWeights, Matrices};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Distribution, Shape, Tensor};
use polykv_core::ops::Weight;
use polykv_core::{At, Error, Result, Storage, machine, ops};
use std::collections::BTreeMap;

/// The standard deviation that the published models were initialised with.
const DEVIATION: f64 = 0.02;

/// A model of an exact shape with normally distributed weights, norm gains of one and biases of zero. The same seed and device give the
/// same weights. `name` stands for the model in errors.
///
/// # Errors
/// A config that is out of range; a storage that the device or the shape does not allow; on the CPU, weights that the
/// free memory cannot hold.
pub fn random_weights(
    name: &str,
    config: ModelConfig,
    seed: u64,
    storage: Storage,
    device: &Device,
) -> Result<Box<dyn CausalLm>> {
    config.validate(name)?;
    storage.check(device)?;
    let Some(needed) = storage.weight_bytes(config.parameters()) else {
        let reason = "random weights come from no file; allowed: all other formats";
        return Err(Error::unsupported(format!("dtype {storage}"), reason));
    };
    check_fits(name, needed, storage, device)?;
    device.seed(seed);
    let family = config.family;
    with_layer!(family, random_family(config, storage, device))
}

fn random_family<L: Layer + 'static>(
    config: ModelConfig,
    storage: Storage,
    device: &Device,
) -> Result<Box<dyn CausalLm>> {
    let weights = Weights::<L>::new(&config, device);
    let mut loaded = LoadedWeights::default();
    if storage == Storage::Q4K {
        let matrices: BTreeMap<_, _> = Matrices::of(&weights).into_iter().collect();
        for (name, (id, shape)) in matrices {
            let values: Tensor<2> = normal(shape.into(), device);
            let values: Vec<f32> = values.try_into_vec_as().map_err(ops::read_error)?;
            let weight = Weight::q4k(shape, &values, device).at(&name)?;
            loaded.insert(id, name, weight);
        }
    }
    let weights = weights.map(&mut Fill {
        storage,
        bias: false,
        loaded: &loaded,
    });
    let decoder = Decoder::new(config, weights, loaded, storage, device);
    Ok(Box::new(decoder))
}

fn normal<const D: usize>(shape: Shape, device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, DEVIATION), device)
}

/// Refuses weights that the free memory cannot hold, on the CPU of a system that tells how much that is.
pub(crate) fn check_fits(name: &str, needed: u64, storage: Storage, device: &Device) -> Result<()> {
    match machine::free_memory() {
        Some(free) if ops::is_cpu(device) => check_memory(name, needed, storage, free),
        _ => Ok(()),
    }
}

fn check_memory(name: &str, needed: u64, storage: Storage, free: u64) -> Result<()> {
    if needed <= free {
        return Ok(());
    }
    let found = format!("{needed} bytes in {storage}");
    let allowed = format!("at most {free} bytes, the machine's free memory");
    Err(Error::invalid(name, "size of the weights", found, allowed))
}

/// Gives every weight that does not exist yet its values, unless another one takes its place.
struct Fill<'a> {
    storage: Storage,
    /// Whether the current weight is a bias.
    bias: bool,
    loaded: &'a LoadedWeights,
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.bias = name == "bias";
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        // Only norms and biases have one axis.
        let values = match D {
            1 if self.bias => Tensor::zeros(shape, &device),
            1 => Tensor::ones(shape, &device),
            _ if self.loaded.takes(&param.id) => return param,
            _ => {
                let values = normal(shape, &device);
                match self.storage.weights() {
                    Some(DType::QFloat(scheme)) => values.quantize_dynamic(&scheme),
                    Some(dtype) => values.cast(dtype),
                    None => values,
                }
            }
        };
        Param::initialized(param.id, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_beyond_the_free_memory_are_refused_with_both_numbers() {
        let config = ModelConfig::llama_3_1_8b();
        let needed = 8_030_261_248 * 4;
        assert_eq!(Storage::F32.weight_bytes(config.parameters()), Some(needed));
        check_memory("llama-3.1-8b", needed, Storage::F32, needed).unwrap();
        let error = check_memory("llama-3.1-8b", needed, Storage::F32, needed - 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "llama-3.1-8b: size of the weights is 32121044992 bytes in f32; \
             allowed: at most 32121044991 bytes, the machine's free memory"
        );
    }

    #[cfg(feature = "flex")]
    #[test]
    fn a_seed_decides_the_weights() {
        use crate::PrefillOptions;
        use crate::config::{Experts, Family, LayerConfig};
        use burn::tensor::{Int, TensorData};
        use polykv_core::{KvCache, Plan};

        let device = Device::flex();
        let layer = LayerConfig::plain(1e4, 8);
        let config = |family| ModelConfig {
            family,
            vocab_size: 50,
            hidden_size: 32,
            intermediate_size: 48,
            layers: vec![
                layer.clone(),
                LayerConfig {
                    rope: None,
                    sparse: true,
                    ..layer.clone()
                },
            ],
            experts: Some(Experts {
                count: 4,
                used: 2,
                intermediate_size: 24,
                normalize: true,
            }),
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            ..ModelConfig::smollm2_135m()
        };
        let logits = |family, seed| {
            let model =
                random_weights("test", config(family), seed, Storage::F32, &device).unwrap();
            let mut cache = KvCache::new(Plan::full(2), model.cache_shape(1), &device).unwrap();
            let ids = Tensor::<2, Int>::from_data(TensorData::new(vec![3i64, 7], [1, 2]), &device);
            let options = &mut PrefillOptions::default();
            let logits = model.prefill(ids, &mut cache, options).unwrap();
            logits.try_into_vec_as::<f32>().unwrap()
        };
        // The device's seed is shared by all tests of the process, so this is the only one that draws.
        for family in Family::ALL {
            let first = logits(family, 1);
            assert_eq!(first, logits(family, 1));
            assert_ne!(first, logits(family, 2));
            assert!(first.iter().all(|x| x.is_finite()) && first.iter().any(|x| *x != first[0]));
        }
    }
}
