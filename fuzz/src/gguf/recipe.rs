//! Files of small models, whole but for a few faults.

use super::super::{Draw, template};
use super::vocabulary;
use super::write::{File, TEXT, TYPES, Tensor, Value};

const FAMILIES: [&str; 8] = [
    "llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "smollm3",
];

/// The file, or the parts of one, under their names.
pub fn files(draw: &mut Draw<'_>) -> Vec<(String, Vec<u8>)> {
    let mut file = model(draw);
    for _ in 0..draw.faults() {
        file.spoil(draw);
    }
    let mut files = match draw.rarely() {
        true => split(draw, file),
        false => vec![("model.gguf".to_owned(), file.bytes())],
    };
    for (_, content) in &mut files {
        if draw.rarely() {
            let length = content.len() + draw.below(64);
            content.resize(length.saturating_sub(32), 0);
        }
    }
    files
}

/// Two parts, of which one may say something else than the other.
fn split(draw: &mut Draw<'_>, file: File) -> Vec<(String, Vec<u8>)> {
    let all = file.tensors.len() as u64;
    let here = draw.below(file.tensors.len() + 1);
    let (first, second) = file.tensors.split_at(here);
    let part =
        |draw: &mut Draw<'_>, number: u64, mut values: Vec<(String, Value)>, tensors: &[Tensor]| {
            for (key, value) in [
                ("split.no", number),
                ("split.count", 2),
                ("split.tensors.count", all),
            ] {
                let value = match draw.rarely() {
                    true => draw.number(),
                    false => value,
                };
                values.push((key.to_owned(), Value::u32(value)));
            }
            let mut part = File::new(values, tensors.to_vec());
            part.alignment = file.alignment;
            let name = format!("m-{:05}-of-00002.gguf", number + 1);
            (name, part.bytes())
        };
    let one = part(draw, 0, file.values.clone(), first);
    let more = match draw.rarely() {
        true => file.values.iter().take(1).cloned().collect(),
        false => Vec::new(),
    };
    let two = part(draw, 1, more, second);
    match draw.rarely() {
        true => vec![one],
        false => vec![one, two],
    }
}

/// Sizes of a model.
struct Sizes {
    vocabulary: u64,
    hidden: u64,
    inner: u64,
    heads: u64,
    kv_heads: u64,
    head: u64,
    experts: u64,
}

fn model(draw: &mut Draw<'_>) -> File {
    let family = draw.pick(&FAMILIES);
    let (tokenizer, vocabulary) = vocabulary::values(draw);
    let heads = draw.pick(&[2, 1, 4]);
    // Rows of every kind of block, in files of some 10 kB.
    let (hidden, inner) = draw.pick(&[(8, 16), (32, 32), (8, 256), (256, 16)]);
    let sizes = Sizes {
        vocabulary,
        hidden,
        inner,
        heads,
        kv_heads: draw.pick(&[heads, 1]),
        head: draw.pick(&[4, 8, 2]),
        experts: 2,
    };
    let layers = draw.pick(&[1, 2]);
    let mut values = vec![("general.architecture".to_owned(), Value::text(family))];
    values.extend(config(draw, family, &sizes, layers));
    values.extend(tokenizer);
    if draw.flag() {
        let source = match draw.flag() {
            true => template::source(draw),
            false => "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}".to_owned(),
        };
        values.push(("tokenizer.chat_template".to_owned(), Value::text(&source)));
    }
    let tensors = tensors(draw, family, &sizes, layers);
    File::new(values, tensors)
}

fn config(draw: &mut Draw<'_>, family: &str, sizes: &Sizes, layers: u64) -> Vec<(String, Value)> {
    let context = 64;
    let mut numbers = vec![
        ("block_count", layers),
        ("context_length", context),
        ("embedding_length", sizes.hidden),
        ("feed_forward_length", sizes.inner),
        ("attention.head_count", sizes.heads),
        ("attention.head_count_kv", sizes.kv_heads),
        ("attention.key_length", sizes.head),
        ("attention.value_length", sizes.head),
        ("rope.dimension_count", sizes.head),
    ];
    if family == "qwen3moe" {
        numbers.push(("expert_count", sizes.experts));
        numbers.push(("expert_used_count", 1));
        numbers.push(("expert_feed_forward_length", sizes.inner));
    }
    if draw.flag() {
        let window = draw.pick(&[16, context, 0, 1]);
        numbers.push(("attention.sliding_window", window));
    }
    if draw.rarely() {
        let period = draw.pick(&[1, 2, 0, 3]);
        numbers.push(("attention.sliding_window_pattern", period));
    }
    let mut floats = vec![
        ("rope.freq_base", 10_000.0),
        ("attention.layer_norm_rms_epsilon", 1e-5),
    ];
    let mut texts = Vec::new();
    match draw.below(6) {
        3 => {
            texts.push(("rope.scaling.type", "linear"));
            floats.push((
                "rope.scaling.factor",
                draw.pick(&[2.0, 1.0, 0.5, 0.0, -1.0]),
            ));
        }
        4 => {
            texts.push(("rope.scaling.type", "yarn"));
            floats.push(("rope.scaling.factor", draw.pick(&[4.0, 1.0, 0.5, 1e30])));
            numbers.push((
                "rope.scaling.original_context_length",
                draw.pick(&[16, 64, 0]),
            ));
        }
        5 => {
            numbers.push((
                "rope.scaling.original_context_length",
                draw.pick(&[16, 64, 0]),
            ));
            floats.push(("rope.scaling.attn_factor", draw.pick(&[1.0, 0.0, 2.0])));
        }
        _ => {}
    }
    if draw.rarely() {
        floats.push(("attn_logit_softcapping", draw.pick(&[50.0, 0.0, -1.0])));
    }
    let numbers = numbers.into_iter().map(|(key, n)| (key, Value::u32(n)));
    let floats = floats.into_iter().map(|(key, x)| (key, Value::f32(x)));
    let texts = texts
        .into_iter()
        .map(|(key, text)| (key, Value::text(text)));
    let mut all: Vec<(&str, Value)> = numbers.chain(floats).chain(texts).collect();
    if draw.rarely() {
        let local = (0..layers).map(|layer| Value::flag(layer % 2 == 0));
        let local = Value::list(super::write::BOOL, local);
        all.push(("attention.sliding_window_pattern", local));
    }
    if draw.rarely() {
        all.push(("x", Value::list(TEXT, [Value::text("y")])));
    }
    all.into_iter()
        .map(|(key, value)| (format!("{family}.{key}"), value))
        .collect()
}

