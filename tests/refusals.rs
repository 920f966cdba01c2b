//! What bad input gets: exit code 3 (2 for what the command line's own grammar knows), one line that names the thing,
//! the value found and the value allowed, nothing on standard output, no panic.

mod cli_support;

use cli_support::{Answer, copy_of_tiny_model, generate_args, path_str, polykv, polykv_with, tiny_model};
use serde_json::{Map, Value, json};
use std::path::Path;

/// One line that starts as errors do and holds all `parts`.
fn check(what: &str, code: i32, parts: &[&str], answer: &Answer) {
    let Answer { code: found, stdout, stderr } = answer;
    assert_eq!(*found, code, "{what}: {stderr}");
    assert_eq!(stdout, "", "{what}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert!(stderr.starts_with("error: "), "{what}: {stderr}");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{what}: no '{part}' in {stderr}");
    }
}

/// Spoils a copy of the tiny model and runs it.
fn refused(what: &str, spoil: impl FnOnce(&Path), parts: &[&str]) {
    let model = copy_of_tiny_model();
    spoil(model.path());
    let answer = polykv(&generate_args(model.path(), &["-p", "Hello", "-n", "2"]));
    check(what, 3, parts, &answer);
}

fn refused_file(file: &str, content: impl AsRef<[u8]>, parts: &[&str]) {
    let parts = [&[file], parts].concat();
    refused(parts[1], |model| std::fs::write(model.join(file), content).unwrap(), &parts);
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn config_fields() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("num_hidden_layers", json!(0), &["1 to 1024"]),
        ("num_hidden_layers", json!(1025), &["1 to 1024"]),
        ("num_hidden_layers", json!("3"), &["a whole number"]),
        ("num_hidden_layers", Value::Null, &["missing", "a number"]),
        ("num_attention_heads", json!(0), &["1 to 1024"]),
        ("num_attention_heads", json!(-4), &["a whole number"]),
        ("num_attention_heads", json!(u64::MAX), &["1 to 1024"]),
        ("num_key_value_heads", json!(0), &["1 to 4"]),
        ("num_key_value_heads", json!(3), &["a divisor of num_attention_heads, 4"]),
        ("num_key_value_heads", json!(8), &["1 to 4"]),
        ("head_dim", json!(0), &["1 to 1024"]),
        ("head_dim", json!(15), &["an even number"]),
        ("head_dim", json!(2048), &["1 to 1024"]),
        ("vocab_size", json!(0), &["1 to 16777216"]),
        ("vocab_size", json!(1u64 << 40), &["1 to 16777216"]),
        ("hidden_size", json!(0), &["1 to 1048576"]),
        ("hidden_size", json!(66), &["a multiple of num_attention_heads, 4"]),
        ("intermediate_size", json!(0), &["1 to 4194304"]),
        ("max_position_embeddings", json!(0), &["1 to 67108864"]),
        ("rms_norm_eps", json!(0), &["above 0"]),
        ("rms_norm_eps", json!("1e-5"), &["a number"]),
        ("rope_theta", json!(0), &["above 0"]),
        ("rope_theta", json!(-1.5), &["above 0"]),
        ("rope_theta", json!(1e300), &["above 0, up to 1000000000000"]),
        ("rope_scaling/factor", json!(0), &["above 0"]),
        ("rope_scaling/factor", Value::Null, &["missing"]),
        ("rope_scaling/low_freq_factor", json!(-1), &["above 0"]),
        ("rope_scaling/high_freq_factor", json!(0.5), &["above low_freq_factor, 1"]),
        ("rope_scaling/original_max_position_embeddings", json!(0), &["1 to"]),
        ("rope_scaling/rope_type", json!("yarn"), &["default, linear and llama3"]),
        ("eos_token_id", json!([0, 320]), &["below vocab_size, 320"]),
        ("architectures", json!(["OtherForCausalLM"]), &["LlamaForCausalLM"]),
        ("hidden_act", json!("gelu"), &["not supported"]),
        ("attention_bias", json!(true), &["not supported"]),
        ("quantization_config", json!({"bits": 4}), &["not supported"]),
        ("tie_word_embeddings", json!("yes"), &["true or false"]),
    ];
    for (field, value, parts) in cases {
        let spoil = |model: &Path| {
            edit_json(&model.join("config.json"), |config| {
                if *field == "architectures" {
                    config["model_type"] = json!("other");
                }
                match field.split_once('/') {
                    Some((outer, inner)) => config[outer][inner] = value.clone(),
                    None => config[*field] = value.clone(),
                }
            });
        };
        // Names of fields may be shortened, and a name stands for the field that holds it.
        let name = match *field {
            "rope_scaling/rope_type" => "rope_scaling type",
            "architectures" => "architecture",
            other => other.rsplit('/').next().unwrap(),
        };
        let found = match value {
            Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
            Value::Number(n) if n.as_f64() == Some(1e300) => String::new(),
            other => other.as_str().map_or_else(|| other.to_string(), Into::into),
        };
        let what = format!("{field} {value}");
        refused(&what, spoil, &[&["config.json", name, &found], *parts].concat());
    }
}

