use super::*;
use crate::calibrate::PhaseProfile;
use crate::plan::Share;

/// Two layers; the second of three candidates is the worst in the first layer, the third in the second.
fn report() -> Report {
    let phase = PhaseProfile {
        cosine: vec![vec![0.9, 0.1, 0.5], vec![0.9, 0.8, 0.2]],
        delta_ppl: Vec::new(),
    };
    let profile = Profile {
        examples: 1,
        perplexity: 9.0,
        entropy: vec![1.0; 2],
        prefill: phase,
        decode: PhaseProfile::default(),
    };
    Report {
        schema: SCHEMA,
        version: "0".into(),
        model: "m".into(),
        layers: 2,
        budget: Budget::Tokens(9),
        settings: Settings {
            length: 20,
            continuation: 4,
            question_after: false,
            seed: 0,
            signal: Signal::Cosine,
            route: Direction::Forward,
            allocator: "uniform".into(),
            budget_signal: None,
            refine: 0,
        },
        candidates: ["tova", "h2o", "snapkv"].map(PolicySpec::named).into(),
        kv: Vec::new(),
        heads: Vec::new(),
        profiles: BTreeMap::from([(Data::Text, profile)]),
        prefill: PhaseReport::default(),
        decode: PhaseReport::default(),
        plan_hash: String::new(),
    }
}

#[test]
fn the_inverse_has_the_worst_of_each_layer_and_the_same_shares() {
    let report = report();
    let candidates = report.candidates(&Policies::default()).unwrap();
    let mut plan = Plan::new(vec![crate::plan::LayerPlan::KEEP; 2], Budget::Tokens(9));
    let share = Share::Entries(7);
    plan.layers[0].prefill = Rule::evict(candidates[0].policy.clone()).with_share(share);
    let inverse = report.invert(&plan, &candidates).unwrap();
    let wanted = Rule::evict(candidates[1].policy.clone()).with_share(share);
    assert_eq!(inverse.layers[0].prefill, wanted);
    assert_eq!(inverse.layers[1], plan.layers[1]);
    plan.layers[1].prefill = plan.layers[0].prefill.clone();
    let inverse = report.invert(&plan, &candidates).unwrap();
    let worst = inverse.layers[1].prefill.policy().unwrap();
    assert_eq!(worst.key(), candidates[2].policy.key());
}

#[test]
fn the_inverse_of_a_layer_in_codes_stays_in_them() {
    let mut report = report();
    report.kv = vec![None, Some(Codes::Q4)];
    // Of the two in q4 the first is the worse one; both are better than any in floats.
    report.candidates.pop();
    let text = report.profiles.get_mut(&Data::Text).unwrap();
    text.prefill.cosine = vec![vec![0.1, 0.2, 0.3, 0.4]; 2];
    let candidates = report.candidates(&Policies::default()).unwrap();
    assert_eq!([report.name(1), report.name(2)], ["h2o", "tova in q4"]);
    let budget = Budget::ByteRatio(0.25);
    let plan = Plan::uniform(2, candidates[3].policy.clone(), budget, &[Phase::Prefill]);
    let inverse = report.invert(&plan.clone().with_kv(Codes::Q4), &candidates);
    let worst = inverse.unwrap().layers[0].clone();
    assert_eq!(worst.prefill.policy().unwrap().name(), "tova");
    assert_eq!(worst.kv, Some(Codes::Q4));
    // Of a phase beside the prefill only policies were measured.
    let text = report.profiles.get_mut(&Data::Text).unwrap();
    text.decode.cosine = vec![vec![0.5, 0.1]; 2];
    let both = Plan::uniform(2, candidates[0].policy.clone(), budget, &Phase::BOTH);
    let inverse = report.invert(&both, &candidates).unwrap();
    let worst = inverse.layers[1].decode.policy().unwrap();
    assert_eq!(worst.name(), "h2o");
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let mut report = report();
    let candidates = report.candidates(&Policies::default()).unwrap();
    let both = [Phase::Prefill, Phase::Decode];
    let plan = Plan::uniform(2, candidates[0].policy.clone(), Budget::Tokens(9), &both);
    let message = |report: &Report, plan| {
        let refused = report.invert(plan, &candidates).unwrap_err();
        refused.to_string()
    };
    // The decode phase was not measured.
    assert!(message(&report, &plan).contains("of the decode is []"));
    let one = Plan::uniform(1, candidates[0].policy.clone(), Budget::Tokens(9), &both);
    assert!(message(&report, &one).contains("layers is 2; allowed: 1"));
    let text = report.profiles.get_mut(&Data::Text).unwrap();
    text.prefill.cosine[1].push(0.5);
    assert!(message(&report, &plan).contains("[3, 4]; allowed: 3 for each of 2 layers"));
    // Tables without columns fit no candidates.
    let text = report.profiles.get_mut(&Data::Text).unwrap();
    for phase in [&mut text.prefill, &mut text.decode] {
        phase.cosine = vec![Vec::new(); 2];
    }
    let refused = report.invert(&plan, &[]).unwrap_err().to_string();
    assert!(refused.contains("candidates is 0"), "{refused}");
}

#[test]
fn reports_survive_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("profile.json");
    let report = report();
    std::fs::write(&path, report.to_json().unwrap()).unwrap();
    assert_eq!(Report::read(&path).unwrap(), report);
    let other = report
        .to_json()
        .unwrap()
        .replace(r#""schema":1"#, r#""schema":2"#);
    std::fs::write(&path, other).unwrap();
    let refused = Report::read(&path).unwrap_err().to_string();
    assert!(refused.contains("schema is 2; allowed: 1"), "{refused}");
}
