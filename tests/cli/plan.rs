//! `polykv plan`: showing, comparing and changing plan files.

use super::write;
use crate::cli_support::{Answer, generate_json, path_str, polykv};
use serde_json::Value;

const PLAN: &str = "schema: 1\nlayers: 3\nbudget: {tokens: 40}\nprefill:\n\
    - {layers: 0, policy: snapkv, params: {window: 8}, tokens: 60}\n- {layers: 1-2, policy: h2o, tokens: 30}\n\
    decode:\n- {layers: 0-2, policy: tova, share: 1}\n";

fn plan(args: &[&str]) -> Answer {
    let answer = polykv(&[&["plan"], args].concat());
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{args:?}");
    answer
}

fn shown(file: &str) -> Value {
    serde_json::from_str(&plan(&["show", file, "--json"]).stdout).unwrap()
}

#[test]
fn a_plan_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "mine.yaml", PLAN);
    let out = dir.path().join("plan.svg");
    let table = plan(&["show", &file, "--out", path_str(&out)]).stdout;
    assert!(table.contains("snapkv"), "{table}");
    let svg = std::fs::read_to_string(out).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<title>").count(), 6);
    assert!(
        svg.contains("prefill, layer 0: snapkv window=8, 60 entries"),
        "{svg}"
    );
    let other = polykv(&["plan", "show", &file, "--out", "plan.jpg"]);
    assert_eq!(other.code, 3);
    assert!(
        other.stderr.contains("'plan.jpg'") && other.stderr.contains(".svg or .png"),
        "{}",
        other.stderr
    );
}

#[test]
fn differences_are_listed_by_layer() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(&dir, "a.yaml", PLAN);
    let changed = PLAN
        .replace("1-2, policy: h2o", "1-2, policy: knorm")
        .replace("{tokens: 40}", "{tokens: 40}\nname: b");
    let b = write(&dir, "b.yaml", &changed);
    let table = plan(&["diff", &a, &b]).stdout;
    for part in [
        "h2o, 30 entries",
        "knorm, 30 entries",
        "1-2",
        "2 of 3 layers differ in prefill, 0 of 3 in decode",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("snapkv"), "{table}");
    let json: Value = serde_json::from_str(&plan(&["diff", &a, &b, "--json"]).stdout).unwrap();
    assert_eq!(json["differing"]["prefill"], 2);
    assert_eq!(json["differences"][0]["first"], 1);
    let same = plan(&["diff", &a, &a]).stdout;
    assert_eq!(same, "0 of 3 layers differ in prefill, 0 of 3 in decode\n");
    let four = write(
        &dir,
        "four.yaml",
        "schema: 1\nlayers: 4\nbudget: {tokens: 40}\nprefill: [{layers: 0-3, policy: h2o}]\ndecode: [{layers: 0-3, policy: h2o}]\n",
    );
    let refused = polykv(&["plan", "diff", &a, &four]);
    assert_eq!(refused.code, 3);
    assert!(
        refused.stderr.contains("layers is 4; allowed: 3"),
        "{}",
        refused.stderr
    );
}

/// The number of layers of a rule: of `2`, or of `3-5`.
fn layers_of(rule: &Value) -> usize {
    let range = rule["layers"]
        .as_str()
        .and_then(|range| range.split_once('-'));
    range.map_or(1, |(first, last)| {
        last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1
    })
}

#[test]
fn a_shuffle_keeps_counts_and_sums() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "mine.yaml", PLAN);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..16 {
        let text = plan(&["shuffle", &file, "--seed", &seed.to_string()]).stdout;
        assert_eq!(
            text,
            plan(&["shuffle", &file, "--seed", &seed.to_string()]).stdout
        );
        let shuffled = shown(&write(&dir, "shuffled.yaml", &text));
        let rules = shuffled["prefill"].as_array().unwrap();
        let mut total = 0;
        let mut snapkv = 0;
        for rule in rules {
            let layers = layers_of(rule) as u64;
            total += layers * rule["tokens"].as_u64().unwrap();
            snapkv += layers * u64::from(rule["policy"] == "snapkv");
        }
        assert_eq!((total, snapkv), (120, 1));
        seen.insert(text);
    }
    assert_eq!(seen.len(), 3, "snapkv in each of the three layers");
}

