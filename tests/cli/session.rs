//! `polykv generate --save-session` and `--session`.

use super::{LONG, text};
use crate::cli_support::{
    copy_of_tiny_model, generate, generate_args, generate_json, path_str, polykv, tiny_model,
};
use burn::tensor::Device;
use polykv::models::{Finish, GenerateOptions, Generator, load};
use polykv::policy::{Params, Policies};
use polykv::{Budget, Phase, Plan};
use serde_json::Value;
use std::ops::ControlFlow;

const BUDGET: [&str; 4] = ["--policy", "h2o", "--budget", "40"];

fn refused(args: &[&str], parts: &[&str]) {
    let answer = polykv(&generate_args(&tiny_model(), args));
    assert_eq!(
        (answer.code, &*answer.stdout),
        (3, ""),
        "{args:?}: {}",
        answer.stderr
    );
    assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
    for part in parts {
        assert!(
            answer.stderr.contains(part),
            "no '{part}': {}",
            answer.stderr
        );
    }
}

fn count(json: &Value, field: &str) -> u64 {
    json.pointer(field).and_then(Value::as_u64).unwrap()
}

/// Two commands give what one process gives that never saved anything.
#[test]
fn a_session_goes_on_as_one_process_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.session");
    let first = ["-p", LONG, "-n", "9", "--save-session", path_str(&file)];
    let first = generate_json(&[&first[..], &BUDGET].concat());
    let bytes = file.metadata().unwrap().len();
    assert_eq!(count(&first, "/session_bytes"), bytes);
    assert!(first.get("session").is_none());
    let again = dir.path().join("b.session");
    let second = ["--session", path_str(&file), "-p", "And now?", "-n", "9"];
    let save = ["--save-session", path_str(&again)];
    let second = generate_json(&[&second[..], &save].concat());
    assert_eq!(second["session"]["reuse"], "compressed");
    // The last token of the first answer was not fed yet.
    let seen = count(&first, "/prompt_tokens") + 8;
    assert_eq!(count(&second, "/session/tokens"), seen);
    assert_eq!(
        count(&second, "/kv/seen"),
        seen + count(&second, "/prompt_tokens") + 8
    );
    assert_eq!(second["plan_hash"], first["plan_hash"]);

    let model = load(&tiny_model(), &Device::flex()).unwrap();
    let policy = Policies::default().build("h2o", &Params::new()).unwrap();
    let plan = Plan::uniform(3, policy, Budget::Tokens(40), &Phase::BOTH);
    let prompt = model.prompt(LONG).unwrap();
    let next = model.chat.as_ref().unwrap();
    let next = next.follow_up(&model.tokenizer, "And now?").unwrap();
    let mut generator = Generator::new(model, plan).unwrap();
    let mut answers = Vec::new();
    for ids in [prompt, next] {
        let options = GenerateOptions {
            max_new_tokens: 9,
            ..GenerateOptions::default()
        };
        let run = generator.generate(&ids, &options, &mut |_| ControlFlow::Continue(()));
        let run = run.unwrap();
        assert_eq!(run.finish, Finish::Length);
        answers.push(run.text);
    }
    assert_eq!(answers, [text(&first), text(&second)]);
    // The whole state is the same, not only the greedy tokens.
    let session = polykv::Session::read(&again).unwrap();
    let info = session.info();
    let whole = dir.path().join("c.session");
    generator.save(&whole, &info.plan, &info.model).unwrap();
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&again).unwrap());
}

#[test]
fn what_is_kept_in_full_is_reused_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.session");
    // Digits and spaces are one token each.
    let (before, after) = ("1 2 3 4 5 6 7 8 9 0 1 2 3 4 5", " 6 7 8 9");
    generate(&[
        "--raw",
        "-p",
        before,
        "-n",
        "0",
        "--save-session",
        path_str(&file),
    ]);
    let answer = generate(&[
        "--raw",
        "--session",
        path_str(&file),
        "-p",
        after,
        "-n",
        "12",
    ]);
    let whole = format!("{before}{after}");
    assert_eq!(
        answer.stdout,
        generate(&["--raw", "-p", &whole, "-n", "12"]).stdout
    );
    let line = "goes on after 29 tokens, exact";
    assert!(answer.stderr.contains(line), "{}", answer.stderr);
    let saved = generate(&["-p", "x", "-n", "2", "--save-session", path_str(&file)]);
    assert!(saved.stderr.contains("kB saved"), "{}", saved.stderr);
}

