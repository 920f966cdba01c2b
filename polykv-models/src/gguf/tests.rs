use super::testing::{Gguf, tiny_llama};
use super::*;
use proptest::prelude::*;

fn refusal(bytes: &[u8]) -> String {
    let message = match parse::parse("tiny.gguf", bytes, bytes.len() as u64) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    };
    assert!(
        message.contains("tiny.gguf") && message.lines().count() == 1,
        "{message}"
    );
    message
}

#[test]
fn reads_values_and_tensors() {
    let file = Gguf::new()
        .value("a.number", &Value::Uint(7))
        .value("a.float", &Value::Float(1e-5))
        .value(
            "a.list",
            &Value::Array(vec![Value::String("x".into()), Value::String("y".into())]),
        )
        .f32_tensor("w", &[2, 3], &[1., 2., 3., 4., 5., 6.])
        .f32_tensor("v", &[1], &[9.])
        .open();
    assert_eq!(file.uint("a.number").unwrap(), Some(7));
    assert_eq!(file.number("a.float").unwrap(), Some(1e-5));
    assert_eq!(file.texts("a.list").unwrap(), Some(vec!["x", "y"]));
    assert_eq!(file.uint("a.missing").unwrap(), None);
    assert!(
        file.uint("a.list")
            .unwrap_err()
            .to_string()
            .contains("an array of 2")
    );
    assert_eq!(file.tensor_names().collect::<Vec<_>>(), ["v", "w"]);
    assert_eq!(file.tensor("w").unwrap().shape, [2, 3]);
    assert_eq!(file.read_f32("w").unwrap(), [1., 2., 3., 4., 5., 6.]);
    assert!(file.read_f32("u").unwrap_err().is_refusal());
}

#[test]
fn unsupported_types_are_named() {
    let file = Gguf::new().raw_tensor("w", &[1, 256], 10, &[0; 84]).open();
    assert!(
        file.read_f32("w")
            .unwrap_err()
            .to_string()
            .contains("Q2_K of tensor w")
    );
    let unknown = Gguf::new().raw_tensor("w", &[1], 99, &[0; 4]).bytes();
    assert!(refusal(&unknown).contains("ggml type 99"));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = tiny_llama().bytes();
    assert!(parse::parse("tiny.gguf", &bytes[..], bytes.len() as u64).is_ok());
    for length in 0..bytes.len() {
        refusal(&bytes[..length]);
    }
}

#[test]
fn hostile_headers() {
    let with = |at: usize, patch: &[u8]| {
        let mut bytes = tiny_llama().bytes();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        refusal(&bytes)
    };
    assert!(with(0, b"GGML").contains("magic"));
    assert!(with(4, &1u32.to_le_bytes()).contains("version"));
    assert!(with(4, &3u32.to_be_bytes()).contains("big-endian"));
    assert!(with(8, &u64::MAX.to_le_bytes()).contains("tensor count"));
    assert!(with(16, &u64::MAX.to_le_bytes()).contains("metadata count"));
    let many = [tiny_llama().bytes(), vec![0; 4 << 20]].concat();
    let with_count = [&many[..8], &65_537u64.to_le_bytes(), &many[16..]].concat();
    assert!(refusal(&with_count).contains("tensor count is 65537; allowed: up to 65536"));
    assert!(with(24, &(1u64 << 40).to_le_bytes()).contains("metadata key length"));
}

