//! The page of made-up results.

use super::*;
use crate::eval::record::{Identity, PlanRecord, Session};
use crate::registry::registry;
use polykv::models::eval::{NamedPlan, Prediction, Scores};
use polykv::policy::PolicySpec;
use polykv::{Budget, Phase, Plan, PlanFile};

fn record() -> Record {
    let named = |name: &str, plan: Plan| NamedPlan::new(name, plan, registry());
    let uniform = |name: &str, policy: &str, budget: usize| {
        let policy = PolicySpec::named(policy)
            .build(&registry().policies)
            .unwrap();
        named(
            name,
            Plan::uniform(3, policy, Budget::Tokens(budget), &Phase::BOTH),
        )
    };
    let mixed = "{schema: 1, layers: 3, budget: {tokens: 8}, prefill: [{layers: 0, policy: tova}, {layers: 1-2, policy: h2o}],
        decode: [{layers: 0-2, policy: full}]}";
    let mixed = PlanFile::from_yaml(mixed)
        .unwrap()
        .build(registry())
        .unwrap();
    let plans = [
        named("full", Plan::full(3)),
        uniform("tova 8", "tova", 8),
        uniform("tova 16", "tova", 16),
        uniform("h2o 8", "h2o", 8),
        named("<script>mine</script>", mixed),
    ];
    Record {
        identity: Identity {
            polykv: "0".into(),
            task: "needle".into(),
            settings: serde_json::json!({"length": [64, 128]}),
            seed: 7,
            model_sha256: "0123456789abcdef0123".into(),
            model_shape: "shape".into(),
            backend: "cpu".into(),
            dtype: "f32".into(),
            plans: plans
                .iter()
                .map(|named| PlanRecord {
                    info: named.info(),
                    plan: named.file.clone(),
                })
                .collect(),
            samples: 4,
            questions: "q".into(),
        },
        shard: Default::default(),
        model: "model & co".into(),
        device: "cpu".into(),
        protocol: "needles".into(),
        sets: Vec::new(),
        commands: vec!["polykv eval".into()],
        sessions: vec![Session {
            started: "then".into(),
            seconds: 90.0,
            samples: 4,
            prompt_tokens: 900,
            new_tokens: 40,
        }],
    }
}

/// Of every plan two lengths and two depths; the plan's index decides what it finds.
fn summary(record: &Record) -> Summary {
    let mut predictions = Vec::new();
    for (index, plan) in record.identity.plans.iter().enumerate() {
        for sample in 0..4 {
            let found = f64::from(u8::from(index == 0 || sample < index));
            predictions.push(Prediction {
                task: "needle".into(),
                metric: "exact".into(),
                sample,
                id: format!("needle#{sample}"),
                plan: plan.info.name.clone(),
                length: 64 << (sample / 2),
                prompt_tokens: 60,
                truncated: false,
                depth: Some([0.0, 1.0][sample % 2]),
                scores: Scores::from([
                    ("exact".into(), found),
                    ("nll".into(), 1.0 - found / 2.0),
                    ("kept".into(), [60.0, 8.0, 16.0, 8.0, 8.0][index]),
                    ("kv_bytes".into(), 1e6),
                ]),
                new_tokens: 5,
                output: None,
                answers: Vec::new(),
            });
        }
    }
    Summary::new("needle", &[], &record.plans(), &predictions)
}

#[test]
fn a_page_has_all_its_parts_and_asks_for_nothing() {
    let record = record();
    let page = page(&record, &summary(&record));
    for part in [
        "<h1>needle on model &amp; co</h1>",
        "name=\"viewport\"",
        // Tova found one needle of four at 8 entries and two at 16.
        "<tr><th>tova 8</th><td>25.0 %</td>",
        "<tr><th>&lt;script&gt;mine&lt;/script&gt;</th><td class=\"best\">100.0 %</td>",
        "<span class=\"badge\">best single</span>",
        // To FullKV 3 of 4 are missing, and of four drawn anew 1 to 4 are; to h2o, the best single at 8, one more is found.
        "<th>exact match − FullKV</th><th>exact match − best single</th><th>NLL − FullKV</th>",
        "<tr><th>tova 8</th><td class=\"best\">−75.00 [−100.00, −25.00]</td>",
        "<td>+25.00 [+0.00, +75.00]</td>",
        "Quality against budget",
        "<polyline",
        "tova 16: 50.00 at 16.0 entries",
        "by length and depth",
        "<th>64</th><th>128</th>",
        "layer 1: h2o, share 1",
        "4 samples in 1 min 30 s",
        "1.0 MB",
        "SHA-256 0123456789abcdef…",
        "<pre>polykv eval</pre>",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for outside in ["src=", "@import", "url(", "<script", "href="] {
        assert!(!page.contains(outside), "{outside}");
    }
    // The one address is the name of SVG, which nobody fetches.
    let addresses = page.matches("http").count();
    assert_eq!(
        addresses,
        page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count()
    );
}

#[test]
fn heat_maps_and_curves_are_only_where_they_say_something() {
    let mut record = record();
    record
        .identity
        .plans
        .retain(|plan| plan.info.name != "tova 16");
    let mut summary = summary(&record);
    assert!(!page(&record, &summary).contains("<polyline"));
    for plan in &mut summary.plans {
        for task in &mut plan.tasks {
            task.groups.iter_mut().for_each(|group| group.depth = None);
        }
    }
    assert!(!page(&record, &summary).contains("by length and depth"));
}
