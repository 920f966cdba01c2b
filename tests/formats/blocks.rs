//! Models whose matrices are blocks, computed with as they lie in the file.

use super::block_model::blocks_of_every_type;
use super::gguf::logits;
use burn::tensor::Device;
use polykv::Storage;
use polykv::models::load;
use polykv::ops::BlockType;

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
