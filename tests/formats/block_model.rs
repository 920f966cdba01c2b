//! A model whose matrices are blocks.

use super::writer::Gguf;
use polykv::ops::BlockType;

/// A Llama model of two layers whose matrices are random blocks, each kind of matrix in another type.
pub fn blocks_of_every_type() -> Gguf {
    let mut file = Gguf::default();
    file.text("general.architecture", "llama");
    for (key, value) in [
        ("llama.block_count", 2),
        ("llama.context_length", 128),
        ("llama.embedding_length", 256),
        ("llama.feed_forward_length", 512),
        ("llama.attention.head_count", 8),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", 32),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        file.uint(key, value);
    }
    file.float("llama.attention.layer_norm_rms_epsilon", 1e-6);
    let ones = 1f32.to_le_bytes().repeat(256);
    file.tensor("output_norm.weight", &[256], 0, &ones);
    let mut seed = 0;
    let mut add = |file: &mut Gguf, name: String, shape: [usize; 2], kind: BlockType| {
        seed += 1;
        file.tensor(
            &name,
            &shape,
            ggml_id(kind),
            &random_blocks(kind, shape, seed),
        );
    };
    add(
        &mut file,
        "token_embd.weight".into(),
        [70, 256],
        BlockType::Q8_0,
    );
    for layer in 0..2 {
        for norm in ["attn_norm", "ffn_norm"] {
            file.tensor(&format!("blk.{layer}.{norm}.weight"), &[256], 0, &ones);
        }
        for (name, shape, kind) in [
            ("attn_q", [256, 256], BlockType::Q4_0),
            ("attn_k", [64, 256], BlockType::Q4_1),
            ("attn_v", [64, 256], BlockType::Q5_0),
            ("attn_output", [256, 256], BlockType::Q5_1),
            ("ffn_gate", [512, 256], BlockType::Q4K),
            ("ffn_up", [512, 256], BlockType::Q5K),
            ("ffn_down", [256, 512], BlockType::Q6K),
        ] {
            add(&mut file, format!("blk.{layer}.{name}.weight"), shape, kind);
        }
    }
    file
}

fn ggml_id(kind: BlockType) -> u32 {
    match kind {
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q5_0 => 6,
        BlockType::Q5_1 => 7,
        BlockType::Q8_0 => 8,
        BlockType::Q4K => 12,
        BlockType::Q5K => 13,
        BlockType::Q6K => 14,
        _ => panic!("{kind}"),
    }
}

/// Blocks of any integers, whose numbers are small and about as often negative as positive.
pub fn random_blocks(kind: BlockType, [rows, columns]: [usize; 2], seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as u8
    };
    let mut bytes: Vec<u8> = (0..rows * columns / kind.elements() * kind.bytes())
        .map(|_| next())
        .collect();
    // Where scale and minimum are, and what they are.
    let halves: &[(usize, f32)] = match kind {
        BlockType::Q4_0 => &[(0, 0.01)],
        BlockType::Q5_0 => &[(0, 0.005)],
        BlockType::Q8_0 => &[(0, 0.001)],
        BlockType::Q4_1 => &[(0, 0.01), (2, -0.075)],
        BlockType::Q5_1 => &[(0, 0.005), (2, -0.0775)],
        BlockType::Q4K => &[(0, 0.0003), (2, 0.00225)],
        BlockType::Q5K => &[(0, 0.00015), (2, 0.002325)],
        _ => &[(208, 0.00003)],
    };
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        for &(at, value) in halves {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
    }
    bytes
}
