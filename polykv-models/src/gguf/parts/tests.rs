use super::super::testing::{Gguf, tiny_llama};
use super::*;
use std::fs;
use tempfile::TempDir;

const NAMES: [&str; 3] = [
    "x-00001-of-00003.gguf",
    "x-00002-of-00003.gguf",
    "x-00003-of-00003.gguf",
];

/// A part with the keys that `gguf-split` writes.
fn part(base: Gguf, number: u64, count: u64, tensors: i64) -> Gguf {
    base.value(NUMBER, &Value::Uint(number))
        .value(COUNT, &Value::Uint(count))
        .value(TENSORS, &Value::Int(tensors))
}

/// Metadata and one tensor, a part without tensors, and two tensors.
fn parts() -> [Gguf; 3] {
    let first = tiny_llama().f32_tensor("a", &[9], &[1.0; 9]);
    let last = Gguf::new()
        .f32_tensor("b", &[2], &[2.0, 3.0])
        .f32_tensor("c", &[1], &[4.0]);
    let all = 5;
    [
        part(first, 0, 3, all),
        part(Gguf::new(), 1, 3, all),
        part(last, 2, 3, all),
    ]
}

fn written(parts: &[Gguf; 3]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, part) in NAMES.iter().zip(parts) {
        fs::write(dir.path().join(name), part.bytes()).unwrap();
    }
    dir
}

/// The refusal is the same whichever part is given.
fn refusal(dir: &TempDir) -> String {
    let mut messages: Vec<String> = NAMES
        .iter()
        .map(|name| GgufFile::open(&dir.path().join(name)).unwrap_err())
        .inspect(|error| assert!(error.is_refusal()))
        .map(|error| error.to_string())
        .collect();
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages.remove(0)
}

