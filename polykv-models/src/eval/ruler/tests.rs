use super::*;
use crate::testing::tiny;

fn options(lengths: &[usize], only: &[&str]) -> RulerOptions {
    RulerOptions {
        lengths: lengths.to_vec(),
        only: only.iter().map(ToString::to_string).collect(),
        limit: 3,
        seed: 5,
        answer_prefix: true,
        question_after: false,
        raw: false,
        source: None,
    }
}

fn ruler(model: &LoadedModel, options: &RulerOptions) -> Result<Ruler> {
    Ruler::new(model, RulerTexts::read(options)?)
}

fn text(model: &LoadedModel, ids: &[u32]) -> String {
    model.tokenizer.decode(ids, true).unwrap()
}

/// The tokenizer has few words, so that texts have many tokens.
const LENGTHS: [usize; 2] = [3000, 8100];

#[test]
fn every_task_fills_its_length_and_holds_its_answers() {
    let model = tiny(8192);
    let task = ruler(&model, &options(&LENGTHS, &[])).unwrap();
    assert_eq!(
        (task.name(), task.questions.len()),
        ("ruler-style", 2 * 13 * 3)
    );
    for question in &task.questions {
        let prompt = text(&model, &question.framed.prompt);
        let tokens = question.framed.prompt.len() + question.rule.max_new_tokens;
        let what = &question.id;
        assert!(tokens <= question.length, "{what}: {tokens}");
        // Documents are the largest pieces.
        assert!(tokens + 400 > question.length, "{what}: {tokens}");
        for answer in &question.answers {
            assert!(prompt.contains(answer.as_str()), "{what}: {answer}");
        }
        let wanted = match question.task.as_str() {
            "niah_multivalue" | "niah_multiquery" => 4,
            "vt" => 5,
            "cwe" => 10,
            "fwe" => 3,
            _ => 1,
        };
        assert_eq!(question.answers.len(), wanted, "{what}");
        assert_eq!(
            question.rule.metric.score(&prompt, &question.answers, &[]),
            1.0
        );
        assert!(question.framed.after.is_empty() && !question.framed.truncated);
    }
    let again = ruler(&model, &options(&LENGTHS, &[])).unwrap();
    assert_eq!(task.fingerprint(), again.fingerprint());
    let other = RulerOptions {
        seed: 6,
        ..options(&LENGTHS, &[])
    };
    let other = ruler(&model, &other).unwrap();
    assert_ne!(task.fingerprint(), other.fingerprint());
    let names: std::collections::BTreeSet<_> =
        task.samples().into_iter().map(|sample| sample.id).collect();
    assert_eq!(names.len(), task.questions.len());
    let (_, all) = task.sets().pop().unwrap();
    assert_eq!(all, NAMES);
}

#[test]
fn the_most_common_are_the_most_common() {
    let model = tiny(8192);
    let task = ruler(&model, &options(&LENGTHS, &["cwe", "fwe", "vt"])).unwrap();
    for question in &task.questions {
        let prompt = text(&model, &question.framed.prompt);
        match question.task.as_str() {
            "vt" => {
                // The value is given once; everything else follows from it.
                let value = prompt.rsplit("have the value ").next().unwrap();
                let value = value.split(',').next().unwrap();
                let given = format!("VAR {} = {value}", question.answers[0]);
                assert_eq!(prompt.matches(&given).count(), 1, "{given}");
                for pair in question.answers.windows(2) {
                    assert!(prompt.contains(&format!("VAR {} = VAR {}", pair[1], pair[0])));
                }
            }
            task => {
                // Behind the example, if there is one.
                let start = if task == "cwe" {
                    "numbered list"
                } else {
                    "in a code"
                };
                let list = prompt.rsplit(start).next().unwrap();
                let list = list.split("Question").next().unwrap();
                let mut counts = std::collections::BTreeMap::new();
                for word in list.split_whitespace() {
                    *counts.entry(word).or_insert(0) += 1;
                }
                let least = question
                    .answers
                    .iter()
                    .map(|answer| counts[answer.as_str()])
                    .min();
                let others = counts.iter().filter(|(word, _)| {
                    word.chars().all(|c| c.is_ascii_lowercase())
                        && word.len() > 5
                        && !question.answers.iter().any(|answer| answer == *word)
                });
                let most = others.map(|(_, count)| *count).max().unwrap_or(0);
                assert!(least > Some(most), "{}: {least:?}, {most}", question.id);
            }
        }
    }
}

