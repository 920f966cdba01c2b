//! From files to a model: a Hugging Face folder or a GGUF file.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod adapt;
mod ends;
mod locate;
mod own;
pub mod safetensors;

pub use crate::stored::Stored;
pub use locate::locate;

use crate::causal_lm::CausalLm;
#[cfg(feature = "chat")]
use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, Layer, Weights};
use crate::families::with_layer;
use crate::gguf::{self, GgufFile};
use crate::layers::LoadedWeights;
use crate::random::check_fits;
use crate::stored::{Fault, refuse_pointer};
use crate::tokenizer::{Specials, Tokenizer};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_store::burn_pack::Tensor as PackTensor;
use burn_store::{ApplyError, ModuleSnapshot, bridge};
use polykv_core::files::read_capped_text;
use polykv_core::ops::{Q8_BLOCK, is_cpu, q8_scheme};
use polykv_core::{Error, Plan, Result, Storage, machine};
use std::path::Path;
use std::sync::Arc;

/// A config.json above this size is refused unread.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A model with its tokenizer and its chat template.
#[derive(Debug)]
pub struct LoadedModel {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    #[cfg(feature = "chat")]
    pub chat: Option<ChatTemplate>,
    /// Ids of the tokens that end an answer.
    pub eos_tokens: Vec<u32>,
}

impl LoadedModel {
    /// Checks that a plan has as many layers as the model.
    ///
    /// # Errors
    /// Another number of layers, with both numbers.
    pub fn check_layers(&self, plan: &Plan) -> Result<()> {
        let layers = self.model.config().layers.len();
        match plan.layers.len() == layers {
            true => Ok(()),
            false => {
                let allowed = format!("{layers}, the model's");
                Err(Error::plan("layers", plan.layers.len(), allowed))
            }
        }
    }

    /// The token ids of a prompt: a user message in the model's chat template, or the text after the tokenizer's begin
    /// token if the model has no template. Nothing in `text` becomes a control token.
    ///
    /// # Errors
    /// A template that does not render, and text that the tokenizer refuses.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        #[cfg(feature = "chat")]
        if let Some(chat) = &self.chat {
            let message = crate::chat::Message::new("user", text);
            return chat.encode(&self.tokenizer, &[message], true);
        }
        let text = self.tokenizer.encode(text, Specials::AsText)?;
        Ok([self.tokenizer.start(), &text].concat())
    }

    /// The token ids of one sequence as a tensor on the model's device, `[1, tokens]`.
    pub fn ids(&self, tokens: &[u32]) -> Tensor<2, Int> {
        let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
        let dims = [1, ids.len()];
        Tensor::from_data(TensorData::new(ids, dims), self.model.device())
    }
}

/// Loads a folder with config.json, tokenizer.json and model.safetensors (or its shards), or a GGUF file, which may be
/// the only one in a folder. Weights and cache are stored in f32.
///
/// # Errors
/// What is missing, malformed or unsupported, with file, field, value found and values allowed; weights that are not
/// finite or that the format they are stored in cannot hold; a file that changes while it is read.
pub fn load(path: &Path, device: &Device) -> Result<LoadedModel> {
    load_as(path, Storage::F32, device)
}

/// Loads a folder or a GGUF file like [`load`](fn@load), with weights and cache in the number formats of `storage`.
///
/// # Errors
/// What is missing, malformed or unsupported, with file, field, value found and values allowed; weights that are not
/// finite or that the format they are stored in cannot hold; a file that changes while it is read; a format that the
/// device or the model's shape does not allow.
pub fn load_as(path: &Path, storage: Storage, device: &Device) -> Result<LoadedModel> {
    let path = &locate(path)?;
    let loaded = match path.is_dir() {
        true => load_folder(path, storage, device)?,
        false => load_gguf(path, storage, device)?,
    };
    // What reading weights took is of no use to answers.
    machine::release_memory();
    Ok(loaded)
}

/// Loads the model alone, without text: config.json and the safetensors files of a folder, or a GGUF file.
///
/// # Errors
/// The errors of [`load_as`], except those of tokenizer and chat template.
pub fn load_weights(path: &Path, storage: Storage, device: &Device) -> Result<Box<dyn CausalLm>> {
    let path = &locate(path)?;
    match path.is_dir() {
        true => folder_model(path, read_config(path)?, storage, device),
        false => {
            let file = Arc::new(GgufFile::open(path)?);
            gguf_model(&file, file.config()?, storage, device)
        }
    }
}

/// Bytes of a model's weights as its files hold them.
///
/// # Errors
/// A file that is missing or malformed, and a config that is refused.
pub fn own_bytes(path: &Path) -> Result<u64> {
    Ok(stored(path)?.iter().map(Stored::own_bytes).sum())
}

