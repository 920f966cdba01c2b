//! What calibration measures equals runs of the plans that it stands for.

#![cfg(feature = "flex")]

mod common;
#[path = "calibrate/library.rs"]
mod library;
#[path = "calibrate/signals.rs"]
mod signals;

use burn::tensor::Device;
use polykv::models::calibrate::{
    CompressedPrompts, EvidenceOptions, Example, Examples, Measurer, Mixture,
};
use polykv::models::eval::metrics;
use polykv::models::{LoadedModel, PrefillOptions, load};
use polykv::plan::{LayerPlan, Share};
use polykv::{Budget, Codes, KvCache, Phase, Plan, Rule};
use polykv_core::calibrate::{Candidate, Data, Measured, PlanDraft};
use std::path::Path;

const BUDGET: usize = 50;
const BOTH: [Phase; 2] = [Phase::Prefill, Phase::Decode];

fn model() -> LoadedModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama31");
    load(&folder, &Device::flex()).unwrap()
}

fn candidates() -> Vec<Candidate> {
    in_formats(&[None])
}

fn in_formats(formats: &[Option<Codes>]) -> Vec<Candidate> {
    let policies = [("tova", "{}"), ("snapkv", "{window: 8}"), ("h2o", "{}")];
    let policies = policies.map(|(name, params)| common::policy(name, params));
    Candidate::all(&policies, formats)
}

fn example() -> Example {
    let token = |i: u32| (i * i * 7 + i * 3) % 300 + 3;
    Example {
        data: Data::Text,
        prompt: (0..120).map(token).collect(),
        continuation: (120..134).map(token).collect(),
        scored: 3..14,
    }
}

/// The mean over the scored tokens, token by token with eviction, or in one pass without.
fn nll(model: &LoadedModel, plan: Plan, example: &Example, decode: bool) -> f64 {
    let own = &model.model;
    let mut cache = KvCache::new(plan, own.cache_shape(1), own.device()).unwrap();
    let options = &mut PrefillOptions::default();
    own.prefill(model.ids(&example.prompt), &mut cache, options)
        .unwrap();
    let rows: Vec<Vec<f32>> = match decode {
        true => {
            let step = |&token: &u32| {
                own.decode(model.ids(&[token]), &mut cache)
                    .unwrap()
                    .try_into_vec_as()
                    .unwrap()
            };
            example.run().iter().map(step).collect()
        }
        false => {
            let logits = own
                .logits(model.ids(example.run()), &mut cache.untrimmed(), options)
                .unwrap();
            let all: Vec<f32> = logits.try_into_vec_as().unwrap();
            all.chunks_exact(own.config().vocab_size)
                .map(<[f32]>::to_vec)
                .collect()
        }
    };
    let scored = example.scored.clone();
    let of = |token: usize| metrics::nll(&rows[token - 1], example.continuation[token]).unwrap();
    metrics::mean(&scored.map(of).collect::<Vec<_>>())
}

fn near(found: f64, wanted: f64, what: &str) {
    assert!(
        (found - wanted).abs() < 2e-5,
        "{what}: {found}, not {wanted}"
    );
}

/// One layer at the budget in one phase, everything else kept.
fn one_layer(phase: Phase, layer: usize, candidate: &Candidate) -> Plan {
    let mut plan = Plan::new(vec![LayerPlan::KEEP; 3], Budget::Tokens(BUDGET));
    plan.allow_full_extra = true;
    *plan.layers[layer].rule_mut(phase) = Rule::evict(candidate.policy.clone());
    plan
}

fn measure(model: &LoadedModel, budget: usize) -> Measured {
    let candidates = candidates();
    let measurer =
        Measurer::new(model, &candidates, &BOTH, Budget::Tokens(budget), true, &[]).unwrap();
    let mut layers = Vec::new();
    let found = measurer
        .measure(&example(), &mut |layer| layers.push(layer))
        .unwrap();
    assert_eq!(layers, [0, 1, 2]);
    found
}

#[test]
fn a_layer_alone_equals_a_plan_that_compresses_one_layer() {
    let (model, example) = (model(), example());
    let found = measure(&model, BUDGET);
    assert_eq!((found.prompt_tokens, found.scored_tokens), (120, 11));
    near(
        found.full_nll,
        nll(&model, Plan::full(3), &example, false),
        "full",
    );
    for (phase, own) in [
        (Phase::Prefill, &found.prefill),
        (Phase::Decode, &found.decode),
    ] {
        for layer in 0..3 {
            for (index, candidate) in candidates().into_iter().enumerate() {
                let plan = one_layer(phase, layer, &candidate);
                let wanted = nll(&model, plan, &example, phase == Phase::Decode);
                let what = format!("{phase}, layer {layer}, {}", candidate.policy.key());
                near(own.nll[layer][index], wanted, &what);
                assert!(
                    (wanted - found.full_nll).abs() > 1e-6,
                    "{what} changes nothing"
                );
                let cosine = own.cosine[layer][index];
                assert!((0.0..0.99999).contains(&cosine), "{what}: {cosine}");
            }
        }
    }
}

