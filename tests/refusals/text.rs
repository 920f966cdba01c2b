//! Tokenizers, chat templates and GGUF files.

use super::{check, edit_json, refused, refused_file, rows};
use crate::cli_support::{copy_of_tiny_model, generate_args, path_str, polykv};
use serde_json::{Value, json};
use std::path::Path;

const TOKENIZER: &str = "tokenizer.json";
const TEMPLATES: &str = "tokenizer_config.json";

#[test]
fn tokenizers() {
    refused_file(TOKENIZER, "garbage", &["content", "a tokenizer.json"]);
    refused_file(TOKENIZER, "{}", &["content", "a tokenizer.json"]);
    let edit = |edit: fn(&mut Value)| move |model: &Path| edit_json(&model.join(TOKENIZER), edit);
    let high = edit(|tokenizer| tokenizer["model"]["vocab"]["zzz"] = json!(5000));
    let parts = [TOKENIZER, "highest token id", "5000", "below the 320 rows"];
    refused("high id", high, &parts);
    let added = edit(|tokenizer| tokenizer["added_tokens"][2]["id"] = json!(7));
    let parts = [TOKENIZER, "id of added token", "7", "2 in this vocabulary"];
    refused("added id", added, &parts);
    let large = |model: &Path| {
        let file = std::fs::File::create(model.join(TOKENIZER)).unwrap();
        file.set_len((64 << 20) + 1).unwrap();
    };
    let parts = [TOKENIZER, "size", "at most 67108864 bytes"];
    refused("large tokenizer", large, &parts);
}

/// Template, what the error says.
const SOURCES: &str = "
    {% for %} | a template that renders
    {{ messages | a template that renders
    {{ raise_exception('no users') }} | no users
    {% include 'other' %} | a template that renders
    {% for i in range(99999) %}{% for j in range(99999) %}{% set k = j %}{% endfor %}{% endfor %} | endless | steps
";

#[test]
fn chat_templates() {
    let run = |template: &str, parts: &[&str]| {
        let spoil = |model: &Path| {
            edit_json(&model.join(TEMPLATES), |config| {
                config["chat_template"] = json!(template);
            });
        };
        let what: String = template.chars().take(40).collect();
        refused(
            &what,
            spoil,
            &[&[TEMPLATES, "chat template"], parts].concat(),
        );
    };
    for row in rows(SOURCES) {
        run(row[0], &row[1..]);
    }
    let long = "x".repeat((256 << 10) + 1);
    run(&long, &["size", "262145 bytes", "up to 262144"]);
    refused_file(TEMPLATES, "{", &["content", "a JSON object"]);
}

/// A template that cannot be parsed harms nothing that does without it.
#[test]
fn a_template_is_needed_for_chat_only() {
    let model = copy_of_tiny_model();
    edit_json(&model.path().join(TEMPLATES), |config| {
        config["chat_template"] = json!("{% if");
    });
    let args = generate_args(model.path(), &["-p", "Hello", "-n", "1"]);
    check("a bad template", 3, &[TEMPLATES], &polykv(&args));
    let raw = polykv(&generate_args(
        model.path(),
        &["-p", "Hello", "-n", "1", "--raw"],
    ));
    assert_eq!(raw.code, 0, "{}", raw.stderr);
    let text = model.path().join("text.txt");
    std::fs::write(&text, "the quiet lamp under the bridge ".repeat(20)).unwrap();
    let text = format!(
        "--task ppl --length 20 --continuation 4 --limit 1 --text {}",
        text.display()
    );
    for (command, args) in [("eval", text.as_str()), ("bench", "-p 4 -n 1 -d 2 -r 1")] {
        let mut all = vec![command, "--device", "cpu", "-m", path_str(model.path())];
        all.extend(args.split(' '));
        let answer = polykv(&all);
        assert_eq!(answer.code, 0, "{command}: {}", answer.stderr);
    }
}

#[test]
fn variables_of_a_template() {
    let model = copy_of_tiny_model();
    let template = |text: &str| {
        edit_json(&model.path().join(TEMPLATES), |config| {
            config["chat_template"] = json!(text)
        });
    };
    template("{{ raise_exception('given: ' ~ (thinking is false) ~ who) }}");
    let given = [
        "-p",
        "Hello",
        "--template-arg",
        "thinking=False",
        "--template-arg",
        "who=Bo",
    ];
    let args = generate_args(model.path(), &given);
    check("given", 3, &["given: TrueBo"], &polykv(&args));
    let args = generate_args(
        model.path(),
        &["-p", "Hello", "--template-arg", "messages=[]"],
    );
    check(
        "a name that is taken",
        2,
        &["messages comes from the prompt"],
        &polykv(&args),
    );
    edit_json(&model.path().join(TEMPLATES), |config| {
        config["chat_template"] = Value::Null;
    });
    let args = generate_args(model.path(), &given);
    check(
        "no template",
        3,
        &["--template-arg", "no chat template"],
        &polykv(&args),
    );
}

#[test]
fn a_system_message_without_a_template() {
    let model = copy_of_tiny_model();
    edit_json(&model.path().join(TEMPLATES), |config| {
        config["chat_template"] = Value::Null;
    });
    let args = generate_args(model.path(), &["-p", "Hello", "--system", "Be brief."]);
    let parts = ["a system message", "no chat template"];
    check("system", 3, &parts, &polykv(&args));
}

#[test]
fn gguf() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let most = u64::MAX.to_string();
    let counts = |tensors: u64, values: u64| {
        let counts = [tensors.to_le_bytes(), values.to_le_bytes()].concat();
        [&b"GGUF\x03\0\0\0"[..], &counts].concat()
    };
    let cases: [(Vec<u8>, &[&str]); 7] = [
        (vec![], &["size", "0 bytes", "a GGUF file"]),
        (b"garbage, garbage, garbage".to_vec(), &["magic"]),
        (b"GGUF\x01\0\0\0".to_vec(), &["version", "1"]),
        (b"GGUF\x03\0\0\0\0".to_vec(), &[]),
        (counts(u64::MAX, 0), &["tensor count", &most]),
        (counts(0, u64::MAX), &["metadata count", &most]),
        (counts(0, 0), &["general.architecture", "missing", "llama"]),
    ];
    for (bytes, parts) in cases {
        std::fs::write(&path, bytes).unwrap();
        let answer = polykv(&generate_args(&path, &["-p", "Hello"]));
        check("GGUF", 3, &[&["model.gguf"], parts].concat(), &answer);
    }
}