#[test]
fn config_files() {
    refused_file("config.json", "{\"a\": ", &["content", "a JSON object"]);
    refused_file("config.json", "[]", &["content", "a JSON object"]);
    refused_file("config.json", b"\xff\xfe", &["UTF-8"]);
    refused_file("config.json", vec![b' '; (1 << 20) + 1], &["size", "1048577", "1048576"]);
    let missing = |model: &Path| std::fs::remove_file(model.join("config.json")).unwrap();
    refused("no config", missing, &["config.json", "No such file"]);
    let huge = |model: &Path| {
        edit_json(&model.join("config.json"), |config| {
            config["num_hidden_layers"] = json!(1024);
            config["hidden_size"] = json!(1 << 20);
            config["intermediate_size"] = json!(1 << 22);
            config["head_dim"] = json!(16);
        });
    };
    refused("huge model", huge, &["config.json", "number of parameters", "up to 2199023255552"]);
}

/// Rewrites the header and the data of the weights.
fn edit_weights(model: &Path, edit: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut data = bytes.split_off(8 + size);
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..]).unwrap();
    edit(&mut header, &mut data);
    let header = Value::Object(header).to_string();
    std::fs::write(&path, safetensors(&header, &data)).unwrap();
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    [&(padded.len() as u64).to_le_bytes()[..], padded.as_bytes(), data].concat()
}

fn end(tensor: &Value) -> u64 {
    tensor.pointer("/data_offsets/1").and_then(Value::as_u64).unwrap_or(0)
}

const NORM: &str = "model.norm.weight";
const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";

#[test]
fn safetensors_headers() {
    type Edit = fn(&mut Map<String, Value>, &mut Vec<u8>);
    let cases: &[(&str, Edit, &[&str])] = &[
        ("truncated", |_, data| data.truncate(data.len() - 100), &["content"]),
        ("trailing bytes", |_, data| data.extend([0; 8]), &["content"]),
        ("overlap", |header, _| header[NORM]["data_offsets"] = json!([0, 256]), &["content"]),
        ("beyond the end", |header, _| header[NORM]["data_offsets"] = json!([0, 1u64 << 60]), &["content"]),
        ("wrong size", |header, _| header[NORM]["shape"] = json!([63]), &["content"]),
        ("overflow", |header, _| header[NORM]["shape"] = json!([1u64 << 63, 4]), &["content"]),
        ("unknown dtype", |header, _| header[NORM]["dtype"] = json!("F7"), &["content", "F7"]),
        (
            "wrong dtype",
            |header, _| header[NORM]["dtype"] = json!("I32"),
            &["dtype of tensor model.norm.weight", "I32", "F32, F16, BF16"],
        ),
        (
            "wrong shape",
            |header, _| header[QUERY]["shape"] = json!([32, 128]),
            &["shape of tensor", QUERY, "[32, 128]", "[64, 64]"],
        ),
        (
            "missing tensor",
            |header, data| {
                let last = header.iter().max_by_key(|(_, tensor)| end(tensor)).unwrap();
                let (name, start) = (last.0.clone(), last.1["data_offsets"][0].as_u64().unwrap());
                header.remove(&name);
                data.truncate(start as usize);
            },
            &["tensor", "missing", "present"],
        ),
        (
            "extra tensor",
            |header, data| {
                let at = data.len();
                data.extend([0; 4]);
                let extra = json!({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]});
                header.insert("model.extra.weight".into(), extra);
            },
            &["tensor model.extra.weight", "a tensor of the model"],
        ),
    ];
    for (what, edit, parts) in cases {
        let parts = [&["model.safetensors"], *parts].concat();
        refused(what, |model| edit_weights(model, edit), &parts);
    }
}

