//! model.safetensors.

use super::{check, edit_json, refused, refused_file};
use crate::cli_support::{copy_of_tiny_model, generate_args, polykv};
use serde_json::{Map, Value, json};
use std::path::Path;

const FILE: &str = "model.safetensors";
const NORM: &str = "model.norm.weight";
const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";

type Header = Map<String, Value>;

/// Header and data of the weights.
fn read(model: &Path) -> (String, Vec<u8>) {
    let mut bytes = std::fs::read(model.join(FILE)).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let data = bytes.split_off(8 + size);
    (String::from_utf8(bytes.split_off(8)).unwrap(), data)
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let size = (padded.len() as u64).to_le_bytes();
    [&size[..], padded.as_bytes(), data].concat()
}

/// Rewrites header and data.
pub fn edit(model: &Path, edit: impl FnOnce(&mut Header, &mut Vec<u8>)) {
    let (header, mut data) = read(model);
    let mut header: Header = serde_json::from_str(&header).unwrap();
    edit(&mut header, &mut data);
    let header = Value::Object(header).to_string();
    std::fs::write(model.join(FILE), safetensors(&header, &data)).unwrap();
}

fn drop_last(header: &mut Header, data: &mut Vec<u8>) {
    let end = |tensor: &Value| tensor.pointer("/data_offsets/1").and_then(Value::as_u64);
    let last = header.iter().max_by_key(|(_, tensor)| end(tensor)).unwrap();
    let (name, start) = (last.0.clone(), last.1["data_offsets"][0].as_u64().unwrap());
    header.remove(&name);
    data.truncate(start as usize);
}

fn add_one(header: &mut Header, data: &mut Vec<u8>) {
    let at = data.len();
    data.extend([0; 4]);
    let extra = json!({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]});
    header.insert("model.extra.weight".into(), extra);
}

#[test]
fn headers() {
    type Edit = fn(&mut Header, &mut Vec<u8>);
    let set = |name: &'static str, field: &'static str, value: Value| {
        move |header: &mut Header, _: &mut Vec<u8>| header[name][field] = value
    };
    let run = |what: &str, change: &dyn Fn(&Path), parts: &[&str]| {
        refused(what, change, &[&[FILE], parts].concat());
    };
    let edits: [(&str, Edit, &[&str]); 4] = [
        (
            "truncated",
            |_, data| data.truncate(data.len() - 100),
            &["content"],
        ),
        ("longer", |_, data| data.extend([0; 8]), &["content"]),
        ("missing", drop_last, &["tensor", "missing", "present"]),
        (
            "extra",
            add_one,
            &["tensor model.extra.weight", "a tensor of the model"],
        ),
    ];
    for (what, change, parts) in edits {
        run(what, &|model| edit(model, change), parts);
    }
    let dtypes = ["dtype of tensor model.norm.weight", "I32", "F32, F16, BF16"];
    let shapes = ["shape of tensor", QUERY, "[32, 128]", "[64, 64]"];
    let fields: [(&str, &str, Value, &[&str]); 7] = [
        // Another tensor lies there.
        (NORM, "data_offsets", json!([0, 256]), &["content"]),
        (NORM, "data_offsets", json!([0, 1u64 << 60]), &["content"]),
        (NORM, "shape", json!([63]), &["content"]),
        (NORM, "shape", json!([1u64 << 63, 4]), &["content"]),
        (NORM, "dtype", json!("F7"), &["content", "F7"]),
        (NORM, "dtype", json!("I32"), &dtypes),
        (QUERY, "shape", json!([32, 128]), &shapes),
    ];
    for (name, field, value, parts) in fields {
        let what = format!("{name} {field} {value}");
        run(
            &what,
            &|model| edit(model, set(name, field, value.clone())),
            parts,
        );
    }
}

#[test]
fn whole_files() {
    refused_file(FILE, "", &["safetensors file"]);
    refused_file(
        FILE,
        [0xff; 64],
        &["size of the header", "safetensors file"],
    );
    let broken = safetensors("{\"a\": ", b"");
    refused_file(FILE, broken, &["content", "safetensors file"]);
    let large = [&200_000_000u64.to_le_bytes()[..], &[b' '; 1000]].concat();
    refused_file(
        FILE,
        large,
        &["size of the header", "200000000", "100000000 bytes"],
    );
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    for file in [FILE, "config.json", "tokenizer.json"] {
        refused_file(file, pointer, &["Git LFS pointer", "git lfs pull"]);
    }
    let missing = |model: &Path| std::fs::remove_file(model.join(FILE)).unwrap();
    refused("no weights", missing, &[FILE, "No such file"]);
}

fn fixture(name: &str) -> Vec<u8> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    std::fs::read(fixtures.join(name)).unwrap()
}

