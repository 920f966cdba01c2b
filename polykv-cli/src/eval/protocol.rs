//! What was compressed and what was asked, as data, which is part of what identifies a run, and in words.

use crate::args::{SampleArgs, TaskName};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A field that the task does not read is left out, and paths with it: what the files say is in the samples' hash.
#[derive(Serialize)]
struct Settings<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<&'a [usize]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<&'a [f64]>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    only: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    max_length: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_new_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_prefix: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    question_after: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    template_args: BTreeMap<&'a str, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    likelihood_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<bool>,
}

/// As they stand in run.json and metrics.json.
pub fn settings(args: &SampleArgs) -> Value {
    use TaskName::{Fidelity, Longbench, Needle, Ppl, Prompts, Ruler};
    let is = |tasks: &[TaskName]| tasks.contains(&args.task);
    let files = is(&[Longbench, Prompts]);
    let asked = is(&[Needle, Longbench, Ruler, Prompts]);
    let settings = Settings {
        length: (!files).then_some(args.length()),
        limit: if files { args.limit } else { Some(args.made()) },
        continuation: is(&[Ppl, Fidelity]).then_some(args.continuation()),
        depth: is(&[Needle]).then_some(args.depth()),
        only: &args.only,
        max_length: args.max_length,
        max_new_tokens: args.max_new_tokens,
        answer_prefix: is(&[Needle, Ruler]).then_some(args.answer_prefix()),
        question_after: asked.then_some(args.question_after),
        raw: asked.then_some(args.raw),
        template_args: args
            .template_arg
            .iter()
            .map(|a| (a.name(), a.json()))
            .collect(),
        likelihood_only: is(&[Needle]).then_some(args.likelihood_only),
        decode: is(&[Ppl, Needle]).then_some(args.decode),
        generated: is(&[Fidelity]).then_some(args.generated),
    };
    // Numbers and lists under plain names, which JSON can always hold.
    serde_json::to_value(settings).unwrap_or_default()
}

/// In words.
pub fn protocol(args: &SampleArgs) -> String {
    let list: Vec<String> = args.length().iter().map(ToString::to_string).collect();
    let lengths = list.join(", ");
    let one_by_one = match args.decode {
        true => "token by token with eviction",
        false => "in one pass",
    };
    let lead_in = match (args.answer_prefix(), args.question_after) {
        (false, _) => "no start of the answer given",
        (true, false) => "start of the answer among them",
        (true, true) => "start of the answer after them",
    };
    let question = match args.question_after {
        true => "after them",
        false => "among them",
    };
    let cut = match args.max_length {
        Some(most) => format!("{most} tokens"),
        None => "the model's context".into(),
    };
    match args.task {
        TaskName::Ppl => format!(
            "ppl: prefixes of {lengths} tokens compressed, {} tokens after them {one_by_one}, all but the first scored",
            args.continuation()
        ),
        TaskName::Fidelity => format!(
            "fidelity: prefixes of {lengths} tokens compressed, {} {} tokens decoded after them",
            args.continuation(),
            match args.generated {
                true => "generated",
                false => "given",
            }
        ),
        TaskName::Needle => format!(
            "needle: {lengths} tokens compressed, question {question}, {lead_in}; NLL of the number {one_by_one}"
        ),
        TaskName::Ruler => {
            let name = match args.template {
                Some(_) => "RULER from a copy of it",
                None => "RULER-style (words and templates of our own, not comparable with RULER)",
            };
            format!(
                "{name}: prompts that have {lengths} tokens with their answers compressed, question {question}, {lead_in}"
            )
        }
        TaskName::Longbench => format!(
            "LongBench: prompts of up to {cut} compressed, the middle of longer ones cut out, question {question}"
        ),
        TaskName::Prompts => format!(
            "prompts: those of up to {cut} compressed, the middle of longer ones cut out, question {question}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, EvalCommand};
    use clap::Parser;

    #[test]
    fn variables_of_the_template_are_recorded() {
        let given = |more: &[&str]| {
            let start = ["polykv", "eval", "-m", "m", "--task", "needle"];
            let args = start.iter().chain(more);
            match Cli::try_parse_from(args).unwrap().command {
                Command::Eval(EvalCommand::Run(args)) => settings(&args.samples),
                other => panic!("{other:?}"),
            }
        };
        let recorded = given(&[
            "--template-arg",
            "enable_thinking=False",
            "--template-arg",
            "n=x",
        ]);
        let wanted = serde_json::json!({"enable_thinking": false, "n": "x"});
        assert_eq!(recorded["template_args"], wanted);
        // Runs from before these variables go on.
        assert!(given(&[]).get("template_args").is_none());
    }
}