#[test]
fn safetensors_files() {
    let file = "model.safetensors";
    refused_file(file, "", &["safetensors file"]);
    refused_file(file, [0xff; 64], &["content", "safetensors file"]);
    refused_file(file, safetensors("{\"a\": ", b""), &["content", "safetensors file"]);
    let large = [&200_000_000u64.to_le_bytes()[..], &[b' '; 1000]].concat();
    refused_file(file, large, &["content", "safetensors file"]);
    let missing = |model: &Path| std::fs::remove_file(model.join(file)).unwrap();
    refused("no weights", missing, &[file, "No such file"]);
    let tied = |model: &Path| {
        edit_json(&model.join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    };
    let parts = [file, "tensor lm_head.weight", "present", "tie_word_embeddings is true"];
    refused("tied flag, untied weights", tied, &parts);
    let untied = |model: &Path| {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama-tied");
        for name in [file, "config.json"] {
            std::fs::write(model.join(name), std::fs::read(from.join(name)).unwrap()).unwrap();
        }
        edit_json(&model.join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    };
    let parts = [file, "tensor lm_head.weight", "missing", "tie_word_embeddings is false"];
    refused("untied flag, tied weights", untied, &parts);
}

#[test]
fn safetensors_with_a_tensor_twice() {
    let twice = |model: &Path| {
        let path = model.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + size]).unwrap().trim_end();
        let entry = &header[header.find(&format!("\"{NORM}\"")).unwrap()..];
        let entry = &entry[..=entry.find('}').unwrap()];
        let header = format!("{{{entry},{}", &header[1..]);
        std::fs::write(&path, safetensors(&header, &bytes[8 + size..])).unwrap();
    };
    refused("tensor twice", twice, &["model.safetensors", NORM]);
}

#[test]
fn tokenizers_and_templates() {
    let file = "tokenizer.json";
    refused_file(file, "garbage", &["content", "a tokenizer.json"]);
    refused_file(file, "{}", &["content", "a tokenizer.json"]);
    let edit = |edit: fn(&mut Value)| move |model: &Path| edit_json(&model.join(file), edit);
    let high = edit(|tokenizer| tokenizer["model"]["vocab"]["zzz"] = json!(5000));
    refused("high id", high, &[file, "highest token id", "5000", "below the 320 rows"]);
    let added = edit(|tokenizer| tokenizer["added_tokens"][2]["id"] = json!(7));
    refused("added id", added, &[file, "id of added token", "7", "2 in this vocabulary"]);
    let large = |model: &Path| {
        let size = (64 << 20) + 1;
        std::fs::File::create(model.join(file)).unwrap().set_len(size).unwrap();
    };
    refused("large tokenizer", large, &[file, "size", "up to 67108864 bytes"]);

    let long = "x".repeat((256 << 10) + 1);
    let cases: &[(&str, &[&str])] = &[
        ("{% for %}", &["a template that renders"]),
        ("{{ messages", &["a template that renders"]),
        ("{{ raise_exception('no users') }}", &["no users"]),
        ("{% include 'other' %}", &["a template that renders"]),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% set k = j %}{% endfor %}{% endfor %}",
            &["endless or too much", "1000000 steps"],
        ),
        (&long, &["size", "262145 bytes", "up to 262144"]),
    ];
    for (template, parts) in cases {
        let spoil = |model: &Path| {
            edit_json(&model.join("tokenizer_config.json"), |config| {
                config["chat_template"] = json!(template);
            });
        };
        let what: String = template.chars().take(40).collect();
        refused(&what, spoil, &[&["tokenizer_config.json", "chat template"], *parts].concat());
    }
    refused_file("tokenizer_config.json", "{", &["content", "a JSON object"]);
}

#[test]
fn gguf_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let counts = |tensors: u64, values: u64| {
        [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &values.to_le_bytes(), &[0; 64]].concat()
    };
    let cases: &[(Vec<u8>, &[&str])] = &[
        (vec![], &["size", "0 bytes", "a GGUF file"]),
        (b"garbage, garbage, garbage".to_vec(), &["magic"]),
        (b"GGUF\x01\0\0\0".to_vec(), &["version", "1"]),
        (b"GGUF\x03\0\0\0\0".to_vec(), &[]),
        (counts(u64::MAX, 0), &["tensor count", &u64::MAX.to_string()]),
        (counts(0, u64::MAX), &["metadata count", &u64::MAX.to_string()]),
        (counts(0, 0), &["general.architecture", "missing", "llama"]),
    ];
    for (bytes, parts) in cases {
        std::fs::write(&path, bytes).unwrap();
        let answer = polykv(&generate_args(&path, &["-p", "Hello"]));
        check("GGUF", 3, &[&["model.gguf"], *parts].concat(), &answer);
    }
}

