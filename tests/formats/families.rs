//! A GGUF file of each family, made from the tiny checkpoints as llama.cpp's converter makes them, against the checkpoints.

use super::fixture;
use super::gguf::logits;
use super::writer::Gguf;
use burn::tensor::Device;
use half::bf16;
use polykv::Storage;
use polykv::models::load;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// GGML's numbers of the formats that are written.
const F32: u32 = 0;
const BF16: u32 = 30;

/// One family's files: what a converter does to its tensors, and keys that only it has.
struct Written {
    folder: &'static str,
    architecture: &'static str,
    /// Rows of queries and keys in the order of interleaved rotation.
    reordered: bool,
    /// Gains of norms, where the checkpoint has what is above one.
    one_more: bool,
    keys: fn(&mut Gguf, &Value),
}

const FAMILIES: [Written; 7] = [
    Written {
        folder: "tiny-qwen2",
        architecture: "qwen2",
        reordered: false,
        one_more: false,
        // Its converter leaves out the window.
        keys: |file, _| file.uint("qwen2.attention.key_length", 16),
    },
    Written {
        folder: "tiny-gemma3",
        architecture: "gemma3",
        reordered: false,
        one_more: true,
        keys: |file, _| {
            file.uint("gemma3.attention.sliding_window", 16);
            file.uint("gemma3.attention.key_length", 16);
            file.uint("gemma3.attention.value_length", 16);
            file.text("gemma3.rope.scaling.type", "linear");
            file.float("gemma3.rope.scaling.factor", 8.0);
            file.float("gemma3.attention.scale", 1.0 / 24f32.sqrt());
        },
    },
    Written {
        folder: "tiny-gemma2",
        architecture: "gemma2",
        reordered: false,
        one_more: true,
        keys: |file, _| {
            file.uint("gemma2.attention.sliding_window", 16);
            file.uint("gemma2.attention.key_length", 16);
            file.float("gemma2.attn_logit_softcapping", 2.0);
            file.float("gemma2.final_logit_softcapping", 6.0);
        },
    },
    Written {
        folder: "tiny-mistral",
        architecture: "llama",
        reordered: true,
        one_more: false,
        keys: |file, _| {
            file.uint("llama.attention.sliding_window", 24);
            file.uint("llama.attention.key_length", 16);
            file.uint("llama.rope.dimension_count", 16);
        },
    },
    Written {
        folder: "tiny-phi3",
        architecture: "phi3",
        reordered: false,
        one_more: false,
        keys: |file, config| {
            file.uint("phi3.rope.dimension_count", 12);
            file.uint("phi3.rope.scaling.original_context_length", 32);
            file.uint("phi3.attention.sliding_window", 0);
            file.float("phi3.rope.scaling.attn_factor", (1.4f64).sqrt() as f32);
            for (name, key) in [("long", "long_factor"), ("short", "short_factor")] {
                let factors = config["rope_scaling"][key].as_array().unwrap();
                let factors = factors.iter().map(|x| x.as_f64().unwrap() as f32);
                let data: Vec<u8> = factors.flat_map(f32::to_le_bytes).collect();
                file.tensor(&format!("rope_factors_{name}.weight"), &[6], F32, &data);
            }
        },
    },
    Written {
        folder: "tiny-smollm3",
        architecture: "smollm3",
        reordered: true,
        one_more: false,
        keys: |file, _| file.uint("smollm3.rope.dimension_count", 8),
    },
    Written {
        folder: "tiny-qwen3-moe",
        architecture: "qwen3moe",
        reordered: false,
        one_more: false,
        keys: |file, _| {
            file.uint("qwen3moe.attention.key_length", 16);
            file.uint("qwen3moe.expert_count", 8);
            file.uint("qwen3moe.expert_used_count", 2);
            file.uint("qwen3moe.expert_feed_forward_length", 24);
        },
    },
];