#[test]
fn a_layer_in_codes_alone_equals_a_plan_with_one_layer_in_codes() {
    let (model, example) = (model(), example());
    let candidates = in_formats(&[None, Some(Codes::Q8), Some(Codes::Q4)]);
    let (budget, cost) = (Budget::ByteRatio(0.25), model.model.cache_cost(1));
    let measurer = Measurer::new(&model, &candidates, &BOTH, budget, true, &[]).unwrap();
    let found = measurer.measure(&example, &mut |_| ()).unwrap();
    // Beside a prefill that evicts, the decode phase chooses a policy only.
    assert!(found.decode.nll.iter().all(|layer| layer.len() == 3));
    for (layer, measured) in found.prefill.nll.iter().enumerate() {
        assert_eq!(measured.len(), candidates.len());
        for (candidate, &measured) in candidates.iter().zip(measured) {
            let policy = candidate.policy.clone();
            let mut uniform = Plan::uniform(3, policy.clone(), budget, &[Phase::Prefill]);
            for own in &mut uniform.layers {
                own.kv = candidate.kv;
            }
            let resolved = uniform.resolve(120, &cost).unwrap();
            let entries = resolved.layers[layer].budget(Phase::Prefill).unwrap();
            let mut plan = Plan::new(vec![LayerPlan::KEEP; 3], Budget::Total(entries));
            plan.allow_full_extra = true;
            plan.layers[layer].prefill = Rule::evict(policy).with_share(Share::Entries(entries));
            plan.layers[layer].kv = candidate.kv;
            let what = format!("layer {layer}, {entries} of {}", candidate.policy.key());
            near(measured, nll(&model, plan, &example, false), &what);
        }
    }
}

#[test]
fn what_is_not_evicted_changes_nothing() {
    let found = measure(&model(), 140);
    for own in [&found.prefill, &found.decode] {
        for layer in 0..3 {
            for candidate in 0..3 {
                near(own.cosine[layer][candidate], 1.0, "cosine");
                near(own.nll[layer][candidate], found.full_nll, "likelihood");
            }
        }
    }
    // Uniform attention over n entries has the largest entropy, ln n.
    let most = 134f64.ln();
    assert!(
        found.entropy.iter().all(|own| (0.1..most).contains(own)),
        "{:?}",
        found.entropy
    );
}

#[test]
fn one_phase_alone_measures_the_same() {
    let (model, candidates) = (model(), candidates());
    let both = measure(&model, BUDGET);
    for phase in BOTH {
        let budget = Budget::Tokens(BUDGET);
        let phases = [phase];
        let measurer = Measurer::new(&model, &candidates, &phases, budget, true, &[]).unwrap();
        let found = measurer.measure(&example(), &mut |_| ()).unwrap();
        let (own, other, wanted) = match phase {
            Phase::Prefill => (&found.prefill, &found.decode, &both.prefill),
            Phase::Decode => (&found.decode, &found.prefill, &both.decode),
        };
        assert_eq!(own, wanted, "{phase}");
        assert!(other.cosine.is_empty() && other.nll.is_empty());
    }
}

