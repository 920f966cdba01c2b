//! A small writer of GGUF files, whole and split.

#![allow(dead_code, reason = "each test file uses a part of it")]

use polykv::models::gguf::{GgufFile, Value};
use std::path::{Path, PathBuf};

/// A GGUF file in the making: metadata and tensors in the file's own form.
#[derive(Default)]
pub struct Gguf {
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

    pub fn uint(&mut self, key: &str, value: u32) {
        self.value(key, 4, |out| out.extend(value.to_le_bytes()));
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.value(key, 6, |out| out.extend(value.to_le_bytes()));
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.value(key, 8, |out| Self::put_text(out, value));
    }

    /// A value of any kind, in the widest form.
    pub fn any(&mut self, key: &str, value: &Value) {
        self.value(key, kind(value), |out| put(out, value));
    }

    /// `shape` is row-major, `kind` is ggml's number of the format.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: &[u8]) {
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

    pub fn write(&self, path: &Path) {
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

fn kind(value: &Value) -> u32 {
    match value {
        Value::Uint(_) => 10,
        Value::Int(_) => 11,
        Value::Float(_) => 12,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
    }
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Uint(n) => out.extend(n.to_le_bytes()),
        Value::Int(n) => out.extend(n.to_le_bytes()),
        Value::Float(x) => out.extend(x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(s) => Gguf::put_text(out, s),
        Value::Array(list) => {
            out.extend(list.first().map_or(10, kind).to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|item| put(out, item));
        }
    }
}

/// Splits the file at `path` into parts in `folder`, so many tensors each, as `gguf-split` does: the first has all
/// metadata, all have the three keys of a part. The last part's number of tensors is what the others leave.
pub fn split(path: &Path, folder: &Path, tensors: &[usize]) -> Vec<PathBuf> {
    let whole = GgufFile::open(path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let names: Vec<&str> = whole.tensor_names().collect();
    let count = tensors.len() + 1;
    let mut names_left = &names[..];
    let mut parts = Vec::new();
    for number in 0..count {
        let here = tensors.get(number).copied().unwrap_or(names_left.len());
        let (own, rest) = names_left.split_at(here);
        names_left = rest;
        let mut part = Gguf::default();
        if number == 0 {
            for key in whole.keys() {
                part.any(key, whole.value(key).unwrap());
            }
        }
        let halves = [("split.no", number), ("split.count", count)];
        for (key, value) in halves {
            part.value(key, 2, |out| out.extend((value as u16).to_le_bytes()));
        }
        let all = names.len() as i32;
        part.value("split.tensors.count", 5, |out| {
            out.extend(all.to_le_bytes());
        });
        for name in own {
            let info = whole.tensor(name).unwrap();
            let kind = KINDS
                .iter()
                .find(|(_, name)| *name == info.ggml_type.name())
                .unwrap();
            part.tensor(name, &info.shape, kind.0, &bytes[info.range.clone()]);
        }
        let file = format!("{PREFIX}-{:05}-of-{count:05}.gguf", number + 1);
        part.write(&folder.join(&file));
        parts.push(folder.join(file));
    }
    parts
}

const PREFIX: &str = "model-Q4";

/// ggml's numbers of the formats that tests write, and their names.
pub const KINDS: [(u32, &str); 11] = [
    (0, "F32"),
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
