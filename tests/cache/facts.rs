//! What a model states, where rows start, and numbers that are not finite.

use super::protocol::{give, ones, refused, step, two_layers};
use super::{BOTH, data, decode, plan, prefill};
use crate::common::{each_policy, policy};
use burn::tensor::{DType, Device, Tensor};
use polykv::testing::{Inputs, facts, kept, max_difference, shape};
use polykv::{
    Budget, ErrorKind, KvCache, LayerShape, ModelFacts, Phase, Plan, PromptCache, SharedPrefill,
};

#[test]
fn rows_may_start_at_other_positions() {
    let new = |first: Option<&[usize]>| {
        let shape = LayerShape {
            batch: 2,
            ..shape()
        };
        let plan = plan(policy("streaming-llm", "{sinks: 3}"), 8);
        let cache = KvCache::new(plan, shape, &Device::flex()).unwrap();
        match first {
            Some(first) => cache.starting_at(first).unwrap(),
            None => cache,
        }
    };
    let run = |mut cache: KvCache| {
        let part = |heads, tokens: std::ops::Range<usize>| {
            let own = Inputs::seeded(20, 1, 0);
            let [q, k, _] = own.part(tokens, &Device::flex());
            let own = if heads == 6 { q } else { k };
            Tensor::cat(vec![own.clone(), own], 0)
        };
        let mut prompt = cache.prompt(15).unwrap();
        prompt
            .attend(0, part(6, 0..15), part(2, 0..15), part(2, 0..15))
            .unwrap();
        prompt.end_layer(0).unwrap();
        prompt.finish().unwrap();
        let output = cache.decode(0, part(6, 15..16), part(2, 15..16), part(2, 15..16));
        (cache, output.unwrap().try_into_vec_as::<f32>().unwrap())
    };
    assert_eq!(new(Some(&[0, 7])).next_positions(), [0, 7]);
    let (mut apart, found) = run(new(Some(&[0, 7])));
    let (together, wanted) = run(new(None));
    assert_eq!(apart.next_positions(), [16, 23]);
    assert_eq!(together.next_positions(), [16, 16]);
    // Sinks are the first tokens of each row, wherever it starts.
    assert_eq!(kept(&apart, 0).unwrap(), kept(&together, 0).unwrap());
    assert_eq!(kept(&apart, 0).unwrap()[2][..3], [0, 1, 2]);
    assert_eq!(max_difference(&found, &wanted), 0.0);
    apart.clear();
    assert_eq!(apart.next_positions(), [0, 7]);

    refused(
        new(None).starting_at(&[1]).unwrap_err(),
        ErrorKind::Shape,
        &["first positions is 1; allowed: 2, the rows of the batch"],
    );
    refused(
        together.starting_at(&[1, 2]).unwrap_err(),
        ErrorKind::Order,
        &["first positions is set after 16 tokens"],
    );
}

#[test]
fn a_scale_is_that_of_scaled_queries() {
    let scale = 0.07;
    // Scores are scaled by 1/√16 otherwise.
    let factor = scale * 4.0;
    for policy in each_policy() {
        let plan = Plan::uniform(2, policy.clone(), Budget::Tokens(14), &BOTH);
        let mut grown = data(2, 60, 3);
        let plain = grown.clone();
        let numbers = grown
            .iter_mut()
            .flat_map(|own| own.q.iter_mut())
            .flatten()
            .flatten();
        numbers.for_each(|x| *x *= factor);
        let run = |data: &[Inputs], scale: Option<f64>| {
            let mut cache = KvCache::new(plan.clone(), shape(), &Device::flex()).unwrap();
            let mut facts = facts(2, &Device::flex());
            facts.scale = scale;
            cache.set_facts(&facts);
            let mut outputs = prefill(&mut cache, data, 0..45, 20).unwrap().1;
            outputs.extend(decode(&mut cache, data, 45..60).unwrap());
            (kept(&cache, 1).unwrap(), outputs)
        };
        let (found, outputs) = run(&plain, Some(scale));
        let (wanted, wanted_outputs) = run(&grown, None);
        let apart = max_difference(&outputs, &wanted_outputs);
        assert!(apart < 1e-5, "{}: {apart}", policy.key());
        assert_eq!(found, wanted, "{}", policy.key());
        let apart = max_difference(&outputs, &run(&plain, None).1);
        assert!(apart > 1e-2, "{}: the scale changes nothing", policy.key());
        // Prompts of several plans scale too.
        let shared = SharedPrefill::new(vec![plan.clone()], shape(), &Device::flex());
        let mut shared = shared.unwrap();
        let mut facts = facts(2, &Device::flex());
        facts.scale = Some(scale);
        PromptCache::set_facts(&mut shared, &facts);
        let found = prefill(shared, &plain, 0..45, 20).unwrap().1;
        assert!(max_difference(&found, &outputs[..found.len()]) < 1e-5);
    }
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut cache = two_layers();
        let mut facts = ModelFacts::default();
        facts.scale = Some(scale);
        cache.set_facts(&facts);
        refused(cache.prompt(9).unwrap_err(), ErrorKind::Content, &["scale"]);
    }
}

