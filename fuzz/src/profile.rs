//! profile.json of a calibration, and the control that `polykv plan invert` makes of it.

use polykv_core::calibrate::Report;
use polykv_core::policy::Params;
use polykv_core::{Budget, Phase, Plan, Registry};

pub fn run(input: &[u8]) {
    let folder = super::Folder::new();
    let path = folder.write("profile.json", input);
    match Report::read(&path) {
        Ok(report) => read(&report),
        Err(error) => super::refused(&error),
    }
}

fn read(report: &Report) {
    let registry = Registry::default();
    let candidates = match report.candidates(&registry.policies) {
        Ok(candidates) => candidates,
        Err(error) => return super::refused(&error),
    };
    let policy = registry.policies.build("snapkv", &Params::new());
    let policy = policy.expect("a policy of ours");
    for layers in [1, 2, report.layers.min(64)] {
        let plan = Plan::uniform(layers, policy.clone(), Budget::Ratio(0.5), &Phase::BOTH);
        match report.invert(&plan, &candidates) {
            Ok(inverse) => assert_eq!(inverse.layers.len(), layers),
            Err(error) => super::refused(&error),
        }
    }
}
