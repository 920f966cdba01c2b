//! `--every`: evictions while decoding that are some tokens apart.

use crate::cli_support::{generate_json, path_str, polykv, tiny_model};

#[test]
fn entries_go_together_and_the_budget_holds() {
    let kept = |every: &[&str]| -> Vec<f64> {
        let run = ["--policy", "tova", "--budget", "20", "-n", "9", "--raw"];
        let prompt = "gate lamp under seven bridge quiet north ".repeat(8);
        let json = generate_json(&[&run[..], &["-p", &prompt], every].concat());
        serde_json::from_value(json["kv"]["kept"].clone()).unwrap()
    };
    assert_eq!(kept(&[]), [20.0; 3]);
    // The first eviction cuts to 16, seven more tokens are decoded: 17, 18, 19, 20, 16, 17, 18.
    assert_eq!(kept(&["--every", "5"]), [18.0; 3]);
}

#[test]
fn plans_state_it_and_lists_compare_it() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.yaml");
    let rules = "[{layers: 0-2, policy: tova}]";
    let text =
        format!("{{schema: 1, layers: 3, budget: {{tokens: 20}}, every: 4, decode: {rules}}}");
    std::fs::write(&plan, text).unwrap();
    let shown = polykv(&["plan", "show", path_str(&plan)]).stdout;
    assert!(
        shown.contains("evictions while decoding: every 4 tokens"),
        "{shown}"
    );
    let model = tiny_model();
    let bench = [
        "bench",
        "--device",
        "cpu",
        "-m",
        path_str(&model),
        "-p",
        "0",
        "-n",
        "4",
        "-d",
        "32",
        "-r",
        "1",
    ];
    let lists = [
        "--policy", "tova", "--budget", "16", "--every", "1,8", "-o", "json",
    ];
    let rows = polykv(&[&bench[..], &lists].concat()).stdout;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let names: Vec<&str> = rows.iter().filter_map(|row| row["plan"].as_str()).collect();
    assert_eq!(
        names,
        ["full", "tova 16 every 1", "tova 16 every 8"],
        "{rows:?}"
    );
}
