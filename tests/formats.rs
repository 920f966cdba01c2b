//! Weight files: shards with an index, and GGUF with its number formats, against `tests/fixtures/generate.py`.

#![cfg(feature = "flex")]

#[path = "formats/families.rs"]
mod families;

use burn::tensor::{Device, Int, Tensor, TensorData};
use polykv::models::gguf::GgufFile;
use polykv::models::{CausalLm, PrefillOptions, load};
use polykv::{KvCache, Plan, Storage};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

// ---------------------------------------------------------------- shards

fn copy_of_shards() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", INDEX, SHARDS[0], SHARDS[1]] {
        let content = std::fs::read(fixture("tiny-qwen3").join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn edit_index(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join(INDEX);
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut index["weight_map"]);
    std::fs::write(path, index.to_string()).unwrap();
}

#[test]
fn an_index_at_odds_with_its_shards_is_refused() {
    const NORM: &str = "model.norm.weight";
    const HEAD: &str = "lm_head.weight";
    type Spoil = fn(&Path);
    let cases: [(Spoil, &[&str]); 8] = [
        (
            |folder| std::fs::remove_file(folder.join(SHARDS[1])).unwrap(),
            &[SHARDS[1], "No such file"],
        ),
        (
            |folder| edit_index(folder, |map| map["model.extra.weight"] = json!(SHARDS[0])),
            &[SHARDS[0], "model.extra.weight", "missing", INDEX],
        ),
        (
            |folder| {
                edit_index(folder, |map| {
                    map.as_object_mut().unwrap().remove(HEAD);
                });
            },
            &[SHARDS[0], HEAD, "not listed", INDEX],
        ),
        (
            |folder| edit_index(folder, |map| map[HEAD] = json!(SHARDS[1])),
            &[SHARDS[0], HEAD, "not listed", INDEX],
        ),
        (
            |folder| edit_index(folder, |map| map[HEAD] = json!("../model.safetensors")),
            &[INDEX, "\"../model.safetensors\"", "plain name"],
        ),
        // A tensor in both shards.
        (
            |folder| {
                std::fs::copy(folder.join(SHARDS[0]), folder.join(SHARDS[1])).unwrap();
            },
            &[SHARDS[1], "not listed", INDEX],
        ),
        (
            |folder| {
                let text = std::fs::read_to_string(folder.join(INDEX)).unwrap();
                let twice = format!("\"{NORM}\": \"{}\", \"{NORM}\"", SHARDS[0]);
                let text = text.replace(&format!("\"{NORM}\""), &twice);
                std::fs::write(folder.join(INDEX), text).unwrap();
            },
            &[INDEX, NORM, "twice"],
        ),
        (
            |folder| std::fs::write(folder.join(INDEX), vec![b' '; (8 << 20) + 1]).unwrap(),
            &[INDEX, "size", "8388609 bytes", "8388608"],
        ),
    ];
    for (spoil, parts) in cases {
        let folder = copy_of_shards();
        spoil(folder.path());
        let error = load::load_weights(folder.path(), Storage::F32, &Device::flex()).unwrap_err();
        let message = error.to_string();
        assert!(
            error.is_refusal() && message.lines().count() == 1,
            "{message}"
        );
        for part in parts {
            assert!(message.contains(part), "no {part} in {message}");
        }
    }
}

// ---------------------------------------------------------------- GGUF

/// A GGUF file in the making: metadata and tensors in the file's own form.
#[derive(Default)]
struct Gguf {
    values: Vec<u8>,
    value_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl Gguf {
    fn put_text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn value(&mut self, key: &str, kind: u32, put: impl FnOnce(&mut Vec<u8>)) {
        Self::put_text(&mut self.values, key);
        self.values.extend(kind.to_le_bytes());
        put(&mut self.values);
        self.value_count += 1;
    }

    fn uint(&mut self, key: &str, value: u32) {
        self.value(key, 4, |out| out.extend(value.to_le_bytes()));
    }

    fn float(&mut self, key: &str, value: f32) {
        self.value(key, 6, |out| out.extend(value.to_le_bytes()));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.value(key, 8, |out| Self::put_text(out, value));
    }

    /// `shape` is row-major, `kind` is ggml's number of the format.
    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        Self::put_text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        for dim in shape.iter().rev() {
            self.infos.extend((*dim as u64).to_le_bytes());
        }
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.tensor_count += 1;
    }

    fn write(&self, path: &Path) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.value_count.to_le_bytes());
        out.extend(&self.values);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        std::fs::write(path, out).unwrap();
    }
}

#[test]
fn number_formats_equal_the_gguf_package() {
    let bytes = std::fs::read(fixture("quants.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let formats = [
        (1, "F16"),
        (2, "Q4_0"),
        (3, "Q4_1"),
        (6, "Q5_0"),
        (7, "Q5_1"),
        (8, "Q8_0"),
        (12, "Q4_K"),
        (13, "Q5_K"),
        (14, "Q6_K"),
        (30, "BF16"),
    ];
    let mut file = Gguf::default();
    for (kind, name) in formats {
        let raw = golden.tensor(&format!("{name}.raw")).unwrap();
        file.tensor(name, &[2, 512], kind, raw.data());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quants.gguf");
    file.write(&path);
    let file = GgufFile::open(&path).unwrap();
    for (_, name) in formats {
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

fn tiny_qwen3() -> Gguf {
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
fn a_part_of_a_split_file_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x-00002-of-00003.gguf");
    let mut file = tiny_qwen3();
    for (key, value) in [("split.no", 1u16), ("split.count", 3)] {
        file.value(key, 2, |out| out.extend(value.to_le_bytes()));
    }
    file.write(&path);
    let message = load::config(&path).unwrap_err().to_string();
    for part in [
        "part 2 of a GGUF file split in 3",
        "x-00002-of-00003.gguf",
        "llama-gguf-split --merge",
    ] {
        assert!(message.contains(part), "no {part} in {message}");
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
    let message = file.read_f32(&name).unwrap_err().to_string();
    assert!(
        message.contains("x.gguf: file is changed while it was read, 1000 bytes now"),
        "{message}"
    );
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
        message.contains("number of GGUF files is 2: x.gguf, y.gguf"),
        "{message}"
    );
}

// ---------------------------------------------------------------- end tokens

#[test]
fn end_tokens_come_from_every_file_that_names_some() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let content = std::fs::read(fixture("tiny-llama31").join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    };
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        copy(name);
    }
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let ends = || load::load(dir.path(), &Device::flex()).map(|model| model.eos_tokens);
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["eos_token_id"] = json!(0);
    write("config.json", &config.to_string());
    // `<|im_end|>`, which tokenizer_config.json names, is 2.
    assert_eq!(ends().unwrap(), [0, 2]);
    write("generation_config.json", r#"{"eos_token_id": [0, 7]}"#);
    assert_eq!(ends().unwrap(), [0, 7, 2]);
    write(
        "tokenizer_config.json",
        r#"{"eos_token": {"content": "<|im_start|>"}}"#,
    );
    assert_eq!(ends().unwrap(), [0, 7, 1]);
    write("generation_config.json", r#"{"eos_token_id": 320}"#);
    let message = ends().unwrap_err().to_string();
    assert!(
        message.contains("generation_config.json") && message.contains("320"),
        "{message}"
    );
}

fn logits(model: &dyn CausalLm, prompt: &[i64]) -> Vec<f32> {
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
