//! model.safetensors.

use super::{edit_json, refused, refused_file};
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
    refused_file(FILE, [0xff; 64], &["content", "safetensors file"]);
    let broken = safetensors("{\"a\": ", b"");
    refused_file(FILE, broken, &["content", "safetensors file"]);
    let large = [&200_000_000u64.to_le_bytes()[..], &[b' '; 1000]].concat();
    refused_file(FILE, large, &["content", "safetensors file"]);
    let missing = |model: &Path| std::fs::remove_file(model.join(FILE)).unwrap();
    refused("no weights", missing, &[FILE, "No such file"]);
}

#[test]
fn a_tied_flag_at_odds_with_the_tensors() {
    let flag = |model: &Path, tied: bool| {
        edit_json(&model.join("config.json"), |config| {
            config["tie_word_embeddings"] = json!(tied);
        });
    };
    let parts = |found, flag| [FILE, "tensor lm_head.weight", found, flag];
    let tied = parts("present", "tie_word_embeddings is true");
    refused("tied", |model| flag(model, true), &tied);
    let untied = |model: &Path| {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        for name in [FILE, "config.json"] {
            let content = std::fs::read(fixtures.join("tiny-llama-tied").join(name)).unwrap();
            std::fs::write(model.join(name), content).unwrap();
        }
        flag(model, false);
    };
    let parts = parts("missing", "tie_word_embeddings is false");
    refused("untied", untied, &parts);
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