/// Weights and config of a model whose head is its embedding.
fn make_tied(model: &Path) {
    for name in [FILE, "config.json"] {
        std::fs::write(
            model.join(name),
            fixture(&format!("tiny-llama-tied/{name}")),
        )
        .unwrap();
    }
}

#[test]
fn a_tied_flag_at_odds_with_the_tensors() {
    let flag = |model: &Path, tied: bool| {
        edit_json(&model.join("config.json"), |config| {
            config["tie_word_embeddings"] = json!(tied);
        });
    };
    let parts = [
        FILE,
        "tensor lm_head.weight",
        "not equal to model.embed_tokens.weight",
        "tie_word_embeddings is true",
    ];
    refused("tied", |model| flag(model, true), &parts);
    let untied = |model: &Path| {
        make_tied(model);
        flag(model, false);
    };
    let parts = [
        FILE,
        "tensor lm_head.weight",
        "missing",
        "tie_word_embeddings is false",
    ];
    refused("untied", untied, &parts);
}

#[test]
fn a_stored_copy_of_the_embedding_is_no_head() {
    let text = |model: &Path| {
        let answer = polykv(&generate_args(
            model,
            &["-p", "Hello", "-n", "6", "--no-stats"],
        ));
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        answer.stdout
    };
    let model = copy_of_tiny_model();
    make_tied(model.path());
    let without = text(model.path());
    edit(model.path(), |header, data| {
        let mut copy = header["model.embed_tokens.weight"].clone();
        let range = |at: usize| copy["data_offsets"][at].as_u64().unwrap() as usize;
        let (start, end) = (range(0), data.len());
        data.extend_from_within(start..range(1));
        copy["data_offsets"] = json!([end, data.len()]);
        header.insert("lm_head.weight".into(), copy);
    });
    assert_eq!(text(model.path()), without);
}

/// The bytes of one f32 tensor.
fn edit_values(model: &Path, name: &str, change: impl FnOnce(&mut [u8])) {
    edit(model, |header, data| {
        let tensor = &header[name];
        assert_eq!(tensor["dtype"], "F32");
        let range = |at: usize| tensor["data_offsets"][at].as_u64().unwrap() as usize;
        change(&mut data[range(0)..range(1)]);
    });
}

#[test]
fn values_that_are_not_finite_or_not_of_the_format() {
    let set = |value: f32| {
        let model = copy_of_tiny_model();
        edit_values(model.path(), QUERY, |bytes| {
            bytes[(64 + 3) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        });
        model
    };
    let run = |model: &Path, dtype: &str| {
        let more = ["-p", "Hello", "-n", "2", "--no-stats", "--dtype", dtype];
        polykv(&generate_args(model, &more))
    };
    let field = format!("tensor {QUERY} at [1, 3]");
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        for dtype in ["f32", "f16", "bf16"] {
            let answer = run(set(value).path(), dtype);
            let parts = [FILE, &field, shown, "finite numbers"];
            check(&format!("{shown} in {dtype}"), 3, &parts, &answer);
        }
    }
    let model = set(70_000.0);
    let parts = [FILE, &field, "70000", "f16", "bf16 and f32"];
    check("70000 in f16", 3, &parts, &run(model.path(), "f16"));
    for dtype in ["f32", "bf16"] {
        assert_eq!(run(model.path(), dtype).code, 0, "{dtype}");
    }
}

#[test]
fn a_file_of_a_checkpoint_is_no_model() {
    let model = copy_of_tiny_model();
    for name in [FILE, "config.json"] {
        let path = model.path().join(name);
        let answer = polykv(&generate_args(&path, &["-p", "Hello", "-n", "2"]));
        check(
            name,
            3,
            &[name, "one file of a checkpoint", "the folder"],
            &answer,
        );
    }
}

#[cfg(unix)]
#[test]
fn files_that_never_end_or_never_begin() {
    for name in ["config.json", FILE, "generation_config.json"] {
        let zero = |model: &Path| {
            let path = model.join(name);
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        };
        refused("a device", zero, &[name, "a device", "a regular file"]);
        let fifo = |model: &Path| {
            let path = model.join(name);
            let _ = std::fs::remove_file(&path);
            let made = std::process::Command::new("mkfifo").arg(path).status();
            assert!(made.unwrap().success());
        };
        refused("a FIFO", fifo, &[name, "a FIFO", "a regular file"]);
    }
}

#[test]
fn a_tensor_twice() {
    let twice = |model: &Path| {
        let (header, data) = read(model);
        let entry = &header[header.find(&format!("\"{NORM}\"")).unwrap()..];
        let entry = &entry[..=entry.find('}').unwrap()];
        let header = format!("{{{entry},{}", &header.trim_end()[1..]);
        std::fs::write(model.join(FILE), safetensors(&header, &data)).unwrap();
    };
    refused("twice", twice, &[FILE, NORM]);
}
