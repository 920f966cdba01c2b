//! RULER-style tasks.

use crate::run;
use burn::tensor::Device;
use polykv::models::eval::{Ruler, RulerOptions, RulerTexts};
use polykv::models::{LoadedModel, load};
use serde_json::Value;
use std::path::Path;

/// The same model with a longer context.
fn roomy_model(context: usize) -> LoadedModel {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        let content = std::fs::read(fixture.join(name)).unwrap();
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let config = std::fs::read_to_string(fixture.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    load(dir.path(), &Device::flex()).unwrap()
}

#[test]
fn ruler_style_tasks_run() {
    let model = roomy_model(2048);
    let options = RulerOptions {
        lengths: vec![1200, 1500],
        only: vec!["niah_single_1".into(), "niah_single_2".into()],
        limit: 1,
        seed: 2,
        answer_prefix: true,
        question_after: false,
        raw: false,
        source: None,
    };
    let task = Ruler::new(&model, RulerTexts::read(&options).unwrap()).unwrap();
    let (found, summary) = run(&model, &task);
    assert_eq!(found.len(), 2 * 2 * 3);
    assert!(found.iter().all(|one| one.metric == "substring-all"));
    let groups: Vec<_> = summary.plans[0]
        .groups
        .iter()
        .map(|group| (group.length, group.n))
        .collect();
    assert_eq!(groups, [(1200, 2), (1500, 2)]);
    let sets: Vec<_> = summary.plans[0]
        .sets
        .iter()
        .map(|set| (set.name.as_str(), set.tasks))
        .collect();
    assert_eq!(sets, [("retrieval", 2), ("13 tasks", 2)]);
}