impl Written {
    fn gguf(&self) -> Gguf {
        let folder = fixture(self.folder);
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let mut file = Gguf::default();
        file.text("general.architecture", self.architecture);
        for (key, field) in [
            ("block_count", "num_hidden_layers"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
        ] {
            let key = format!("{}.{key}", self.architecture);
            file.uint(&key, config[field].as_u64().unwrap() as u32);
        }
        let key = |name: &str| format!("{}.{name}", self.architecture);
        let number = |field: &str| config[field].as_f64().unwrap() as f32;
        file.float(&key("rope.freq_base"), number("rope_theta"));
        file.float(
            &key("attention.layer_norm_rms_epsilon"),
            number("rms_norm_eps"),
        );
        file.uint("tokenizer.ggml.bos_token_id", 1);
        file.uint("tokenizer.ggml.eos_token_id", 2);
        (self.keys)(&mut file, &config);

        let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
        let weights = SafeTensors::deserialize(&weights).unwrap();
        let mut experts: BTreeMap<String, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
        for (name, tensor) in weights.iter() {
            let (name, expert) = self.name(name);
            match expert {
                Some(expert) => {
                    let data = tensor.data().to_vec();
                    let of = experts.entry(name).or_default();
                    of.push((expert, data));
                }
                None => self.write(&mut file, &name, &tensor, &config),
            }
        }
        for (name, mut all) in experts {
            all.sort();
            let shape = match name.contains("down") {
                true => [all.len(), 32, 24],
                false => [all.len(), 24, 32],
            };
            let data: Vec<u8> = all.into_iter().flat_map(|(_, data)| data).collect();
            file.tensor(&name, &shape, BF16, &data);
        }
        file
    }

    fn write(&self, file: &mut Gguf, name: &str, tensor: &TensorView, config: &Value) {
        let heads = match name {
            _ if !self.reordered => None,
            _ if name.contains("attn_q") => Some("num_attention_heads"),
            _ if name.contains("attn_k") => Some("num_key_value_heads"),
            _ => None,
        };
        match (tensor.shape(), heads) {
            // Converters write vectors as F32.
            ([_], _) => {
                let gain = if self.one_more { 1.0 } else { 0.0 };
                let values = tensor
                    .data()
                    .chunks_exact(2)
                    .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32() + gain);
                let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
                file.tensor(name, tensor.shape(), F32, &data);
            }
            ([rows, columns], Some(heads)) => {
                let heads = config[heads].as_u64().unwrap() as usize;
                let row = columns * 2;
                let half = rows / heads / 2;
                let mut data = Vec::new();
                for head in tensor.data().chunks_exact(rows / heads * row) {
                    for pair in 0..half {
                        data.extend(&head[pair * row..][..row]);
                        data.extend(&head[(half + pair) * row..][..row]);
                    }
                }
                file.tensor(name, tensor.shape(), BF16, &data);
            }
            (shape, _) => file.tensor(name, shape, BF16, tensor.data()),
        }
    }

    /// The file's name of a checkpoint tensor, after the gguf package's tables, and which expert it is of.
    fn name(&self, name: &str) -> (String, Option<usize>) {
        let parts: Vec<&str> = name.split('.').collect();
        let one = match parts[..] {
            ["model", "embed_tokens", kind] => format!("token_embd.{kind}"),
            ["model", "norm", kind] => format!("output_norm.{kind}"),
            ["lm_head", kind] => format!("output.{kind}"),
            [
                "model",
                "layers",
                layer,
                "mlp",
                "experts",
                expert,
                projection,
                kind,
            ] => {
                let projection = projection.strip_suffix("_proj").unwrap();
                let name = format!("blk.{layer}.ffn_{projection}_exps.{kind}");
                return (name, Some(expert.parse().unwrap()));
            }
            ["model", "layers", layer, module, kind] => {
                format!("blk.{layer}.{}.{kind}", self.norm(module))
            }
            ["model", "layers", layer, "mlp", "gate", kind] => {
                format!("blk.{layer}.ffn_gate_inp.{kind}")
            }
            ["model", "layers", layer, _, projection, kind] => {
                let part = match projection {
                    "q_proj" => "attn_q",
                    "k_proj" => "attn_k",
                    "v_proj" => "attn_v",
                    "o_proj" => "attn_output",
                    "q_norm" => "attn_q_norm",
                    "k_norm" => "attn_k_norm",
                    "qkv_proj" => "attn_qkv",
                    "gate_proj" => "ffn_gate",
                    "up_proj" | "gate_up_proj" => "ffn_up",
                    "down_proj" => "ffn_down",
                    other => panic!("{other}"),
                };
                format!("blk.{layer}.{part}.{kind}")
            }
            _ => panic!("{name}"),
        };
        (one, None)
    }