#[test]
fn a_shuffle_leaves_budgets_or_policies_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "mine.yaml", PLAN);
    let column = |plan: &Value, field: &str| -> Vec<String> {
        let rules = plan["prefill"].as_array().unwrap().iter();
        rules
            .flat_map(|rule| vec![rule[field].to_string(); layers_of(rule)])
            .collect()
    };
    let before = shown(&file);
    for (keep, stays, moves) in [
        ("budgets", "tokens", "policy"),
        ("route", "policy", "tokens"),
    ] {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..16 {
            let seed = seed.to_string();
            let text = plan(&["shuffle", &file, "--keep", keep, "--seed", &seed]).stdout;
            let after = shown(&write(&dir, "shuffled.yaml", &text));
            assert_eq!(column(&after, stays), column(&before, stays), "{keep}");
            seen.insert(column(&after, moves));
        }
        assert!(seen.len() > 1, "{keep}: {seen:?}");
    }
    let refused = polykv(&["plan", "shuffle", &file, "--keep", "everything"]);
    assert_eq!(refused.code, 2);
}

#[test]
fn an_inverse_takes_the_worst_of_the_profile() {
    let dir = tempfile::tempdir().unwrap();
    let phase = r#"{"cosine": [[0.9, 0.5], [0.4, 0.5], [0.9, 0.2]]}"#;
    let profile = format!(
        r#"{{"schema": 1, "version": "0", "model": "any", "layers": 3, "budget": {{"tokens": 40}},
            "settings": {{"length": 9, "continuation": 2, "question_after": false, "seed": 0, "signal": "cosine",
                          "route": "forward", "allocator": "uniform", "refine": 0}},
            "candidates": [{{"policy": "h2o"}}, {{"policy": "snapkv", "params": {{"window": 4}}}}],
            "profiles": {{"text": {{"examples": 1, "perplexity": 2.0, "entropy": [1.0, 1.0, 1.0],
                                    "prefill": {phase}, "decode": {phase}}}}},
            "prefill": {{"route": [0, 1, 0], "budgets": [40, 40, 40]}},
            "decode": {{"route": [0, 1, 0], "budgets": [40, 40, 40]}}, "plan_hash": ""}}"#
    );
    write(&dir, "profile.json", &profile);
    let file = write(&dir, "plan.yaml", PLAN);
    let out = dir.path().join("inverse.yaml");
    plan(&["invert", &file, "--out", path_str(&out)]);
    let inverse = shown(path_str(&out));
    let policies = |phase: &str| -> Vec<String> {
        let rules = inverse[phase].as_array().unwrap();
        rules
            .iter()
            .map(|rule| format!("{} {} {}", rule["layers"], rule["policy"], rule["tokens"]))
            .collect()
    };
    assert_eq!(
        policies("prefill"),
        [
            "\"0\" \"snapkv\" 60",
            "\"1\" \"h2o\" 30",
            "\"2\" \"snapkv\" 30"
        ]
    );
    assert_eq!(inverse["prefill"][0]["params"]["window"], 4);
    // Another model's profile, or none.
    let foreign = PLAN.replace("layers: 3", "layers: 3\nmodel: other");
    let foreign = write(&dir, "foreign.yaml", &foreign);
    let refused = polykv(&["plan", "invert", &foreign]);
    assert_eq!(refused.code, 3);
    assert!(
        refused.stderr.contains("model is 'any'; allowed: 'other'"),
        "{}",
        refused.stderr
    );
    for (content, part) in [("{}", "no profile"), ("not json", "no profile")] {
        let wrong = write(&dir, "wrong.json", content);
        let refused = polykv(&["plan", "invert", &file, "--profile", &wrong]);
        assert_eq!(refused.code, 3);
        assert!(
            refused.stderr.contains(part) && refused.stderr.lines().count() == 1,
            "{}",
            refused.stderr
        );
    }
}

#[test]
fn a_pyramid_is_split_for_each_prompt() {
    let prompt = "The cache of a layer holds keys and values. Every policy keeps some entries and evicts others, \
                  and the plan says which policy runs where.";
    let flags = [
        "-p", prompt, "-n", "2", "--policy", "snapkv", "--set", "window=8", "--budget", "40",
    ];
    let kept = |more: &[&str]| -> Vec<f64> {
        let json = generate_json(&[&flags[..], more].concat());
        serde_json::from_value(json["kv"]["kept"].clone()).unwrap()
    };
    assert_eq!(kept(&[]), [40.0; 3]);
    // Beside the window there are 32 on average: from 2 · 32 − 1 down to 1.
    assert_eq!(kept(&["--allocator", "pyramid"]), [71.0, 40.0, 9.0]);
}
