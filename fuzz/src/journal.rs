//! measurements.jsonl of a calibration that goes on.

use polykv_core::calibrate::{CandidatePolicy, Data, Profile};
use polykv_core::policy::Params;
use polykv_core::{Budget, Registry};
use polykv_models::calibrate::{CalibrateOptions, Example, Objective, Signal};
use polykv_models::doors;

const LAYERS: usize = 2;

pub fn run(input: &[u8]) {
    let registry = Registry::default();
    let policy = |name| {
        let policy = registry.policies.build(name, &Params::new());
        CandidatePolicy::of(policy.expect("a policy of ours"))
    };
    let candidates = ["snapkv", "h2o"].map(policy).into();
    let mut options = CalibrateOptions::new(candidates, Budget::Ratio(0.5));
    options.objective = Objective::Both;
    options.signal = Signal::Ppl;
    let example = |data, prompt| Example {
        data,
        prompt: vec![0; prompt],
        continuation: vec![0; 4],
        scored: 1..4,
    };
    let examples = [example(Data::Text, 8), example(Data::Evidence, 6)];
    let folder = super::Folder::new();
    let path = folder.write("measurements.jsonl", &super::sealed(input));
    match doors::read_journal(&path, &options, LAYERS, &examples) {
        Ok(measured) => {
            assert!(measured.len() <= examples.len());
            for data in [Data::Text, Data::Evidence] {
                let profile = Profile::of(&measured, data);
                assert!(profile.is_none_or(|profile| profile.entropy.len() == LAYERS));
            }
        }
        Err(error) => super::refused(&error),
    }
}
