//! `polykv chat` over a pipe.

use super::{LONG, text};
use crate::cli_support::{
    Answer, command, copy_of_tiny_model, generate_json, path_str, run, tiny_model,
};
use std::path::Path;

const BUDGET: [&str; 4] = ["--policy", "h2o", "--budget", "40"];

fn chat_of(model: &Path, more: &[&str], said: &str) -> Answer {
    let start = [
        "chat",
        "--device",
        "cpu",
        "-n",
        "9",
        "--model",
        path_str(model),
    ];
    let args = [&start[..], more].concat();
    run(
        &mut command(&args, Path::new("/nonexistent/polykv-cache")),
        said.as_bytes(),
    )
}

/// Must work.
fn chat(more: &[&str], said: &str) -> Answer {
    let answer = chat_of(&tiny_model(), more, said);
    assert_eq!(answer.code, 0, "{more:?}: {}", answer.stderr);
    answer
}

/// Turns give what one command per turn gives that takes up the session of the one before.
#[test]
fn turns_append_to_the_cache() {
    for budget in [&BUDGET[..], &[]] {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        let first = ["-n", "9", "-p", LONG, "--save-session", path_str(&a)];
        let first = generate_json(&[&first[..], budget].concat());
        let second = ["-n", "9", "-p", "And now?", "--session", path_str(&a)];
        let second = generate_json(&[&second[..], &["--save-session", path_str(&b)]].concat());
        let answers = format!("{}\n{}\n", text(&first), text(&second));
        assert_eq!(
            chat(budget, &format!("{LONG}\n\nAnd now?\n")).stdout,
            answers
        );

        // The same with the process in between.
        let file = dir.path().join("chat");
        let session = [&["--session", path_str(&file)], budget].concat();
        let before = chat(&session, LONG).stdout;
        let after = chat(&session, "And now?");
        assert_eq!(before + &after.stdout, answers);
        assert!(after.stderr.contains("goes on after "), "{}", after.stderr);
        let [a, b] = [&file, &b].map(|path| std::fs::read(path).unwrap());
        assert!(a == b);
    }
}

#[test]
fn turns_can_be_taken_back_and_begun_anew() {
    let once = chat(&BUDGET, LONG).stdout;
    let twice = chat(&BUDGET, &format!("{LONG}\nAnd now?")).stdout;
    let second = twice.strip_prefix(&once).unwrap();
    let again = chat(
        &BUDGET,
        &format!("{LONG}\nAnd now?\n/undo\nAnd now?\n/undo\n/undo\n"),
    );
    assert_eq!(again.stdout, format!("{twice}{second}"));
    assert!(again.stderr.contains("the last turn is taken back"));
    assert!(again.stderr.contains("no turn to take back"));
    let anew = chat(&BUDGET, &format!("{LONG}\n/clear\n{LONG}\n"));
    assert_eq!(anew.stdout, format!("{once}{once}"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("session");
    let loaded = format!(
        "{LONG}\n/save {0}\nAnd now?\n/load {0}\nAnd now?\n",
        path_str(&file)
    );
    assert_eq!(chat(&BUDGET, &loaded).stdout, format!("{twice}{second}"));
}

#[test]
fn commands_tell_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("kept.html");
    let said = format!(
        "/kept\n/plan\n{LONG}\n/kept\n/kept {}\n/stats\n",
        path_str(&page)
    );
    let answer = chat(&[&BUDGET[..], &["--system", "Be brief."]].concat(), &said);
    for part in [
        "nothing was answered yet",
        "h2o",
        "by layer: 0-2: 40\n",
        "40 of ",
        "new, finish",
    ] {
        assert!(
            answer.stderr.contains(part),
            "no '{part}': {}",
            answer.stderr
        );
    }
    // The system message, and no more, is protected.
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<dt>protected</dt>") && page.contains("after the last answer"));
    let evicted = chat(
        &[&BUDGET[..], &["--system", "Be brief.", "--evict-system"]].concat(),
        &said,
    );
    assert_eq!(evicted.code, 0);
    let page = dir.path().join("kept.html");
    assert!(
        !std::fs::read_to_string(page)
            .unwrap()
            .contains("<dt>protected</dt>")
    );
}

#[test]
fn a_template_that_changes_what_was_said_is_run_again() {
    let model = copy_of_tiny_model();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content | upper if m.role == 'assistant' \
                    else m.content }}<|im_end|>\\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n\
                    {% endif %}";
    let config = format!("{{\"chat_template\": \"{template}\"}}");
    std::fs::write(model.path().join("tokenizer_config.json"), config).unwrap();
    let answer = chat_of(model.path(), &[], &format!("{LONG}\nAnd now?\n"));
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("all of it was run again"),
        "{}",
        answer.stderr
    );
}

#[test]
fn the_conversation_goes_on_beyond_the_context() {
    // More than the 512 tokens of the tiny model.
    let said = format!("{LONG}\n").repeat(7);
    let answer = chat(&BUDGET, &said);
    let notes = answer
        .stderr
        .matches("moved to consecutive positions")
        .count();
    assert_eq!(notes, 1, "{}", answer.stderr);
    // Without a budget nothing can go.
    let answer = chat_of(&tiny_model(), &[], &said);
    assert_eq!(answer.code, 3, "{}", answer.stderr);
}

#[test]
fn what_cannot_be_said_is_refused() {
    for (said, part) in [
        ("/save\n", "command is '/save'; allowed: those of /help"),
        ("/load /nonexistent/file\n", "/nonexistent/file"),
        ("/kept /nonexistent/page.html\n", "nothing was answered yet"),
    ] {
        let answer = chat_of(&tiny_model(), &[], said);
        let code = if said.starts_with("/kept") { 0 } else { 3 };
        assert_eq!(answer.code, code, "{said}: {}", answer.stderr);
        assert!(answer.stderr.contains(part), "{said}: {}", answer.stderr);
    }
}
