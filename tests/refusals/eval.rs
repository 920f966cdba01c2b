//! Evaluations that cannot be run.

use super::{check, rows};
use crate::cli_support::{path_str, polykv, tiny_model};

/// Arguments, what the error says. `SHORT` is a text of a few tokens.
const REFUSED: &str = "
    --task ppl | --text | missing | ppl and fidelity
    --task fidelity | --text | missing
    --task ppl --text /nonexistent.txt | /nonexistent.txt | No such file
    --task ppl --text SHORT --length 100 | text is | at least 228
    --task ppl --text SHORT --length 400 | 400 and 128 tokens | at most 512
    --task ppl --text SHORT --length 0 | length is 0
    --task ppl --text SHORT --length 10 --continuation 0 | continuation is 0 | at least 1
    --task ppl --text SHORT --length 2 --continuation 1 | continuation is 1 | at least 2
    --task needle --length 100000 | 100000 | at most 512
    --task needle --length 20 | length is 20 | needle and question
    --task needle --length 400 --limit 0 | limit is 0 | at least 1
    --task needle --length 400 --limit 18446744073709551615 | limit is 18446744073709551615 | at most 100000
    --task needle --length 400 --depth 1.5 | depth is 1.5 | 0 to 1
    --task needle --length 400 --depth -0.1 | depth is -0.1 | 0 to 1
    --task needle --length 400 --depth nan | depth is NaN | 0 to 1
    --task needle --length 400 --policy snapkv --budget 8 | snapkv | budget of layer 0 is 8 | at least 32
    --task needle --length 400 --policy tova --budget 600 | budget.tokens is 600 | at most 512
    --task needle --length 400 --plan /nonexistent.yaml | /nonexistent.yaml | No such file
";

const USAGE: &str = "
    --task pl | --task | ppl
    --task needle --policy tova | tova needs --budget
    --task needle --policy tvoa --budget 9 | tvoa | tova
    --task needle --policy tova --budget 9 --budget-ratio 0.5 | --budget
    --task needle --length x | --length
    --text a.txt | --task
    --task needle --text SHORT | --text | ppl and fidelity
    --task needle --continuation 9 | --continuation | ppl and fidelity
    --task ppl --text SHORT --depth 0.5 | --depth | needle
    --task ppl --text SHORT --answer-prefix | --answer-prefix | needle
    --task fidelity --text SHORT --no-answer-prefix | --answer-prefix | needle
    --task ppl --text SHORT --question-after | --question-after | needle
    --task fidelity --text SHORT --raw | --raw | needle
    --task fidelity --text SHORT --decode | --decode | ppl and needle
    --task ppl --text SHORT --generated | --generated | fidelity
    --task needle --policy full --budget 9 | full | tova
    --task needle --policy tova --budget 9 --allow-full-extra | --plan
    --task needle --shard 2/2 | 2/2 | 0 to N-1
    --task needle --shard 1 | 1 | I/N
    --task needle --policy tova --budget 9,x | 'x' | --budget
    --task needle --policy tova --budget 9 --phase prefill,never | never
";

fn eval(args: &str, code: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "Only a few words.").unwrap();
    let out = dir.path().join("out");
    let model = tiny_model();
    let start = ["eval", "--device", "cpu", "-m", path_str(&model), "--out"];
    let mut all = start.to_vec();
    all.push(path_str(&out));
    all.extend(args.split(' ').map(|arg| match arg {
        "SHORT" => path_str(&short),
        other => other,
    }));
    check(args, code, parts, &polykv(&all));
    assert!(!out.exists(), "{args}: something was written");
}

#[test]
fn content() {
    for row in rows(REFUSED) {
        eval(row[0], 3, &row[1..]);
    }
}

#[test]
fn usage() {
    for row in rows(USAGE) {
        eval(row[0], 2, &row[1..]);
    }
}