#[test]
fn mixtures_equal_whole_plans() {
    let (model, candidates, examples) = (model(), candidates(), [example()]);
    let draft = PlanDraft {
        candidates: &candidates,
        cost: model.model.cache_cost(1),
        budget: Budget::Tokens(BUDGET),
        budgets: [vec![60, 50, 40], vec![40, 50, 60]],
        heads: Vec::new(),
        online: None,
    };
    let full = nll(&model, Plan::full(3), &examples[0], false);
    let prefill = [2, 0, 1];
    for (phase, fixed, picks) in [
        (Phase::Prefill, None, [0, 1, 2]),
        (Phase::Prefill, None, [2, 2, 2]),
        (Phase::Decode, Some(&prefill[..]), [1, 0, 0]),
        (Phase::Decode, None, [1, 0, 0]),
    ] {
        let singles: Vec<Plan> = (0..3)
            .map(|own| draft.with(phase, fixed, &[own; 3]))
            .collect();
        let prompts =
            CompressedPrompts::new(&model, phase, &singles, &examples, &mut |_| {}).unwrap();
        let plan = draft.with(phase, fixed, &picks);
        let whole = nll(&model, plan.clone(), &examples[0], phase == Phase::Decode);
        let wanted = whole - full;
        let mixture = |plan: &Plan, picks: &[usize]| Mixture {
            plan: plan.clone(),
            picks: picks.to_vec(),
        };
        // More than go into one pass, others between them.
        let (own, other) = (mixture(&plan, &picks), mixture(&singles[0], &[0; 3]));
        let several: Vec<Mixture> = (0..40)
            .map(|index| if index % 3 == 0 { &own } else { &other }.clone())
            .collect();
        let found = prompts.losses(&several).unwrap();
        assert_eq!(found.len(), several.len());
        let alone = prompts.losses(&[other]).unwrap();
        for (index, found) in found.iter().enumerate() {
            assert_eq!(found.keys().copied().collect::<Vec<_>>(), [Data::Text]);
            assert_eq!(found[&Data::Text].len(), 1);
            let wanted = [wanted, alone[0][&Data::Text][0]][usize::from(index % 3 > 0)];
            near(
                found[&Data::Text][0],
                wanted,
                &format!("{picks:?}, {index}"),
            );
        }
        // Neither is it FullKV's cache, which is held beside those of the plans.
        let wrong = prompts.losses(&[mixture(&plan, &[0, 3, 0])]);
        let wrong = wrong.unwrap_err().to_string();
        assert!(wrong.contains("pick is 3; allowed: below 3"), "{wrong}");
    }
}

#[test]
fn mixtures_of_budgets_equal_whole_plans() {
    let (model, examples) = (model(), [example()]);
    let candidates = in_formats(&[None, Some(Codes::Q8), Some(Codes::Q4)]);
    let full = nll(&model, Plan::full(3), &examples[0], false);
    for (phase, budget, [low, high], prefill, picks) in [
        (
            Phase::Prefill,
            Budget::Ratio(0.4),
            [32, 64],
            [1; 3],
            [0, 2, 1],
        ),
        (
            Phase::Decode,
            Budget::Ratio(0.4),
            [32, 64],
            [1; 3],
            [0, 2, 1],
        ),
        (
            Phase::Prefill,
            Budget::ByteRatio(0.2),
            [14, 20],
            [1; 3],
            [0, 5, 7],
        ),
        (
            Phase::Decode,
            Budget::ByteRatio(0.2),
            [14, 20],
            [0, 5, 7],
            [0, 2, 1],
        ),
    ] {
        let draft = PlanDraft {
            candidates: &candidates,
            cost: model.model.cache_cost(1),
            budget,
            budgets: [vec![48; 3], vec![48; 3]],
            heads: Vec::new(),
            online: None,
        };
        let plan = |budgets: [usize; 3]| draft.trial(phase, Some(&prefill), &picks, &budgets);
        let levels = [plan([low; 3]), plan([high; 3])];
        let prompts =
            CompressedPrompts::new(&model, phase, &levels, &examples, &mut |_| {}).unwrap();
        let budgets = [[low; 3], [high; 3], [high, low, high]];
        let mixture = |budgets: &[usize; 3]| Mixture {
            plan: plan(*budgets),
            picks: budgets.iter().map(|own| own / high).collect(),
        };
        let found = prompts.losses(&budgets.each_ref().map(mixture)).unwrap();
        for (budgets, found) in budgets.into_iter().zip(found) {
            let own = plan(budgets);
            let wanted = nll(&model, own, &examples[0], phase == Phase::Decode) - full;
            let what = format!("{phase} {budgets:?}");
            near(found[&Data::Text][0], wanted, &what);
        }
    }
}

#[test]
fn evidence_asks_for_what_the_prompt_holds() {
    let model = model();
    let make = |seed, question_after| {
        let options = EvidenceOptions {
            examples: 4,
            length: 360,
            question_after,
            seed,
        };
        let mut examples = Examples::default();
        examples.add_evidence(&model, &options).unwrap();
        examples.0
    };
    let text = |tokens: &[u32]| model.tokenizer.decode(tokens, true).unwrap();
    for (example, after) in make(1, false).iter().zip(make(1, true)) {
        let answer = text(&example.continuation[example.scored.clone()]);
        let prompt = text(&example.prompt);
        let number = answer.rsplit(' ').next().unwrap();
        assert!(
            prompt.contains(&format!(" {number}.")),
            "{answer}: {prompt}"
        );
        // Nothing but the question asks.
        assert!(prompt.contains('?') && !text(&after.prompt).contains('?'));
        assert!(text(&after.continuation).contains('?'));
        assert_eq!(text(&after.continuation[after.scored.clone()]), answer);
        assert!(example.prompt.len() <= 360);
    }
    assert_eq!(make(1, false), make(1, false));
    assert_ne!(make(1, false), make(2, false));
}