/// An answer that ended by itself is not ended again.
#[test]
fn turns_are_ended_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.session");
    let tokens = |n: &str| {
        generate(&["-p", "Hello", "-n", n, "--save-session", path_str(&file)]);
        let next = ["--session", path_str(&file), "-p", "And?", "-n", "1"];
        let page = dir.path().join("kept.html");
        let show = ["--show-kept", path_str(&page)];
        let json = generate_json(&[&next[..], &show].concat());
        let html = std::fs::read_to_string(page).unwrap();
        // The page shows the tokens of the session too.
        let last = html.rsplit(" data-p=\"").next().unwrap();
        let last = last.split('"').next().unwrap();
        let last: u64 = last.rsplit('-').next().unwrap().parse().unwrap();
        let before = count(&json, "/session/tokens");
        assert_eq!(last + 1, before + count(&json, "/prompt_tokens"));
        count(&json, "/prompt_tokens")
    };
    // With an unfinished answer its last token comes before the markup that ends it.
    assert_eq!(tokens("3"), tokens("0") + 1);
}

#[test]
fn flags_that_contradict_the_session_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.session");
    let file = path_str(&file);
    generate(
        &[
            &["-p", LONG, "-n", "2", "--save-session", file],
            &BUDGET[..],
        ]
        .concat(),
    );
    let next = ["--session", file, "-p", "x", "-n", "2"];
    let with = |more: &[&'static str]| [&next[..], more].concat();
    // The same plan is no contradiction.
    generate(&with(&BUDGET));
    for (more, flag) in [
        (&["--policy", "h2o", "--budget", "41"][..], "--policy"),
        (&["--policy", "tova", "--budget", "40"], "--policy"),
        (&["--policy", "full"], "--policy"),
        (&["--allow-full-extra"], "--allow-full-extra"),
    ] {
        refused(&with(more), &["command line", flag, "the session's plan ("]);
    }
    let plan = dir.path().join("plan.yaml");
    let yaml = "schema: 1\nlayers: 3\nbudget: {tokens: 40}\ndecode: [{layers: 0-2, policy: h2o}]\n";
    std::fs::write(&plan, yaml).unwrap();
    let given = [&next[..], &["--plan", path_str(&plan)]].concat();
    refused(&given, &["command line", "--plan", "the session's plan ("]);
    for more in [&["--system", "Be brief."][..], &["--protect-prefix", "2"]] {
        refused(&with(more), &[more[0], "beside --session"]);
    }
    refused(
        &with(&["--dtype", "f16"]),
        &["a.session: model is", " f32 ", " f16 "],
    );
}

#[test]
fn other_models_and_other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.session");
    let file = path_str(&file);
    generate(&["-p", LONG, "-n", "2", "--save-session", file]);
    let content = std::fs::read(file).unwrap();
    let spoiled = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path_str(&path).to_string()
    };
    let cut = spoiled("cut", &content[..content.len() - 1]);
    let empty = spoiled("empty", b"");
    let weights = tiny_model().join("model.safetensors");
    let mut nan = content.clone();
    let header = u64::from_le_bytes(nan[..8].try_into().unwrap()) as usize;
    nan[8 + header..12 + header].copy_from_slice(&f32::NAN.to_le_bytes());
    let nan = spoiled("nan", &nan);
    for (path, parts) in [
        (&*cut, &["cut: content is", "a safetensors file"][..]),
        (&empty, &["empty: content is 0 bytes"]),
        (path_str(&weights), &["another safetensors file"]),
        (&nan, &["nan: number in tensor", "NaN", "finite numbers"]),
        ("/nonexistent", &["/nonexistent", "No such file"]),
        (path_str(dir.path()), &["a directory"]),
    ] {
        refused(&["--session", path, "-p", "x"], parts);
    }
    refused(
        &["-p", "x", "--save-session", "/nonexistent/a"],
        &["in no folder"],
    );

    // Other weights of the same shape.
    let other = copy_of_tiny_model();
    let path = other.path().join("model.safetensors");
    let mut weights = std::fs::read(&path).unwrap();
    let last = weights.len() - 4;
    weights[last..].copy_from_slice(&0.5f32.to_le_bytes());
    std::fs::write(&path, weights).unwrap();
    let args = ["--session", file, "-p", "x", "-n", "2"];
    let answer = polykv(&generate_args(other.path(), &args));
    assert_eq!(answer.code, 3, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("a.session: model is 'llama-"),
        "{}",
        answer.stderr
    );

    // A session that has no room left in the model's context.
    let long = LONG.repeat(4) + &" 0".repeat(20);
    generate(&["-p", &long, "-n", "100", "--save-session", file]);
    refused(&args[..4], &["prompt: length is", "at most 512 tokens"]);
}