/// The number format that suits a model's files and a device: on the CPU [`Storage::Native`] for a file with weights in
/// blocks, in all other cases f32.
///
/// # Errors
/// A file that is missing or malformed, and a config that is refused.
pub fn preferred(path: &Path, device: &Device) -> Result<Storage> {
    let path = &locate(path)?;
    // A folder's config.json is enough to know that it has no blocks.
    if path.is_dir() || !is_cpu(device) {
        return Ok(Storage::F32);
    }
    let in_blocks = |tensor: &Stored| tensor.is_in_blocks(Storage::Native);
    Ok(match stored(path)?.iter().any(in_blocks) {
        true => Storage::Native,
        false => Storage::F32,
    })
}

/// The tensors of a folder or a GGUF file, without their values.
fn stored(path: &Path) -> Result<Vec<Stored>> {
    let path = &locate(path)?;
    match path.is_dir() {
        true => Ok(safetensors::read_folder(path)?.1),
        false => {
            let file = Arc::new(GgufFile::open(path)?);
            gguf::tensors(&file, &file.config()?)
        }
    }
}

/// The shape of a model, without its weights: from the config.json of a folder or the header of a GGUF file.
///
/// # Errors
/// A file that is missing or malformed, and a config that is refused, with file, field, value found and values allowed.
pub fn config(path: &Path) -> Result<ModelConfig> {
    let path = &locate(path)?;
    match path.is_dir() {
        true => read_config(path),
        false => GgufFile::open(path)?.config(),
    }
}

fn folder_model(
    folder: &Path,
    config: ModelConfig,
    storage: Storage,
    device: &Device,
) -> Result<Box<dyn CausalLm>> {
    let (place, tensors) = safetensors::read_folder(folder)?;
    let place = place.display().to_string();
    let tensors = adapt::adapt(&config, tensors)?;
    build(config, tensors, &place, storage, device)
}

fn gguf_model(
    file: &Arc<GgufFile>,
    config: ModelConfig,
    storage: Storage,
    device: &Device,
) -> Result<Box<dyn CausalLm>> {
    let tensors = gguf::tensors(file, &config)?;
    build(config, tensors, file.place(), storage, device)
}

fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join("config.json");
    let place = path.display().to_string();
    let text = read_capped_text(&path, MAX_CONFIG_BYTES)?;
    refuse_pointer(&place, text.as_bytes())?;
    ModelConfig::from_hf_json(&place, &text)
}

fn load_folder(folder: &Path, storage: Storage, device: &Device) -> Result<LoadedModel> {
    let config = read_config(folder)?;
    let tokenizer = Tokenizer::from_json_file(&folder.join("tokenizer.json"))?;
    let tokenizer = tokenizer.fit(config.vocab_size)?;
    #[cfg(feature = "chat")]
    let chat = ChatTemplate::from_folder(folder)?;
    // What reading a vocabulary took would lie beside the weights.
    machine::release_memory();
    Ok(LoadedModel {
        eos_tokens: ends::end_tokens(folder, &config, &tokenizer)?,
        tokenizer,
        #[cfg(feature = "chat")]
        chat,
        model: folder_model(folder, config, storage, device)?,
    })
}

fn load_gguf(path: &Path, storage: Storage, device: &Device) -> Result<LoadedModel> {
    let mut file = GgufFile::open(path)?;
    let config = file.config()?;
    #[cfg(feature = "chat")]
    let chat = ChatTemplate::from_gguf(&file)?;
    let tokenizer = Tokenizer::take_from(&mut file)?.fit(config.vocab_size)?;
    // What reading a vocabulary took would lie beside the weights.
    machine::release_memory();
    let file = Arc::new(file);
    Ok(LoadedModel {
        tokenizer,
        #[cfg(feature = "chat")]
        chat,
        eos_tokens: config.eos_tokens.clone(),
        model: gguf_model(&file, config, storage, device)?,
    })
}

/// Builds a model from its config and its tensors, which have the names of Hugging Face checkpoints: one per projection,
/// and gains of norms that are factors as they stand. `place` names their file in errors.
///
/// # Errors
/// Tensors that are missing, too many, of the wrong shape or with values that are not finite once they are stored; a
/// format that the device or a tensor does not allow.
pub fn build(
    config: ModelConfig,
    tensors: Vec<Stored>,
    place: &str,
    storage: Storage,
    device: &Device,
) -> Result<Box<dyn CausalLm>> {
    let tensors = check_head(&config, tensors, place)?;
    storage.check(device)?;
    let needed = storage
        .weight_bytes(config.parameters())
        .unwrap_or_else(|| tensors.iter().map(Stored::own_bytes).sum());
    check_fits(place, needed, storage, device)?;
    let (named, tensors) = own::read(tensors, storage, device)?;
    let fault = Fault::default();
    let tensors = tensors
        .into_iter()
        .map(|tensor| {
            let dtype = tensor.target(storage, device);
            convert(
                tensor.deferred(storage, device, &fault),
                dtype,
                storage,
                place,
                device,
            )
        })
        .collect::<Result<_>>()?;
    let family = config.family;
    let model = with_layer!(
        family,
        build_family(config, named, tensors, place, storage, device)
    );
    // What could not be read says more than the store that asked for it.
    model.map_err(|e| fault.take().unwrap_or(e))
}