/// A plan that runs on the tiny model; cases replace parts of it.
const PLAN: &str = "schema: 1
layers: 3
budget: {tokens: 40}
prefill:
- {layers: 0, policy: snapkv, tokens: 60}
- {layers: 1-2, policy: h2o, tokens: 30}
decode:
- {layers: 0-2, policy: streaming-llm, share: 1}
";

#[test]
fn plan_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.yaml");
    let run = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        let args = ["-p", "Hello", "-n", "2", "--no-stats", "--plan", path_str(&path)];
        polykv(&generate_args(&tiny_model(), &args))
    };
    assert_eq!(run(PLAN.as_bytes()).code, 0);
    let cases: &[(&str, &str, &[&str])] = &[
        ("schema: 1", "schema: 2", &["schema is 2", "allowed: 1"]),
        ("layers: 3", "layers: 0", &["layers is 0", "1 to 1024"]),
        ("schema: 1", "schema: 1\nmodel: llama-other", &["model", "llama-other", "llama-3x4q2kv16d-64h-320v"]),
        ("layers: 0-2", "layers: 0-3", &["decode[0].layers", "0-3", "layers 0 to 2"]),
        ("layers: 0-2", "layers: 1-2", &["decode", "layer 0", "one rule for each of the 3"]),
        ("layers: 1-2", "layers: 0-2", &["prefill[1].layers", "each layer once"]),
        ("layers: 1-2", "layers: 2-1", &["2-1", "FIRST-LAST"]),
        ("policy: h2o", "policy: h3o", &["policy", "'h3o'", "h2o", "snapkv"]),
        ("tokens: 60}", "tokens: 60, params: {windw: 8}}", &["snapkv", "windw", "window"]),
        ("tokens: 60}", "tokens: 60, params: {window: 0}}", &["window: 0", "at least 1"]),
        ("tokens: 60", "tokens: 8", &["prefill[0].tokens is 8", "at least 32", "snapkv"]),
        ("tokens: 60", "tokens: 61", &["sum of prefill tokens is 121", "120, 3 layers times 40"]),
        ("tokens: 60", "tokens: 60, share: 1", &["prefill[0].tokens", "tokens or share"]),
        ("share: 1", "share: -1", &["share", "-1", "above 0"]),
        ("share: 1", "share: 1, budget: 3", &["unknown field", "budget"]),
        ("schema: 1", "schema: 1\ncolour: red", &["unknown field", "colour"]),
        ("{tokens: 40}", "{tokens: 0}", &["budget.tokens is 0", "at least 1"]),
        ("{tokens: 40}", "{tokens: many}", &["many"]),
        ("{tokens: 40}", "{bytes: 4000}", &["tokens in the rules", "budget.tokens"]),
        ("schema: 1", "- schema", &["content", "not a plan"]),
    ];
    for (from, to, parts) in cases {
        let plan = PLAN.replace(from, to);
        assert_ne!(plan, PLAN, "{from}");
        check(to, 3, &[&["plan.yaml"], *parts].concat(), &run(plan.as_bytes()));
    }
    let ratio = |ratio: &str| {
        let shares = PLAN.replace(", tokens: 60", "").replace(", tokens: 30", "");
        shares.replace("{tokens: 40}", &format!("{{ratio: {ratio}}}"))
    };
    check("ratio", 3, &["budget.ratio is 1.5", "at most 1"], &run(ratio("1.5").as_bytes()));
    check("NaN", 3, &["budget.ratio is NaN", "at most 1"], &run(ratio(".nan").as_bytes()));
    let least = ["prefill budget of layer 0", "at least 32", "snapkv"];
    check("a small share", 3, &least, &run(ratio("0.1").as_bytes()));
    let four = Path::new("layers: 4\n");
    let four = PLAN.replace("layers: 3\n", path_str(four)).replace("0-2", "0-3").replace("1-2", "1-3");
    let four = four.replace("tokens: 60", "tokens: 70");
    check("layers", 3, &["plan.yaml: layers is 4", "3, the model's"], &run(four.as_bytes()));
    let wide = "schema: 1\nlayers: 3\nbudget: {tokens: 513}\nprefill: [{layers: 0-2, policy: h2o}]\n\
                decode: [{layers: 0-2, policy: h2o}]\n";
    check("context", 3, &["budget.tokens is 513", "at most 512"], &run(wide.as_bytes()));
    let full = wide.replace("513", "10").replacen("{layers: 0-2, policy: h2o}", "{layers: 0-1, policy: full}, {layers: 2, policy: h2o}", 1);
    check("full layers", 3, &["2 full layers", "the total of 30"], &run(full.as_bytes()));
    let large = format!("{PLAN}#{}", "x".repeat(1 << 20));
    check("size", 3, &["plan.yaml", "size", "at most 1048576 bytes"], &run(large.as_bytes()));
    check("bytes", 3, &["plan.yaml"], &run(b"\xff\xfe\x00"));
    let nested = "[".repeat(100_000);
    check("nesting", 3, &["plan.yaml", "not a plan"], &run(nested.as_bytes()));
    let show = polykv(&["plan", "show", path_str(&path)]);
    check("plan show", 3, &["plan.yaml", "not a plan"], &show);
}

