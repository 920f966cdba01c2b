//! Plan files.

use super::{check, rows};
use crate::cli_support::{generate_args, path_str, polykv, tiny_model};

/// A plan that runs on the tiny model; cases replace parts of it.
const PLAN: &str = "schema: 1
layers: 3
budget: {tokens: 40}
prefill:
- {layers: 0, policy: snapkv, tokens: 60}
- {layers: 1-2, policy: h2o, tokens: 30}
decode:
- {layers: 0-2, policy: streaming-llm, share: 1}
";

/// What is replaced, by what, what the error says.
const CHANGES: &str = r"
    schema: 1 | schema: 2 | schema is 2 | allowed: 1
    schema: 1 | - schema | content | not a plan
    schema: 1 | schema: 1\ncolour: red | unknown field | colour
    schema: 1 | schema: 1\nmodel: llama-other | model | llama-other | llama-3x4q2kv16d-64h-320v
    layers: 3 | layers: 0 | layers is 0 | 1 to 1024
    layers: 3 | layers: 1025 | layers is 1025 | 1 to 1024
    layers: 0-2 | layers: 0-3 | decode[0].layers | 0-3 | layers 0 to 2
    layers: 0-2 | layers: 1-2 | decode | layer 0 | one rule for each of the 3
    layers: 1-2 | layers: 0-2 | prefill[1].layers | each layer once
    layers: 1-2 | layers: 2-1 | 2-1 | FIRST-LAST
    policy: h2o | policy: h3o | policy | 'h3o' | h2o | snapkv
    tokens: 60} | tokens: 60, params: {windw: 8}} | snapkv | windw | window
    tokens: 60} | tokens: 60, params: {window: 0}} | window: 0 | window from 1
    tokens: 60} | tokens: 60, params: {kernel: 4}} | kernel: 4 | kernel odd
    tokens: 60 | tokens: 8 | prefill[0].tokens is 8 | at least 32 | snapkv
    tokens: 60 | tokens: 61 | sum of prefill tokens is 121 | 120, 3 layers times 40
    tokens: 60 | tokens: 60, share: 1 | prefill[0].tokens | tokens or share
    share: 1 | share: -1 | share | -1 | above 0
    share: 1 | share: 1, budget: 3 | unknown field | budget
    {tokens: 40} | {tokens: 0} | budget.tokens is 0 | at least 1
    {tokens: 40} | {tokens: many} | many
    {tokens: 40} | {bytes: 4000} | tokens in the rules | budget.tokens
";

/// A plan of one rule for all layers and phases; `BUDGET` and `RULES` are replaced.
const ONE_RULE: &str = "schema: 1
layers: 3
budget: BUDGET
prefill: [RULES]
decode: [RULES]
";

const SNAPKV: &str = "{layers: 0-2, policy: snapkv}";

/// Budget, rules, what the error says.
const BUDGETS: &str = "
    {ratio: 1.5} | {layers: 0-2, policy: h2o} | budget.ratio is 1.5 | at most 1
    {ratio: .nan} | {layers: 0-2, policy: h2o} | budget.ratio is NaN | at most 1
    {bytes: 0} | {layers: 0-2, policy: h2o} | budget.bytes is 0 | at least 1
    {ratio: 0.1} | {layers: 0-2, policy: snapkv} | prefill budget of layer 0 | at least 32 | snapkv
    {tokens: 513} | {layers: 0-2, policy: h2o} | budget.tokens is 513 | at most 512, the model's context
    {tokens: 10} | {layers: 0-1, policy: full}, {layers: 2, policy: h2o} | 2 full layers | the total of 30
    {tokens: 40} | {layers: 0-2, policy: full, tokens: 40} | prefill[0].tokens | policy full
";

struct Files(tempfile::TempDir);

impl Files {
    fn run(&self, content: &[u8]) -> crate::cli_support::Answer {
        let path = self.0.path().join("plan.yaml");
        std::fs::write(&path, content).unwrap();
        let plan = ["--plan", path_str(&path)];
        let args = [&["-p", "Hello", "-n", "2", "--no-stats"], &plan[..]].concat();
        polykv(&generate_args(&tiny_model(), &args))
    }

    fn refused(&self, what: &str, content: impl AsRef<[u8]>, parts: &[&str]) {
        check(what, 3, parts, &self.run(content.as_ref()));
    }
}

fn files() -> Files {
    Files(tempfile::tempdir().unwrap())
}

#[test]
fn fields() {
    let files = files();
    assert_eq!(files.run(PLAN.as_bytes()).code, 0);
    for row in rows(CHANGES) {
        let changed = PLAN.replacen(row[0], &row[1].replace(r"\n", "\n"), 1);
        assert_ne!(changed, PLAN, "{}", row[0]);
        files.refused(row[1], changed, &[&["plan.yaml"], &row[2..]].concat());
    }
}

#[test]
fn budgets() {
    let files = files();
    for row in rows(BUDGETS) {
        let plan = ONE_RULE.replace("BUDGET", row[0]).replace("RULES", row[1]);
        files.refused(row[0], plan, &row[2..]);
    }
}

#[test]
fn plans_for_other_models() {
    let plan = ONE_RULE
        .replace("BUDGET", "{tokens: 40}")
        .replace("layers: 3", "layers: 4");
    let plan = plan.replace("RULES", &SNAPKV.replace("0-2", "0-3"));
    let parts = ["plan.yaml: layers is 4", "3, the model's"];
    files().refused("layers", plan, &parts);
}

#[test]
fn whole_files() {
    let files = files();
    let large = format!("{PLAN}#{}", "x".repeat(1 << 20));
    let parts = ["plan.yaml", "size", "at most 1048576 bytes"];
    files.refused("size", large, &parts);
    files.refused("bytes", b"\xff\xfe\x00", &["plan.yaml"]);
    let parts = ["plan.yaml", "depth of lists and maps"];
    files.refused("nesting", "[".repeat(100_000), &parts);
    let path = files.0.path().join("plan.yaml");
    let show = polykv(&["plan", "show", path_str(&path)]);
    check("plan show", 3, &parts, &show);
}