fn build_family<L: Layer + 'static>(
    config: ModelConfig,
    named: own::Named,
    tensors: Vec<PackTensor>,
    place: &str,
    storage: Storage,
    device: &Device,
) -> Result<Box<dyn CausalLm>> {
    let mut weights = Weights::<L>::new(&config, device);
    let loaded = own::assign(&weights, named, place)?;
    apply(&mut weights, tensors, &loaded, place)?;
    let decoder = Decoder::new(config, weights, loaded, storage, device);
    Ok(Box::new(decoder))
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The flag in the config and the tensors in the file must agree: a wrong head gives fluent nonsense. A tied head that
/// is stored all the same is left out if it equals the embedding.
fn check_head(config: &ModelConfig, mut tensors: Vec<Stored>, place: &str) -> Result<Vec<Stored>> {
    let head = tensors.iter().position(|tensor| tensor.name == HEAD);
    match (config.tie_embeddings, head) {
        (true, Some(at)) => {
            let head = tensors.swap_remove(at);
            let embedding = tensors.iter().find(|tensor| tensor.name == EMBEDDING);
            if let Some(embedding) = embedding
                && !head.equals(embedding)?
            {
                return Err(Error::invalid(
                    place,
                    format!("tensor {HEAD}"),
                    format!("not equal to {EMBEDDING}"),
                    "an equal copy or none, since tie_word_embeddings is true",
                ));
            }
            Ok(tensors)
        }
        (false, None) => Err(Error::invalid(
            place,
            format!("tensor {HEAD}"),
            "missing",
            "present, since tie_word_embeddings is false",
        )),
        _ => Ok(tensors),
    }
}

fn apply<M: ModuleSnapshot>(
    module: &mut M,
    tensors: Vec<PackTensor>,
    loaded: &LoadedWeights,
    place: &str,
) -> Result<()> {
    // Matrices are enums while they are loaded, whose variants have no place in a tensor's name.
    let result = module.apply(tensors, None, None, true);
    let tensor = |name: &str| format!("tensor {name}");
    if let Some(error) = result.errors.first() {
        return Err(match error {
            ApplyError::ShapeMismatch {
                path,
                expected,
                found,
            } => Error::invalid(
                place,
                format!("shape of tensor {path}"),
                dims(found),
                dims(expected),
            ),
            ApplyError::DTypeMismatch {
                path,
                expected,
                found,
            } => Error::invalid(
                place,
                format!("dtype of tensor {path}"),
                format!("{found:?}"),
                format!("{expected:?}"),
            ),
            ApplyError::AdapterError { path, message }
            | ApplyError::LoadError { path, message } => {
                Error::invalid(place, tensor(path), message, "readable data")
            }
        });
    }
    let missing: Vec<_> = result.missing.iter().map(|(name, _)| name).collect();
    let missing: Vec<_> = missing
        .into_iter()
        .filter(|name| !loaded.has(name))
        .collect();
    if let Some(name) = missing.first() {
        let count = missing.len();
        return Err(Error::invalid(
            place,
            tensor(name),
            format!("missing ({count} in all)"),
            "present",
        ));
    }
    if let Some(name) = result.unused.first() {
        let count = result.unused.len();
        return Err(Error::invalid(
            place,
            tensor(name),
            format!("unknown ({count} in all)"),
            "a tensor of the model",
        ));
    }
    Ok(())
}

/// `[96, 64]`
fn dims(shape: &Shape) -> String {
    format!("{:?}", shape.as_slice())
}

/// Defers the conversion to `dtype` to the moment when the tensor is uploaded.
fn convert(
    tensor: PackTensor,
    dtype: DType,
    storage: Storage,
    place: &str,
    device: &Device,
) -> Result<PackTensor> {
    let shape = tensor.shape.clone();
    if tensor.dtype == dtype {
        return Ok(tensor);
    }
    let name = tensor.name.clone();
    if !matches!(dtype, DType::QFloat(_)) {
        let convert = move |data: TensorData| data.convert_dtype(dtype);
        return Ok(bridge::map_data(tensor, name, dtype, shape, convert));
    }
    let columns = shape.as_slice().last().copied().unwrap_or(0);
    if !columns.is_multiple_of(Q8_BLOCK) {
        let field = format!("columns of tensor {name}, for dtype {storage}");
        return Err(Error::invalid(
            place,
            field,
            columns,
            format!("a multiple of {Q8_BLOCK}"),
        ));
    }
    let device = device.clone();
    Ok(bridge::map_data(tensor, name, dtype, shape, move |data| {
        let wide = data.convert_dtype(DType::F32);
        let wide = Tensor::<2>::from_data(wide, &device);
        wide.quantize_dynamic(&q8_scheme()).into_data()
    }))
}