#[test]
fn prompts_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path_str(&path).to_string()
    };
    let (blank, latin) = (file("blank.txt", b" \n\t\n"), file("latin.txt", b"caf\xe9"));
    let (large, none) = (file("large.txt", b""), path_str(&dir.path().join("none.txt")).to_string());
    std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let long = "0 1 2 3 4 5 6 7 8 9 ".repeat(60);
    let empty: &[&str] = &["prompt", "empty", "at least one word"];
    let cases: &[(&str, &[&str])] = &[
        ("-p=", empty),
        ("-p=  ", empty),
        (&format!("-f={blank}"), empty),
        (&format!("-f={latin}"), &["latin.txt", "0xe9 at offset 3", "UTF-8"]),
        (&format!("-f={large}"), &["large.txt", "size", "at most 67108864 bytes"]),
        (&format!("-f={none}"), &["none.txt", "No such file"]),
        (&format!("-f={}", path_str(dir.path())), &["directory"]),
        (&format!("-p={long}"), &["prompt: length is 1", " tokens", "at most 512 tokens"]),
        ("-p=x --dtype f16", &["dtype f16", "f32"]),
        ("-p=x --dtype bf16", &["dtype bf16", "f32"]),
        ("-p=x --policy snapkv --budget 8", &["budget of layer 0 is 8", "at least 32", "snapkv"]),
        ("-p=x --policy streaming-llm --budget 8 --set sinks=8", &["is 8", "at least 9"]),
        ("-p=x --policy snapkv --budget 40 --set windw=8", &["command line", "windw", "window"]),
        ("-p=x --policy h2o --budget 40 --set recent_fraction=2", &["recent_fraction", "2", "from 0 to 1"]),
        ("-p=x --policy h2o --budget 0", &["budget.tokens is 0", "at least 1"]),
        ("-p=x --policy h2o --budget 513", &["budget.tokens is 513", "at most 512"]),
        ("-p=x --policy h2o --budget-ratio 1.5", &["budget.ratio is 1.5", "at most 1"]),
        ("-p=x --policy h2o --budget-ratio -1", &["budget.ratio is -1", "above 0"]),
        ("-p=x --policy h2o --budget-mb 0", &["budget in MB is 0", "above 0"]),
        ("-p=x --policy h2o --budget-mb nan", &["budget in MB is NaN", "above 0"]),
        ("-p=x --temp -1", &["temperature is -1", "0 (greedy) to 100"]),
        ("-p=x --temp nan", &["temperature is NaN", "0 (greedy) to 100"]),
        ("-p=x --top-k 0", &["top_k is 0", "1 or more"]),
        ("-p=x --top-p 1.5", &["top_p is 1.5", "up to 1"]),
        ("-p=x --min-p 2", &["min_p is 2", "0 to 1"]),
        ("-p=x --repeat-penalty 0", &["repeat_penalty is 0", "0.01 to 100"]),
        ("-p=x --plan /nonexistent.yaml", &["/nonexistent.yaml", "No such file"]),
    ];
    for (args, parts) in cases {
        let args: Vec<&str> = match args.split_once(" --") {
            Some(_) => args.split(' ').collect(),
            None => vec![args],
        };
        check(&args.join(" "), 3, parts, &polykv(&generate_args(&tiny_model(), &args)));
    }
    let model = path_str(&tiny_model()).to_string();
    let device = polykv(&["generate", "-m", &model, "-p", "x", "--device", "cuda:63"]);
    check("device", 3, &["device cuda", "not supported"], &device);
    let piped = generate_args(&tiny_model(), &["-p", "-"]);
    let answer = polykv_with(&piped, b"\xff", Path::new("/nonexistent"));
    check("standard input", 3, &["standard input", "0xff at offset 0"], &answer);
}

