//! Prompts, limits, names and flags.

use super::{check, rows, weights};
use crate::cli_support::{
    copy_of_tiny_model, generate_args, path_str, polykv, polykv_with, tiny_model,
};
use std::path::Path;

/// Arguments after `-p x`, what the error says.
const LIMITS: &str = "
    --policy snapkv --budget 8 | budget of layer 0 is 8 | at least 32 | snapkv
    --policy streaming-llm --budget 8 --set sinks=8 | is 8 | at least 9 | streaming-llm
    --policy snapkv --budget 40 --set windw=8 | command line | windw | window
    --policy h2o --budget 40 --set recent_fraction=2 | recent_fraction | 2 | from 0 to 1
    --policy h2o --budget 0 | budget.tokens is 0 | at least 1
    --policy h2o --budget 513 | budget.tokens is 513 | at most 512
    --policy h2o --budget-ratio 1.5 | budget.ratio is 1.5 | at most 1
    --policy h2o --budget-ratio -1 | budget.ratio is -1 | above 0
    --policy h2o --budget-byte-ratio 2 | budget.byte_ratio is 2 | at most 1
    --policy h2o --budget 20 --every 0 | every is 0 | 1 to
    --policy h2o --budget-mb 0 | budget in MB is 0 | above 0
    --policy h2o --budget-mb nan | budget in MB is NaN | above 0
    --temp -1 | temperature is -1 | 0 (greedy) to 100
    --temp nan | temperature is NaN | 0 (greedy) to 100
    --top-k 0 | top_k is 0 | 1 or more
    --top-p 1.5 | top_p is 1.5 | up to 1
    --min-p 2 | min_p is 2 | 0 to 1
    --repeat-penalty 0 | repeat_penalty is 0 | 0.01 to 100
    --plan /nonexistent.yaml | /nonexistent.yaml | No such file
";

#[test]
fn limits() {
    for row in rows(LIMITS) {
        let args: Vec<&str> = ["-p", "x"].into_iter().chain(row[0].split(' ')).collect();
        check(
            row[0],
            3,
            &row[1..],
            &polykv(&generate_args(&tiny_model(), &args)),
        );
    }
}

/// Whether the build lacks a backend or the machine the device, the answer says so; the build's with what to do.
#[test]
fn devices_that_are_not_there() {
    let model = tiny_model();
    for (backend, built) in [
        ("wgpu", cfg!(feature = "wgpu")),
        ("cuda", cfg!(feature = "cuda")),
    ] {
        let feature = format!("`--features {backend}`");
        let (device, name) = (format!("{backend}:63"), format!("device {backend}"));
        let args = [
            "generate",
            "-m",
            path_str(&model),
            "-p",
            "x",
            "--device",
            &device,
        ];
        let answer = polykv(&args);
        check(&device, 3, &[&name, "not supported"], &answer);
        assert_eq!(
            answer.stderr.contains(&feature),
            !built,
            "{}",
            answer.stderr
        );
    }
}

#[test]
fn prompts() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path_str(&path).to_string()
    };
    let (blank, latin) = (file("blank.txt", b" \n\t\n"), file("latin.txt", b"caf\xe9"));
    let large = file("large.txt", b"");
    let growing = std::fs::OpenOptions::new()
        .write(true)
        .open(&large)
        .unwrap();
    growing.set_len((64 << 20) + 1).unwrap();
    let none = format!("{}/none.txt", path_str(dir.path()));
    let long = "0 1 2 3 4 5 6 7 8 9 ".repeat(60);
    let empty = ["prompt", "empty", "at least one word"];
    let cases: [(&str, &str, &[&str]); 8] = [
        ("-p", "", &empty),
        ("-p", " \n", &empty),
        ("-f", &blank, &empty),
        ("-f", &latin, &["latin.txt", "0xe9 at offset 3", "UTF-8"]),
        (
            "-f",
            &large,
            &["large.txt", "size", "at most 67108864 bytes"],
        ),
        ("-f", &none, &["none.txt", "No such file"]),
        ("-f", path_str(dir.path()), &["directory"]),
        // Its digits and spaces are one token each, and the template comes on top.
        (
            "-p",
            &long,
            &["prompt: length is 12", " tokens", "at most 512 tokens"],
        ),
    ];
    for (flag, value, parts) in cases {
        let answer = polykv(&generate_args(&tiny_model(), &[flag, value]));
        check(value, 3, parts, &answer);
    }
    let piped = generate_args(&tiny_model(), &["-p", "-"]);
    let answer = polykv_with(&piped, b"\xff", Path::new("/nonexistent"));
    check("piped", 3, &["standard input", "0xff at offset 0"], &answer);
}

