//! GGUF files: number formats against the gguf package, a model against its checkpoint.

use super::writer::{Gguf, KINDS};
use super::{SHARDS, fixture};
use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::gguf::GgufFile;
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::{KvCache, Plan, Storage};
use safetensors::SafeTensors;
use std::path::Path;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn number_formats_equal_the_gguf_package() {
    let bytes = std::fs::read(fixture("quants.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    // The fixture has all but plain F32.
    let formats = &KINDS[1..];
    let mut file = Gguf::default();
    for &(kind, name) in formats {
        let raw = golden.tensor(&format!("{name}.raw")).unwrap();
        file.tensor(name, &[2, 512], kind, raw.data());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quants.gguf");
    file.write(&path);
    let file = GgufFile::open(&path).unwrap();
    for &(_, name) in formats {
        let wanted = golden.tensor(&format!("{name}.f32")).unwrap();
        assert_eq!(file.tensor(name).unwrap().ggml_type.name(), name);
        assert_eq!(
            file.read_f32(name).unwrap(),
            floats(wanted.data()),
            "{name}"
        );
    }
}

/// The file's name of a checkpoint tensor, after the gguf package's table for Qwen3.
fn gguf_name(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let block = |part: &str| format!("blk.{}.{part}.weight", parts[2]);
    match parts[..] {
        ["model", "embed_tokens", _] => "token_embd.weight".into(),
        ["model", "norm", _] => "output_norm.weight".into(),
        ["lm_head", _] => "output.weight".into(),
        [_, _, _, "input_layernorm", _] => block("attn_norm"),
        [_, _, _, "post_attention_layernorm", _] => block("ffn_norm"),
        [_, _, _, "self_attn", "q_proj", _] => block("attn_q"),
        [_, _, _, "self_attn", "k_proj", _] => block("attn_k"),
        [_, _, _, "self_attn", "v_proj", _] => block("attn_v"),
        [_, _, _, "self_attn", "o_proj", _] => block("attn_output"),
        [_, _, _, "self_attn", "q_norm", _] => block("attn_q_norm"),
        [_, _, _, "self_attn", "k_norm", _] => block("attn_k_norm"),
        [_, _, _, "mlp", "gate_proj", _] => block("ffn_gate"),
        [_, _, _, "mlp", "up_proj", _] => block("ffn_up"),
        [_, _, _, "mlp", "down_proj", _] => block("ffn_down"),
        _ => panic!("{name}"),
    }
}

pub fn tiny_qwen3() -> Gguf {
    let mut file = Gguf::default();
    file.text("general.architecture", "qwen3");
    for (key, value) in [
        ("qwen3.block_count", 3),
        ("qwen3.context_length", 128),
        ("qwen3.embedding_length", 48),
        ("qwen3.feed_forward_length", 96),
        ("qwen3.attention.head_count", 4),
        ("qwen3.attention.head_count_kv", 2),
        ("qwen3.attention.key_length", 32),
        ("qwen3.attention.value_length", 32),
        ("qwen3.rope.scaling.original_context_length", 32),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        file.uint(key, value);
    }
    file.float("qwen3.rope.freq_base", 10_000.0);
    file.float("qwen3.rope.scaling.factor", 4.0);
    file.float("qwen3.attention.layer_norm_rms_epsilon", 1e-6);
    file.text("qwen3.rope.scaling.type", "yarn");
    for shard in SHARDS {
        let bytes = std::fs::read(fixture("tiny-qwen3").join(shard)).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            // Converters write vectors as F32, whose upper half a bf16 is.
            let (kind, data) = match tensor.shape() {
                [_] => {
                    let wide = tensor.data().chunks_exact(2);
                    (0, wide.flat_map(|b| [0, 0, b[0], b[1]]).collect())
                }
                _ => (30, tensor.data().to_vec()),
            };
            file.tensor(&gguf_name(name), tensor.shape(), kind, &data);
        }
    }
    file
}

#[test]
fn a_second_name_of_a_tensor_is_refused() {
    for layer in ["00", "+0"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let mut file = tiny_qwen3();
        let name = format!("blk.{layer}.attn_norm.weight");
        file.tensor(&name, &[48], 0, &[0; 48 * 4]);
        file.write(&path);
        let error = load::load_weights(&path, Storage::F32, &Device::flex()).unwrap_err();
        assert!(
            error.is_refusal() && error.to_string().contains(&name),
            "{error}"
        );
    }
}

#[test]
fn a_file_cut_after_it_was_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    tiny_qwen3().write(&path);
    let file = GgufFile::open(&path).unwrap();
    let name = file.tensor_names().next().unwrap().to_owned();
    file.read_f32(&name).unwrap();
    let other = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    other.set_len(1000).unwrap();
    let raw = file.append_part(&name, 0..0, &mut Vec::new());
    for error in [file.read_f32(&name).unwrap_err(), raw.unwrap_err()] {
        let message = error.to_string();
        assert!(
            message.contains("x.gguf: file is changed while it was read, 1000 bytes now"),
            "{message}"
        );
    }
}

#[test]
fn a_folder_with_one_gguf_file_stands_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, second) = (dir.path().join("x.gguf"), dir.path().join("y.gguf"));
    tiny_qwen3().write(&path);
    std::fs::write(dir.path().join("README.md"), "about it").unwrap();
    let layers = |path: &Path| load::config(path).unwrap().layers.len();
    assert_eq!(load::locate(dir.path()).unwrap(), path);
    assert_eq!(layers(dir.path()), layers(&path));
    let model = load::load_weights(dir.path(), Storage::F32, &Device::flex()).unwrap();
    assert_eq!(model.config().layers.len(), 3);
    std::fs::copy(&path, second).unwrap();
    let message = load::config(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("number of GGUF models is 2: x.gguf, y.gguf"),
        "{message}"
    );
}

pub fn logits(model: &dyn CausalLm, prompt: &[i64]) -> Vec<f32> {
    let plan = Plan::full(model.config().layers.len());
    let mut cache = KvCache::new(plan, model.cache_shape(1), model.device()).unwrap();
    let ids = TensorData::new(prompt.to_vec(), [1, prompt.len()]);
    let ids: Tensor<2, Int> = Tensor::from_data(ids, model.device());
    let logits = model.logits(ids, &mut cache, &mut PrefillOptions::default());
    logits.unwrap().try_into_vec_as().unwrap()
}

#[test]
fn a_qwen3_file_equals_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny-qwen3.gguf");
    tiny_qwen3().write(&path);
    let device = Device::flex();
    let prompt: Vec<i64> = (3..93).collect();
    let from_file = load::load_weights(&path, Storage::F32, &device).unwrap();
    let from_folder = load::load_weights(&fixture("tiny-qwen3"), Storage::F32, &device).unwrap();
    assert_eq!(from_file.config(), from_folder.config());
    assert_eq!(logits(&*from_file, &prompt), logits(&*from_folder, &prompt));
}