#[test]
fn protocols_move_the_question_and_the_start_of_the_answer() {
    let model = tiny(4096);
    let of = |change: fn(&mut RulerOptions)| {
        let mut options = options(&[2000], &["niah_single_2"]);
        change(&mut options);
        let task = ruler(&model, &options).unwrap();
        let framed = &task.questions[0].framed;
        (text(&model, &framed.prompt), text(&model, &framed.after))
    };
    let lead_in = "that the text gives for";
    let (prompt, _) = of(|_| {});
    assert_eq!(prompt.matches(lead_in).count(), 1);
    let (prompt, after) = of(|options| options.question_after = true);
    assert!(!prompt.contains("Which magic") && after.contains("Which magic"));
    assert_eq!(after.matches(lead_in).count(), 1);
    let (prompt, _) = of(|options| options.answer_prefix = false);
    assert!(prompt.contains("Which magic") && !prompt.contains(lead_in));
}

#[test]
fn a_copy_of_ruler_gives_its_own_words() {
    let model = tiny(4096);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("scripts/data/synthetic");
    std::fs::create_dir_all(folder.join("json")).unwrap();
    let entry = |name: &str| {
        format!(
            "  '{name}': {{'tokens_to_generate': 16, 'template': \"\"\"Some things are in here: {{context}}\\nTell {{query}}.\"\"\", \
             'answer_prefix': \"\"\" They are\"\"\"}},\n"
        )
    };
    let names = [
        "niah",
        "variable_tracking",
        "common_words_extraction",
        "freq_words_extraction",
        "qa",
    ];
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let entries: String = names.iter().map(|name| entry(name)).collect();
    write("constants.py", &format!("TASKS = {{\n{entries}}}\n"));
    write(
        "niah.py",
        "needle = \"The {type_needle_v} of {key}: {value}.\"\nif True:\n    haystack = re.sub(1)\n    haystack = \"Moss grows.\"\n",
    );
    let haystack = dir.path().join("essay.json");
    std::fs::write(
        &haystack,
        r#"{"text": "Ferns unroll.  Rain\nfalls? It does!"}"#,
    )
    .unwrap();
    let source = RulerSource {
        folder: dir.path().into(),
        haystack: haystack.clone(),
    };
    let from_source = |only: &[&str]| RulerOptions {
        source: Some(source.clone()),
        ..options(&[1500], only)
    };
    let task = ruler(
        &model,
        &from_source(&["niah_single_1", "niah_single_2", "vt"]),
    )
    .unwrap();
    assert_eq!(task.name(), "ruler");
    let prompts: Vec<String> = task
        .questions
        .iter()
        .map(|question| text(&model, &question.framed.prompt))
        .collect();
    assert!(
        prompts[0].contains("A things is in here: Moss grows.\n"),
        "{}",
        prompts[0]
    );
    assert!(prompts[0].contains("The numbers of "), "{}", prompts[0]);
    assert!(
        prompts[3].contains("Ferns unroll. Rain falls? It does! Ferns"),
        "{}",
        prompts[3]
    );
    assert!(
        prompts[6].contains("Some things are in here: "),
        "{}",
        prompts[6]
    );
    assert_eq!(task.questions[0].rule.max_new_tokens, 16);
    // What is missing is named.
    let message = ruler(&model, &from_source(&["qa_1"]))
        .unwrap_err()
        .to_string();
    assert!(message.contains("squad.json: file is missing"), "{message}");
    std::fs::remove_file(folder.join("niah.py")).unwrap();
    let message = ruler(&model, &from_source(&["vt"]))
        .unwrap_err()
        .to_string();
    assert!(message.contains("niah.py: file is missing"), "{message}");
}

#[test]
fn what_cannot_be_made_is_refused() {
    let model = tiny(1024);
    for (lengths, only, parts) in [
        (vec![2048], vec![], ["length is 2048", "at most 1024"]),
        (vec![0], vec![], ["length is 0", "at least 1"]),
        (
            vec![300],
            vec!["vt"],
            ["evaluation of vt", "the shortest prompt"],
        ),
        (vec![512], vec!["vtx"], ["task is 'vtx'", "niah_single_1"]),
        (vec![], vec![], ["number of lengths is 0", "at least 1"]),
    ] {
        let message = ruler(&model, &options(&lengths, &only)).unwrap_err();
        assert!(message.is_refusal());
        for part in parts {
            assert!(message.to_string().contains(part), "{part}: {message}");
        }
    }
}
