//! A small writer of GGUF files for tests.

use super::{GgufFile, Value};

#[derive(Clone, Default)]
pub(crate) struct Gguf {
    values: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
    offset: Option<u64>,
}

impl Gguf {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn value(mut self, key: &str, value: &Value) -> Self {
        self.values.push((key.into(), value.clone()));
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.values.retain(|(k, _)| k != key);
        self
    }

    pub fn replace(self, key: &str, value: &Value) -> Self {
        self.without(key).value(key, value)
    }

    pub fn f32_tensor(self, name: &str, shape: &[u64], data: &[f32]) -> Self {
        let data: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.raw_tensor(name, shape, 0, &data)
    }

    /// `shape` is row-major.
    pub fn raw_tensor(mut self, name: &str, shape: &[u64], kind: u32, data: &[u8]) -> Self {
        self.tensors.push(Tensor {
            name: name.into(),
            shape: shape.to_vec(),
            kind,
            data: data.to_vec(),
            offset: None,
        });
        self
    }

    /// Gives the last tensor a false offset.
    pub fn offset(mut self, offset: u64) -> Self {
        self.tensors.last_mut().unwrap().offset = Some(offset);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            put_string(&mut out, key);
            out.extend(kind(value).to_le_bytes());
            put_value(&mut out, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            put_string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                out.extend(dim.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    pub fn open(&self) -> GgufFile {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        // The open file outlives the removed folder.
        GgufFile::open(&path).unwrap()
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn kind(value: &Value) -> u32 {
    match value {
        Value::Uint(_) => 4,
        Value::Int(_) => 5,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Uint(n) => out.extend((*n as u32).to_le_bytes()),
        Value::Int(n) => out.extend((*n as i32).to_le_bytes()),
        Value::Float(x) => out.extend((*x as f32).to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(s) => put_string(out, s),
        Value::Array(list) => {
            out.extend(list.first().map_or(4, kind).to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            for item in list {
                put_value(out, item);
            }
        }
    }
}

/// ChatML in one line, with the template's own line breaks.
pub(crate) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
     message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A one-layer model with a byte-level vocabulary: 256 bytes, three control tokens, a merge and a user-defined token.
pub(crate) fn tiny_llama() -> Gguf {
    let text = |s: &str| Value::String(s.into());
    let mut tokens: Vec<String> = byte_alphabet();
    tokens.extend(
        [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "he",
            "<tool>",
        ]
        .map(String::from),
    );
    let mut types = vec![Value::Int(1); 256];
    types.extend([3, 3, 3, 1, 4].map(Value::Int));
    let uints = [
        ("llama.block_count", 1),
        ("llama.context_length", 128),
        ("llama.embedding_length", 8),
        ("llama.feed_forward_length", 16),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 4),
        ("tokenizer.ggml.bos_token_id", 257),
        ("tokenizer.ggml.eos_token_id", 258),
    ];
    let mut file = Gguf::new()
        .value("general.architecture", &text("llama"))
        .value("llama.rope.freq_base", &Value::Float(10_000.0))
        .value(
            "llama.attention.layer_norm_rms_epsilon",
            &Value::Float(1e-5),
        )
        .value("tokenizer.ggml.model", &text("gpt2"))
        .value("tokenizer.ggml.pre", &text("smollm"))
        .value(
            "tokenizer.ggml.tokens",
            &Value::Array(tokens.iter().map(|t| text(t)).collect()),
        )
        .value("tokenizer.ggml.token_type", &Value::Array(types))
        .value("tokenizer.ggml.merges", &Value::Array(vec![text("h e")]))
        .value("tokenizer.chat_template", &text(CHATML));
    for (key, n) in uints {
        file = file.value(key, &Value::Uint(n));
    }
    file.f32_tensor("token_embd.weight", &[261, 8], &[0.5; 261 * 8])
        .f32_tensor("output_norm.weight", &[8], &[1.0; 8])
}

/// The characters that stand for the bytes 0 to 255 in byte-level vocabularies.
fn byte_alphabet() -> Vec<String> {
    let mut next = 256;
    (0..=255u32)
        .map(|b| {
            let printable = matches!(b, 33..=126 | 161..=172 | 174..=255);
            let code = if printable {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}