#[test]
fn any_part_stands_for_the_whole() {
    let dir = written(&parts());
    for name in NAMES {
        let file = GgufFile::open(&dir.path().join(name)).unwrap();
        assert!(file.place().ends_with(NAMES[0]));
        assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
        assert_eq!(file.tensor_names().count(), 5);
        assert_eq!(file.read_f32("a").unwrap(), [1.0; 9]);
        assert_eq!(file.read_f32("b").unwrap(), [2.0, 3.0]);
        assert_eq!(file.read_f32("c").unwrap(), [4.0]);
        let info = file.tensor("c").unwrap();
        assert_eq!(info.part, 2);
        assert!(file.place_of(info).ends_with(NAMES[2]));
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    for name in NAMES {
        let dir = written(&parts());
        fs::remove_file(dir.path().join(name)).unwrap();
        let message = NAMES
            .iter()
            .filter(|given| **given != name)
            .map(|given| GgufFile::open(&dir.path().join(given)).unwrap_err());
        for error in message {
            let message = error.to_string();
            assert!(error.is_refusal(), "{message}");
            assert!(
                message.contains(&format!("{name}: file is missing")),
                "{message}"
            );
        }
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    type Change = fn(Gguf) -> Gguf;
    let with = |index: usize, change: Change| {
        let mut parts = parts();
        parts[index] = change(parts[index].clone());
        refusal(&written(&parts))
    };
    let cases: [(usize, Change, [&str; 2]); 9] = [
        // In another order, of another set, without its keys.
        (
            1,
            |p| p.replace(NUMBER, &Value::Uint(2)),
            [NAMES[1], "split.no is 2; allowed: 1"],
        ),
        (
            2,
            |p| p.replace(COUNT, &Value::Uint(4)),
            [NAMES[2], "split.count is 4; allowed: 3"],
        ),
        (
            2,
            |p| p.replace(TENSORS, &Value::Int(6)),
            [NAMES[2], "split.tensors.count is 6; allowed: 5"],
        ),
        (0, |p| p.without(NUMBER), [NAMES[0], "split.no is missing"]),
        (
            1,
            |p| p.without(COUNT),
            [NAMES[1], "split.count is missing"],
        ),
        (
            0,
            |p| p.replace(TENSORS, &Value::Int(-1)),
            [NAMES[0], "split.tensors.count is -1"],
        ),
        // Of another model.
        (
            1,
            |p| p.value("general.architecture", &Value::String("qwen3".into())),
            [
                NAMES[1],
                "\"general.architecture\" is \"qwen3\"; allowed: \"llama\"",
            ],
        ),
        (
            2,
            |p| p.value("qwen3.block_count", &Value::Uint(1)),
            [NAMES[2], "absent, as in the first part"],
        ),
        (
            2,
            |p| p.f32_tensor("a", &[1], &[0.0]),
            [NAMES[2], "tensor \"a\" is also in "],
        ),
    ];
    for (index, change, named) in cases {
        let message = with(index, change);
        for part in named {
            assert!(message.contains(part), "no {part} in {message}");
        }
    }
    // What the parts share may be said in all of them, and each may have an alignment of its own.
    let mut same = parts();
    same[2] = same[2]
        .clone()
        .value("general.architecture", &Value::String("llama".into()))
        .value(ALIGNMENT, &Value::Uint(32));
    GgufFile::open(&written(&same).path().join(NAMES[0])).unwrap();
}

#[test]
fn a_wrong_number_of_tensors_is_refused() {
    let parts = parts().map(|part| part.replace(TENSORS, &Value::Int(4)));
    let message = refusal(&written(&parts));
    for part in [NAMES[0], "split.tensors.count is 4; allowed: 5"] {
        assert!(message.contains(part), "no {part} in {message}");
    }
}

#[test]
fn every_part_is_checked_like_a_whole_file() {
    for name in NAMES {
        let dir = written(&parts());
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([0; 64]);
        fs::write(&path, &bytes).unwrap();
        let message = refusal(&dir);
        assert!(
            message.contains(name) && message.contains("size is"),
            "{message}"
        );
        fs::write(&path, b"").unwrap();
        let message = refusal(&dir);
        assert!(
            message.contains(name) && message.contains("0 bytes"),
            "{message}"
        );
    }
}

#[test]
fn a_part_under_another_name_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let [first, ..] = parts();
    for name in ["x.gguf", "x-1-of-3.gguf", "x-00001-of-00513.gguf"] {
        let path = dir.path().join(name);
        fs::write(&path, first.bytes()).unwrap();
        let error = GgufFile::open(&path).unwrap_err();
        let message = error.to_string();
        assert!(error.is_refusal(), "{message}");
        for part in [name, "NAME-00001-of-00002.gguf", "split.count"] {
            assert!(message.contains(part), "no {part} in {message}");
        }
    }
    let one = part(tiny_llama(), 0, 1, 2);
    let path = dir.path().join("x-00001-of-00001.gguf");
    fs::write(&path, one.bytes()).unwrap();
    GgufFile::open(&path).unwrap();
}

#[test]
fn names_of_parts() {
    let part = PartName::parse("a-of-b-00002-of-00003.gguf").unwrap();
    assert_eq!(
        (part.stem.as_str(), part.number, part.count),
        ("a-of-b", 2, 3)
    );
    let all: Vec<String> = part.all().collect();
    assert_eq!(all[2], "a-of-b-00003-of-00003.gguf");
    assert_eq!(first_name("a-of-b-00002-of-00003.gguf"), all[0]);
    assert_eq!(first_name("a.gguf"), "a.gguf");
    for other in [
        "x.gguf",
        "x-00001-of-00003",
        "x-0001-of-0003.gguf",
        "x-00000-of-00003.gguf",
        "x-00004-of-00003.gguf",
        "x-00001-of-00001.gguf",
        "x-00001-of-00513.gguf",
        "x-+0001-of-00003.gguf",
        "00001-of-00003.gguf",
    ] {
        assert_eq!(PartName::parse(other), None, "{other}");
    }
}