/// Model, what the error says.
const MODELS: &str = r#"
    smollm2 | --model | "smollm2" | smollm2-135m
    /nonexistent/model | /nonexistent/model | a .gguf file
    some-org/some-model | not in the cache | polykv pull some-org/some-model
    some-org/some-model:x.gguf | not in the cache | polykv pull some-org/some-model:x.gguf
    some-org/.. | --model | "some-org/.." | ORG/NAME
    smollm2-135m | not in the cache | polykv pull smollm2-135m
"#;

#[test]
fn models_that_are_not_there() {
    let cache = tempfile::tempdir().unwrap();
    for row in rows(MODELS) {
        let args = generate_args(Path::new(row[0]), &["-p", "Hello", "--offline"]);
        check(row[0], 3, &row[1..], &polykv_with(&args, b"", cache.path()));
    }
    let left: Vec<_> = std::fs::read_dir(cache.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Found only while running, so the code is that of a failure.
#[test]
fn numbers_that_are_none() {
    for (name, parts) in [
        ("lm_head.weight", &["NaN", "logit"][..]),
        ("model.layers.0.self_attn.q_proj.weight", &["NaN"]),
    ] {
        let model = copy_of_tiny_model();
        weights::edit(model.path(), |header, data| {
            let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
            // Finite in the file; the first products with it are not.
            for weight in data[start..start + 16].chunks_exact_mut(4) {
                weight.copy_from_slice(&f32::MAX.to_le_bytes());
            }
        });
        let prompt = ["-p", "Enough tokens for an eviction."];
        let args = [&prompt[..], &["--policy", "tova", "--budget", "4"]].concat();
        check(name, 4, parts, &polykv(&generate_args(model.path(), &args)));
    }
}

/// Without a policy that would notice, it is the logits that are none.
#[test]
fn numbers_beyond_f16_name_type_layer_and_cause() {
    let model = copy_of_tiny_model();
    weights::edit(model.path(), |header, data| {
        let range = &header["model.layers.1.self_attn.v_proj.weight"]["data_offsets"];
        let at = |end: usize| range[end].as_u64().unwrap() as usize;
        for weight in data[at(0)..at(1)].chunks_exact_mut(4) {
            // The weights fit f16, but not their products.
            weight.copy_from_slice(&60_000.0f32.to_le_bytes());
        }
    });
    let answer = |dtype: &str| {
        let args = ["-p", "Hello there", "-n", "2", "--dtype", dtype];
        polykv(&generate_args(model.path(), &args))
    };
    let parts = [
        "NaN",
        "layer 1",
        "f16, which ends at 65504",
        "try f32 or bf16",
    ];
    check("f16", 4, &parts, &answer("f16"));
    assert_eq!(answer("f32").code, 0);
}

/// Arguments, what the error says.
const GRAMMAR: &str = "
    generat | generat | generate
    generate -m x | --prompt | --file
    generate -p x | --model
    generate -m x -p x --polcy h2o | --polcy | --policy
    generate -m x -p x --policy snapvk --budget 9 | snapvk | snapkv | streaming-llm
    generate -m x -p x --policy snapkv | --budget
    generate -m x -p x --budget 9 | --policy
    generate -m x -p x --policy h2o --budget 9 --budget-ratio 0.5 | --budget | --budget-ratio
    generate -m x -p x --policy h2o --budget nine | nine | --budget
    generate -m x -p x --policy h2o --budget 9 --allocator pyramdi | pyramdi | uniform
    generate -m x -p x --policy h2o --budget 9 --phase both,decode | both,decode | prefill
    generate -m x -p x --policy h2o --budget 9 --set window | window | KEY=VALUE
    generate -m x -p x --plan a --policy h2o --budget 9 | --plan | --policy
    generate -m x -p x --plan a --set a=1 | --plan | --set
    generate -m x -p x --device gpu | gpu | cuda[:i]
    generate -m x -p x --dtype f64 | f64 | bf16
    generate -m x -p x --chunk 0 | 0 | --chunk
    generate -m x -p x --stop= | --stop
    generate -m x -p x --raw --system y | --raw | --system
    generate -m x -p - -f - | --prompt | --file | standard input
    pull smollm2 | smollm2 | smollm2-135m | ORG/NAME
    pull org/../name | org/../name | ORG/NAME:FILE.gguf
    pull --revision v1 | NAME
    plan show | FILE
    eval merge --out a | DIR
    eval merge a | --out
    eval -m x --task needle --shard 0/2 | --out
    eval -m x --task needle merge a --out b | merge
";

#[test]
fn what_the_grammar_knows() {
    for row in rows(GRAMMAR) {
        let words: Vec<&str> = row[0].split(' ').collect();
        check(row[0], 2, &row[1..], &polykv(&words));
    }
}
