//! The plan files that come with the project.

use burn::tensor::DType;
use polykv::models::ModelConfig;
use polykv::{LayerShape, Phase, PlanFile, Registry};
use std::path::Path;

#[test]
fn every_plan_of_the_project_can_be_carried_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let place = path.display().to_string();
        let file = PlanFile::read(&path).unwrap();
        let plan = file.build(&Registry::default()).unwrap();
        let shapes = polykv::models::config::SHAPES.iter();
        let config: ModelConfig = shapes
            .map(|(_, shape)| shape())
            .find(|config| Some(config.fingerprint()) == file.model)
            .unwrap_or_else(|| panic!("{place}: no known model"));
        file.check_model(config.layers.len(), &config.fingerprint())
            .unwrap();
        let shape = LayerShape {
            batch: 1,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: DType::F32,
        };
        let cost = shape.cost(&config.windows());
        let resolved = plan.resolve(config.max_positions, &cost).unwrap();
        let total = plan.most_entries(config.max_positions, &cost);
        for phase in Phase::BOTH.into_iter().filter(|phase| file.evicts(*phase)) {
            assert_eq!(resolved.total(phase), total, "{place}, {phase}");
        }
        seen.push(path.file_stem().unwrap().to_string_lossy().into_owned());
    }
    for name in [
        "llama-3.1-8b-starter",
        "qwen3-8b-starter",
        "smollm2-135m-12.5",
    ] {
        assert!(seen.iter().any(|seen| seen == name), "{name}: {seen:?}");
    }
}
