//! A session's file: read, taken up by the cache of a small model, continued, written and read again.
//!
//! An input is a description, lines that name tensors, and data. A safetensors file with the right lengths and offsets is made
//! of them, so that most changes of an input reach what lies behind the format; an empty fingerprint of the plan becomes the
//! right one. An input that starts with `!` is a file as it is.

use burn::tensor::{DType, Device, Tensor};
use polykv_core::{
    KvCache, LayerFacts, LayerShape, ModelFacts, PlanFile, Registry, Result, RopeFacts, Session,
};
use serde_json::{Map, Value, json};

const SHAPE: LayerShape = LayerShape {
    batch: 1,
    heads: 2,
    kv_heads: 1,
    head_dim: 4,
    dtype: DType::F32,
};
const MODEL: &str = "m";
/// Windows of the layers.
const WINDOWS: [Option<usize>; 2] = [None, Some(6)];
/// Of a tensor.
const MOST_BYTES: usize = 1 << 16;

pub fn run(input: &[u8]) {
    match Session::from_bytes("session", content(input)) {
        Ok(session) => read(&session),
        Err(error) => super::refused(&error),
    }
}

/// Takes up the session of an input, which most of those that fuzzing starts from must be.
///
/// # Errors
/// What is refused.
pub fn take(input: &[u8]) -> Result<KvCache> {
    cache(&Session::from_bytes("session", content(input))?)
}

fn content(input: &[u8]) -> Vec<u8> {
    match input.strip_prefix(b"!") {
        Some(file) => file.to_vec(),
        None => file(input),
    }
}

/// The file of an input.
fn file(input: &[u8]) -> Vec<u8> {
    let [description, lines, data] = super::pieces(input);
    let mut header = Map::new();
    let description = String::from_utf8_lossy(&finished(description)).into_owned();
    header.insert(
        "__metadata__".into(),
        json!({"polykv-session": description}),
    );
    let mut end = 0;
    for line in String::from_utf8_lossy(lines).lines() {
        let mut words = line.split_whitespace();
        let (name, dtype) = (words.next().unwrap_or(""), words.next().unwrap_or("F32"));
        let shape: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let size = match dtype {
            "F16" | "BF16" => 2,
            _ => 4,
        };
        let bytes = shape
            .iter()
            .try_fold(size, |all: u64, dim| all.checked_mul(*dim));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let start = end;
        end += bytes.unwrap_or(MOST_BYTES).min(MOST_BYTES);
        let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        header.insert(name.into(), info);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    let mut content = [&length[..], header.as_bytes(), data].concat();
    content.resize(8 + header.len() + end, 0);
    content
}

/// A description with the fingerprint of its plan.
fn finished(description: &[u8]) -> Vec<u8> {
    let fingerprint = |described: &Value| {
        let file = PlanFile::from_yaml(described["plan"].as_str()?).ok()?;
        let plan = file.build(&Registry::default()).ok()?;
        Some(plan.fingerprint())
    };
    if let Ok(mut described) = serde_json::from_slice::<Value>(description)
        && described["rules"] == ""
        && let Some(rules) = fingerprint(&described)
    {
        described["rules"] = rules.into();
        return described.to_string().into_bytes();
    }
    description.to_vec()
}

/// A cache of the model under the session's plan.
fn cache(session: &Session) -> Result<KvCache> {
    let device = Device::flex();
    let plan = session.info().plan.build(&Registry::default())?;
    let mut cache = KvCache::new(plan, SHAPE, &device)?;
    let mut facts = ModelFacts::default();
    for window in WINDOWS {
        let mut layer = LayerFacts::default();
        layer.window = window;
        layer.output = Some(Tensor::<2>::ones([3, 8], &device).into());
        layer.rope = Some(RopeFacts {
            frequencies: [1.0, 0.1].into(),
            magnitude: 1.0,
        });
        facts.layers.push(layer);
    }
    cache.set_facts(&facts);
    cache.load(session, MODEL)?;
    Ok(cache)
}

fn read(session: &Session) {
    let mut loaded = match cache(session) {
        Ok(cache) => cache,
        Err(error) => return super::refused(&error),
    };
    let written = loaded.to_session(session.info());
    let written = written.expect("a session that can be written again");
    let again = Session::from_bytes("session", written).expect("a session that can be read again");
    assert_eq!(again.seen(), session.seen());
    let again = cache(&again).expect("a session that can be taken up again");
    assert_eq!(again.kv_bytes(), loaded.kv_bytes());
    // Numbers may grow beyond all bounds, and a budget may be too small for what follows.
    let _ = decode(&mut loaded);
    let _ = prompt(&mut loaded);
    let _ = loaded.pack();
    let _ = decode(&mut loaded);
}

fn inputs(tokens: usize) -> [Tensor<4>; 3] {
    [2, 1, 1].map(|heads| Tensor::full([1, heads, tokens, 4], 0.5, &Device::flex()))
}

fn decode(cache: &mut KvCache) -> Result<()> {
    for _ in 0..3 {
        for layer in 0..WINDOWS.len() {
            let [q, k, v] = inputs(1);
            cache.decode(layer, q, k, v)?;
        }
    }
    Ok(())
}

fn prompt(cache: &mut KvCache) -> Result<()> {
    let mut prompt = cache.prompt(5)?;
    for layer in 0..WINDOWS.len() {
        let [q, k, v] = inputs(5);
        prompt.attend(layer, q, k, v)?;
        prompt.end_layer(layer)?;
    }
    prompt.finish().map(drop)
}