#[test]
fn models_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("smollm2", &["--model", "\"smollm2\"", "smollm2-135m"]),
        ("/nonexistent/model", &["/nonexistent/model", "a .gguf file"]),
        ("some-org/some-model", &["some-org/some-model is not supported", "smollm2-135m"]),
        ("smollm2-135m", &["not in the cache", "polykv pull smollm2-135m"]),
    ];
    for (model, parts) in cases {
        let args = generate_args(Path::new(model), &["-p", "Hello", "--offline"]);
        check(model, 3, parts, &polykv_with(&args, b"", dir.path()));
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let unsystematic = copy_of_tiny_model();
    edit_json(&unsystematic.path().join("tokenizer_config.json"), |config| {
        config["chat_template"] = Value::Null;
    });
    let args = generate_args(unsystematic.path(), &["-p", "Hello", "--system", "Be brief."]);
    check("system", 3, &["a system message", "no chat template"], &polykv(&args));
}

/// Found only while running, so the code is that of a failure.
#[test]
fn numbers_that_are_none() {
    for (name, parts) in [
        ("lm_head.weight", &["NaN", "logit"][..]),
        ("model.layers.0.self_attn.q_proj.weight", &["NaN"]),
    ] {
        let model = copy_of_tiny_model();
        edit_weights(model.path(), |header, data| {
            let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        let prompt = "Enough tokens for an eviction.";
        let policy = ["-p", prompt, "--policy", "tova", "--budget", "4"];
        check(name, 4, parts, &polykv(&generate_args(model.path(), &policy)));
    }
}

#[test]
fn what_the_grammar_knows() {
    let cases: &[(&str, &[&str])] = &[
        ("generat", &["generat", "generate"]),
        ("generate -m x", &["--prompt", "--file"]),
        ("generate -p x", &["--model"]),
        ("generate -m x -p x --polcy h2o", &["--polcy", "--policy"]),
        ("generate -m x -p x --policy snapvk --budget 9", &["snapvk", "snapkv", "streaming-llm"]),
        ("generate -m x -p x --policy snapkv", &["--budget"]),
        ("generate -m x -p x --budget 9", &["--policy"]),
        ("generate -m x -p x --policy h2o --budget 9 --budget-ratio 0.5", &["--budget", "--budget-ratio"]),
        ("generate -m x -p x --policy h2o --budget nine", &["nine", "--budget"]),
        ("generate -m x -p x --policy h2o --budget 9 --allocator pyramdi", &["pyramdi", "uniform"]),
        ("generate -m x -p x --policy h2o --budget 9 --phase both,decode", &["both,decode", "prefill"]),
        ("generate -m x -p x --policy h2o --budget 9 --set window", &["window", "KEY=VALUE"]),
        ("generate -m x -p x --plan a --policy h2o --budget 9", &["--plan", "--policy"]),
        ("generate -m x -p x --plan a --set a=1", &["--plan", "--set"]),
        ("generate -m x -p x --device gpu", &["gpu", "cuda[:i]"]),
        ("generate -m x -p x --dtype f64", &["f64", "bf16"]),
        ("generate -m x -p x --chunk 0", &["0", "--chunk"]),
        ("generate -m x -p x --raw --system y", &["--raw", "--system"]),
        ("generate -m x -p - -f -", &["--prompt", "--file", "standard input"]),
        ("pull smollm2", &["smollm2", "smollm2-135m"]),
        ("plan show", &["FILE"]),
    ];
    for (args, parts) in cases {
        let words: Vec<&str> = args.split(' ').collect();
        check(args, 2, parts, &polykv(&words));
    }
    let empty_stop = polykv(&["generate", "-m", "x", "-p", "x", "--stop", ""]);
    check("empty stop", 2, &["--stop"], &empty_stop);
}
