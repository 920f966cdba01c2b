//! Models whose matrices are blocks, computed with as they lie in the file.

use super::gguf::logits;
use super::writer::Gguf;
use burn::tensor::Device;
use polykv::Storage;
use polykv::models::load;
use polykv::ops::BlockType;

/// A Llama model of two layers whose matrices are random blocks, each kind of matrix in another type.
fn blocks_of_every_type() -> Gguf {
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
fn random_blocks(kind: BlockType, [rows, columns]: [usize; 2], seed: u64) -> Vec<u8> {
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

/// The same model with its blocks and in f32: what differs is the rounding of activations to 8 bits, in prompts and tokens,
/// and of the cache to f16.
#[test]
fn blocks_are_computed_with_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    blocks_of_every_type().write(&path);
    let device = Device::flex();
    let [exact, native] = [Storage::F32, Storage::Native]
        .map(|storage| load::load_weights(&path, storage, &device).unwrap());
    let blocks: u64 = [
        (BlockType::Q8_0, 70 * 256),
        (BlockType::Q4_0, 2 * 256 * 256),
        (BlockType::Q4_1, 2 * 64 * 256),
        (BlockType::Q5_0, 2 * 64 * 256),
        (BlockType::Q5_1, 2 * 256 * 256),
        (BlockType::Q4K, 2 * 512 * 256),
        (BlockType::Q5K, 2 * 512 * 256),
        (BlockType::Q6K, 2 * 256 * 512),
    ]
    .map(|(kind, count): (BlockType, usize)| (count / kind.elements() * kind.bytes()) as u64)
    .iter()
    .sum();
    assert_eq!(native.bytes_per_token(), blocks);
    // Five norms of 256 in f32 beside them.
    assert_eq!(load::own_bytes(&path).unwrap(), blocks + 5 * 256 * 4);
    for prompt in [(3..60).collect::<Vec<_>>(), vec![5, 9, 11]] {
        let [wanted, found] = [&exact, &native].map(|model| logits(&**model, &prompt));
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = wanted.iter().zip(&found).map(|(a, b)| square(a - b)).sum();
        let off = (off / wanted.iter().copied().map(square).sum::<f64>()).sqrt();
        println!("{} tokens: {off:.1e}", prompt.len());
        assert!((1e-5..3e-2).contains(&off), "{off}");
    }
}

#[test]
fn scales_that_are_not_finite_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    blocks_of_every_type().write(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    // The file ends with the down projection of layer 1; its second row begins with this scale.
    let row = BlockType::Q6K.bytes() * 2;
    let at = bytes.len() - 256 * row + row + 208;
    bytes[at..at + 2].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = load::load_weights(&path, Storage::Native, &Device::flex()).unwrap_err();
    let message = error.to_string();
    for part in [
        "x.gguf",
        "scale in row 1 of tensor model.layers.1.mlp.down_proj.weight is -inf",
        "finite numbers",
    ] {
        assert!(message.contains(part), "{message}");
    }
}