fn spoiled(layer: usize, cache: &mut KvCache) -> polykv::Result<()> {
    let nan = |heads| ones(heads, 1).mul_scalar(f32::NAN);
    cache.decode(layer, nan(6), nan(2), nan(2)).map(drop)
}

#[test]
fn nan_scores_name_the_layer_and_the_policy_and_stop_the_cache() {
    let fresh = || {
        let mut cache = two_layers();
        prefill(&mut cache, &data(2, 9, 1), 0..9, 9).unwrap();
        cache
    };
    // In a prompt: at the end of the layer or of the prompt.
    let mut cache = two_layers();
    let mut prompt = cache.prompt(9).unwrap();
    let mut run = || -> polykv::Result<()> {
        for layer in 0..2 {
            give(&mut prompt, layer, 8)?;
            let nan = |heads| ones(heads, 1).mul_scalar(f32::NAN);
            prompt.attend(layer, nan(6), nan(2), nan(2))?;
            prompt.end_layer(layer)?;
        }
        Ok(())
    };
    let error = run().and_then(|()| prompt.finish().map(drop)).unwrap_err();
    refused(
        error,
        ErrorKind::NotFinite,
        &["layer 0", "policy tova", "NaN"],
    );

    // In a step: by the step itself, on a device that is never ahead.
    let mut cache = fresh();
    refused(
        spoiled(0, &mut cache).unwrap_err(),
        ErrorKind::NotFinite,
        &["layer 0", "policy tova"],
    );
    for error in [
        step(&mut cache, 0).unwrap_err(),
        cache.report().unwrap_err(),
        cache.check().unwrap_err(),
        cache.prompt(3).unwrap_err(),
    ] {
        refused(error, ErrorKind::NotFinite, &["layer 0"]);
    }
    cache.clear();
    prefill(&mut cache, &data(2, 9, 1), 0..9, 9).unwrap();
    // Not the first layer only.
    step(&mut cache, 0).unwrap();
    refused(
        spoiled(1, &mut cache).unwrap_err(),
        ErrorKind::NotFinite,
        &["layer 1"],
    );
    assert_eq!(fresh().report().unwrap().kept, [4.0, 4.0]);
}

/// Numbers beyond those that a half-precision cache can hold say so, with the type, the layer and what to do.
#[test]
fn what_is_too_large_for_a_cache_in_f16_is_named_with_its_cause() {
    let plan = || Plan::uniform(1, policy("tova", "{}"), Budget::Tokens(4), &BOTH);
    for (dtype, parts) in [
        (
            DType::F16,
            ["layer 0", "f16, which ends at 65504: try f32 or bf16"],
        ),
        (DType::F32, ["layer 0", "are not finite"]),
    ] {
        let shape = LayerShape { dtype, ..shape() };
        let mut cache = KvCache::new(plan(), shape, &Device::flex()).unwrap();
        let large = |heads| {
            ones(heads, 9).mul_scalar(match dtype {
                DType::F16 => 1e5,
                _ => f32::INFINITY,
            })
        };
        let mut prompt = cache.prompt(9).unwrap();
        let ended = prompt
            .attend(0, ones(6, 9), large(2), large(2))
            .and_then(|_| prompt.end_layer(0))
            .and_then(|()| prompt.finish().map(drop));
        refused(ended.unwrap_err(), ErrorKind::NotFinite, &parts);
    }
}

#[test]
fn a_model_that_tells_too_little_is_refused_before_the_prompt() {
    let begin = |name: &str, phases: &[Phase]| {
        let policy = each_policy().into_iter().find(|own| own.name() == name);
        let plan = Plan::uniform(2, policy.unwrap(), Budget::Tokens(16), phases);
        let mut cache = KvCache::new(plan, shape(), &Device::flex()).unwrap();
        cache.prompt(40).map(drop)
    };
    for (name, missing) in [
        ("expected-attention", "rotary frequencies"),
        ("criticalkv", "the output projection's weights"),
    ] {
        let wanted = format!("decode policy of layer 0 is {name}, which needs {missing}");
        refused(
            begin(name, &BOTH[1..]).unwrap_err(),
            ErrorKind::Plan,
            &[&wanted],
        );
    }
    begin("snapkv", &BOTH).unwrap();
}