    fn norm(&self, module: &str) -> &'static str {
        match (self.one_more, module) {
            (_, "input_layernorm") => "attn_norm",
            (false, "post_attention_layernorm") => "ffn_norm",
            (true, "post_attention_layernorm") => "post_attention_norm",
            (true, "pre_feedforward_layernorm") => "ffn_norm",
            (true, "post_feedforward_layernorm") => "post_ffw_norm",
            (_, other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_file_of_each_family_equals_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let prompt: Vec<i64> = (3..93).collect();
    for family in &FAMILIES {
        let name = family.folder;
        let path = dir.path().join(format!("{name}.gguf"));
        family.gguf().write(&path);
        let folder = match name {
            "tiny-qwen2" => without_window(dir.path(), name),
            _ => fixture(name),
        };
        let from_file = load::load_weights(&path, Storage::F32, &device).unwrap();
        let from_folder = load::load_weights(&folder, Storage::F32, &device).unwrap();
        let (file, folder) = (from_file.config(), from_folder.config());
        match file.attention_scale.zip(folder.attention_scale) {
            // An f32 in the file.
            Some((file, folder)) => assert!((file / folder - 1.0).abs() < 1e-7, "{name}"),
            None => assert_eq!(file, folder),
        }
        assert_eq!(file.layers, folder.layers, "{name}");
        assert_eq!(file.fingerprint(), folder.fingerprint());
        let (found, wanted) = (logits(&*from_file, &prompt), logits(&*from_folder, &prompt));
        let worst = polykv::testing::max_difference(&found, &wanted);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

/// Files of Qwen do not say which layers a window would be for.
#[test]
fn a_window_without_a_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let qwen2 = |window| {
        let mut file = FAMILIES[0].gguf();
        file.uint("qwen2.attention.sliding_window", window);
        file.write(&path);
        load::config(&path)
    };
    let message = qwen2(127).unwrap_err().to_string();
    for part in ["qwen2.attention.sliding_window 127", "the context, 128"] {
        assert!(message.contains(part), "no {part} in {message}");
    }
    assert_eq!(qwen2(128).unwrap().windows(), [None; 3]);
}

/// As Gemma 3's larger checkpoints are: the text model beside one for images, under names of older and newer versions.
#[test]
fn the_text_model_of_one_with_images_equals_itself() {
    let device = Device::flex();
    let prompt: Vec<i64> = (3..63).collect();
    let read = |file: &str| std::fs::read(fixture("tiny-gemma3").join(file)).unwrap();
    let text: Value = serde_json::from_slice(&read("config.json")).unwrap();
    let config = serde_json::json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"],
        "text_config": text, "vision_config": {"hidden_size": 7},
    });
    let alone = load::load_weights(&fixture("tiny-gemma3"), Storage::F32, &device).unwrap();
    let wanted = logits(&*alone, &prompt);
    let weights = read("model.safetensors");
    let weights = SafeTensors::deserialize(&weights).unwrap();
    for (prefix, vision) in [
        ("language_model.model.", "vision_tower.patch.weight"),
        ("model.language_model.", "model.vision_tower.patch.weight"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors: Vec<(String, TensorView)> = weights
            .iter()
            .map(|(name, tensor)| (name.replacen("model.", prefix, 1), tensor))
            .collect();
        let patch = TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
        tensors.push((vision.to_owned(), patch));
        let bytes = safetensors::serialize(tensors, None).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let model = load::load_weights(dir.path(), Storage::F32, &device).unwrap();
        assert_eq!(model.config(), alone.config());
        assert_eq!(logits(&*model, &prompt), wanted, "{prefix}");
    }
}

/// A copy of a checkpoint whose window is not used.
fn without_window(dir: &Path, name: &str) -> std::path::PathBuf {
    let folder = dir.join("folder");
    std::fs::create_dir(&folder).unwrap();
    let read = |file: &str| std::fs::read(fixture(name).join(file)).unwrap();
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["use_sliding_window"] = Value::Bool(false);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), read("model.safetensors")).unwrap();
    folder
}