#[test]
fn hostile_values_and_tensors() {
    let mut nested = Value::Uint(1);
    for _ in 0..65 {
        nested = Value::Array(vec![nested]);
    }
    let one = || Gguf::new().f32_tensor("w", &[1], &[0.0]);
    let shape = |shape: &[u64]| Gguf::new().raw_tensor("w", shape, 0, &[0; 4]).bytes();
    let cases = [
        (one().value("n", &nested).bytes(), "nesting"),
        (
            one()
                .value("k", &Value::Uint(1))
                .value("k", &Value::Uint(2))
                .bytes(),
            "twice",
        ),
        (one().f32_tensor("w", &[1], &[0.0]).bytes(), "twice"),
        (
            one().value("general.alignment", &Value::Uint(0)).bytes(),
            "alignment",
        ),
        (
            one().value("general.alignment", &Value::Uint(24)).bytes(),
            "alignment",
        ),
        (
            one().value("general.alignment", &Value::Bool(true)).bytes(),
            "alignment",
        ),
        (shape(&[]), "dimensions"),
        (shape(&[1; 5]), "dimensions"),
        (shape(&[0]), "dimension"),
        (shape(&[1 << 32, 1 << 32]), "shape"),
        (shape(&[1 << 40]), "inside"),
        (
            Gguf::new().raw_tensor("w", &[31], 8, &[0; 34]).bytes(),
            "row length",
        ),
        (one().offset(32).bytes(), "offset is 32; allowed: 0"),
        (one().offset(1 << 40).bytes(), "offset"),
        (
            one().f32_tensor("v", &[1], &[0.0]).offset(0).bytes(),
            "offset is 0; allowed: 32",
        ),
        (
            Gguf::new()
                .f32_tensor(&"n".repeat(65), &[1], &[0.0])
                .bytes(),
            "name length",
        ),
    ];
    for (bytes, named) in cases {
        let message = refusal(&bytes);
        assert!(message.contains(named), "{named}: {message}");
    }
}

#[test]
fn tensors_lie_as_they_were_written() {
    let file = || {
        Gguf::new()
            .f32_tensor("w", &[9], &[1.0; 9])
            .f32_tensor("v", &[8], &[2.0; 8])
    };
    let whole = file().bytes();
    let parse = |bytes: &[u8]| parse::parse("tiny.gguf", bytes, bytes.len() as u64);
    assert_eq!(parse(&whole).unwrap().tensors.len(), 2);
    // A tail up to the next multiple of the alignment is padding, more is not.
    let tail = |count| [&whole[..], &vec![0; count]].concat();
    assert!(parse(&tail(0)).is_ok());
    assert!(refusal(&tail(1)).contains("where tensor \"v\" ends"));
    // A gap, and a type of another size, both before the last tensor and in it.
    assert!(refusal(&file().offset(96).bytes()).contains("offset is 96; allowed: 64"));
    let halves = Gguf::new()
        .raw_tensor("w", &[40], 1, &[0; 160])
        .f32_tensor("v", &[8], &[2.0; 8]);
    assert!(refusal(&halves.bytes()).contains("offset is 160; allowed: 96"));
    let last = Gguf::new().raw_tensor("w", &[40], 1, &[0; 160]).bytes();
    assert!(refusal(&last).contains("where tensor \"w\" ends"));
    // Another alignment moves the data.
    let other = Gguf::new()
        .value("general.alignment", &Value::Uint(64))
        .f32_tensor("w", &[8], &[1.0; 8])
        .f32_tensor("v", &[8], &[2.0; 8]);
    assert!(refusal(&other.bytes()).contains("offset is 32; allowed: 64"));
}

#[test]
fn what_lies_between_tensors_is_zero() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let file = Gguf::new()
        .f32_tensor("w", &[9], &[1.0; 9])
        .f32_tensor("v", &[8], &[2.0; 8]);
    let mut bytes = file.bytes();
    // The last byte before the second tensor.
    let at = bytes.len() - 8 * 4 - 1;
    std::fs::write(&path, &bytes).unwrap();
    GgufFile::open(&path).unwrap();
    bytes[at] = 1;
    std::fs::write(&path, &bytes).unwrap();
    let message = GgufFile::open(&path).unwrap_err().to_string();
    assert!(
        message.contains("padding after tensor \"w\" is 1"),
        "{message}"
    );
}

#[test]
fn missing_and_empty_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    for refused in [path.as_path(), dir.path()] {
        assert!(GgufFile::open(refused).err().unwrap().is_refusal());
    }
    std::fs::write(&path, b"").unwrap();
    assert!(GgufFile::open(&path).err().unwrap().is_refusal());
}

proptest! {
    /// Damage of any kind gives an answer or an error, never a panic; what is accepted can be read.
    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = tiny_llama().bytes();
        for (index, byte) in flips {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(directory) = parse::parse("tiny.gguf", &bytes[..], bytes.len() as u64) {
            for info in directory.tensors.values() {
                let _ = dequant::to_f32(info.ggml_type, &bytes[info.range.clone()]);
            }
        }
    }
}
