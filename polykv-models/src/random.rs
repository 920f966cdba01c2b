//! Models of an exact shape with seeded random weights, made on the device: speed and memory without a file.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

use crate::causal_lm::CausalLm;
use crate::config::{Family, ModelConfig};
use crate::decoder::{Decoder, Layer, Weights};
use crate::llama::LlamaLayer;
use crate::qwen3::Qwen3Layer;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Tensor};
use polykv_core::ops::q8_scheme;
use polykv_core::{Error, Result, Storage, machine, ops};

/// The standard deviation that the published models were initialised with.
const DEVIATION: f64 = 0.02;

/// A model of an exact shape with normally distributed weights and norm gains of one. The same seed and device give the
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
    check_fits(name, &config, storage, device)?;
    device.seed(seed);
    Ok(match config.family {
        Family::Llama => family::<LlamaLayer>(config, storage, device),
        Family::Qwen3 => family::<Qwen3Layer>(config, storage, device),
    })
}

fn family<L: Layer + 'static>(
    config: ModelConfig,
    storage: Storage,
    device: &Device,
) -> Box<dyn CausalLm> {
    let weights = Weights::<L>::new(&config, device).map(&mut Fill { storage });
    Box::new(Decoder::new(config, weights, storage, device))
}

/// Refuses weights that the free memory cannot hold, on the CPU of a system that tells how much that is.
pub(crate) fn check_fits(
    name: &str,
    config: &ModelConfig,
    storage: Storage,
    device: &Device,
) -> Result<()> {
    match machine::free_memory() {
        Some(free) if ops::is_cpu(device) => check_memory(name, config, storage, free),
        _ => Ok(()),
    }
}

fn check_memory(name: &str, config: &ModelConfig, storage: Storage, free: u64) -> Result<()> {
    let needed = storage.weight_bytes(config.parameters());
    if needed <= free {
        return Ok(());
    }
    let found = format!("{needed} bytes in {storage}");
    let allowed = format!("at most {free} bytes, the machine's free memory");
    Err(Error::invalid(name, "size of the weights", found, allowed))
}

/// Gives every weight that does not exist yet its values.
struct Fill {
    storage: Storage,
}

impl ModuleMapper for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        // Only norms have one axis.
        let values = match D {
            1 => Tensor::ones(shape, &device),
            _ => {
                let values = Tensor::random(shape, Distribution::Normal(0.0, DEVIATION), &device);
                match self.storage {
                    Storage::Q8 => values.quantize_dynamic(&q8_scheme()),
                    storage => values.cast(storage.weights()),
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
        check_memory("llama-3.1-8b", &config, Storage::F32, needed).unwrap();
        let error = check_memory("llama-3.1-8b", &config, Storage::F32, needed - 1).unwrap_err();
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
        use burn::tensor::{Int, TensorData};
        use polykv_core::{KvCache, Plan};

        let device = Device::flex();
        let config = |family| ModelConfig {
            family,
            vocab_size: 50,
            hidden_size: 32,
            intermediate_size: 48,
            layers: 2,
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
        for family in [Family::Llama, Family::Qwen3] {
            let first = logits(family, 1);
            assert_eq!(first, logits(family, 1));
            assert_ne!(first, logits(family, 2));
            assert!(first.iter().all(|x| x.is_finite()) && first.iter().any(|x| *x != first[0]));
        }
    }
}