fn tensors(draw: &mut Draw<'_>, family: &str, sizes: &Sizes, layers: u64) -> Vec<Tensor> {
    let Sizes {
        vocabulary,
        hidden,
        inner,
        heads,
        kv_heads,
        head,
        experts,
    } = *sizes;
    let (queries, keys) = (heads * head, kv_heads * head);
    let mut wanted = vec![
        ("token_embd.weight".to_owned(), vec![vocabulary, hidden]),
        ("output_norm.weight".to_owned(), vec![hidden]),
    ];
    if draw.flag() {
        wanted.push(("output.weight".to_owned(), vec![vocabulary, hidden]));
    }
    match draw.below(8) {
        6 => wanted.push(("rope_freqs.weight".to_owned(), vec![head / 2])),
        7 => {
            let factors = ["long", "short"]
                .map(|kind| (format!("rope_factors_{kind}.weight"), vec![head / 2]));
            wanted.extend(factors);
        }
        _ => {}
    }
    let experts = (family == "qwen3moe").then_some(experts);
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            wanted.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        };
        match family {
            "phi3" => add("attn_qkv.weight", &[queries + 2 * keys, hidden]),
            _ => {
                add("attn_q.weight", &[queries, hidden]);
                add("attn_k.weight", &[keys, hidden]);
                add("attn_v.weight", &[keys, hidden]);
            }
        }
        if family == "qwen2" {
            add("attn_q.bias", &[queries]);
            add("attn_k.bias", &[keys]);
            add("attn_v.bias", &[keys]);
        }
        if ["qwen3", "qwen3moe", "gemma3"].contains(&family) {
            add("attn_q_norm.weight", &[head]);
            add("attn_k_norm.weight", &[head]);
        }
        add("attn_output.weight", &[hidden, queries]);
        add("attn_norm.weight", &[hidden]);
        add("ffn_norm.weight", &[hidden]);
        if family.starts_with("gemma") {
            add("post_attention_norm.weight", &[hidden]);
            add("post_ffw_norm.weight", &[hidden]);
        }
        match experts {
            Some(count) => {
                add("ffn_gate_inp.weight", &[count, hidden]);
                add("ffn_gate_exps.weight", &[count, inner, hidden]);
                add("ffn_up_exps.weight", &[count, inner, hidden]);
                add("ffn_down_exps.weight", &[count, hidden, inner]);
            }
            None if family == "phi3" => {
                add("ffn_up.weight", &[2 * inner, hidden]);
                add("ffn_down.weight", &[hidden, inner]);
            }
            None => {
                add("ffn_gate.weight", &[inner, hidden]);
                add("ffn_up.weight", &[inner, hidden]);
                add("ffn_down.weight", &[hidden, inner]);
            }
        }
    }
    let tensor = |(name, shape): (String, Vec<u64>)| {
        let columns = shape.last().copied().unwrap_or(1);
        let fitting: Vec<(u32, u64, u64)> = TYPES
            .into_iter()
            .filter(|(_, elements, _)| columns.is_multiple_of(*elements) && shape.len() > 1)
            .collect();
        let (kind, elements, bytes) = match fitting.is_empty() {
            true => TYPES[0],
            false => draw.pick(&fitting),
        };
        let length = shape.iter().product::<u64>() / elements * bytes;
        // Zeros, small and large numbers, and what is none in most formats.
        let fill = draw.pick(&[0, 0x11, 0x3c, 0x7b, 0xff]);
        let data = vec![fill; length as usize];
        Tensor {
            name,
            shape,
            kind,
            data,
        }
    };
    wanted.into_iter().map(tensor).collect()
}
