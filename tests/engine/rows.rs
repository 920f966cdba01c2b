//! One token of several caches in one pass.

use super::{LAYERS, all_variants, model, prompt};
use burn::tensor::{Int, Tensor, TensorData};
use polykv::models::{LoadedModel, PrefillOptions, decode_rows};
use polykv::{Budget, KvCache, Phase, Plan};

/// A cache under a plan after `tokens` tokens of a prompt.
fn after(model: &LoadedModel, plan: Plan, tokens: usize, seed: u32) -> KvCache {
    let lm = &*model.model;
    let mut cache = KvCache::new(plan, lm.cache_shape(1), lm.device()).unwrap();
    let ids = model.ids(&prompt(tokens, seed));
    lm.prefill(ids, &mut cache, &mut PrefillOptions::default())
        .unwrap();
    cache
}

fn read(logits: Tensor<2>) -> Vec<f32> {
    logits.try_into_vec_as().unwrap()
}

/// Sequences of other lengths and plans beside a sequence change none of its bits but for the order of sums in the products.
#[test]
fn rows_of_different_lengths_and_plans_equal_each_alone() {
    let model = model();
    let lm = &*model.model;
    let plans = all_variants()
        .into_iter()
        .map(|policy| Plan::uniform(LAYERS, policy, Budget::Tokens(40), &Phase::BOTH));
    let plans: Vec<Plan> = std::iter::once(Plan::full(LAYERS)).chain(plans).collect();
    let mut caches: Vec<KvCache> = plans
        .iter()
        .enumerate()
        .map(|(row, plan)| after(&model, plan.clone(), 30 + 23 * (row % 5), row as u32))
        .collect();
    let mut apart = caches.clone();
    let vocab = lm.config().vocab_size;
    for step in 0..12u32 {
        let tokens: Vec<u32> = (0..caches.len() as u32)
            .map(|row| 3 + (step * 41 + row * 17) % 300)
            .collect();
        let mut rows: Vec<&mut KvCache> = caches.iter_mut().collect();
        let together = read(decode_rows(lm, &tokens, &mut rows).unwrap());
        assert_eq!(together.len(), tokens.len() * vocab);
        for ((cache, token), together) in apart.iter_mut().zip(&tokens).zip(together.chunks(vocab))
        {
            let id = TensorData::new(vec![i64::from(*token)], [1, 1]);
            let id = Tensor::<2, Int>::from_data(id, lm.device());
            let wanted = read(lm.decode(id, cache).unwrap());
            let difference = together.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
            let most = difference.fold(0.0, f32::max);
            assert!(most < 1e-4, "step {step}: {most}");
        }
    }
    for (together, apart) in caches.iter_mut().zip(&mut apart) {
        assert_eq!(together.report().unwrap(), apart.report().unwrap());
    }
}

#[test]
fn what_is_no_row_is_refused() {
    let model = model();
    let lm = &*model.model;
    let error = |tokens: &[u32], caches: &mut [&mut KvCache]| {
        decode_rows(lm, tokens, caches).unwrap_err().to_string()
    };
    assert!(error(&[], &mut []).contains("tokens is 0"));
    let mut one = after(&model, Plan::full(LAYERS), 5, 1);
    assert!(
        error(&[4, 5], &mut [&mut one]).contains("tokens is 2; allowed: one for each of the 1")
    );
    let mut two = KvCache::new(Plan::full(LAYERS), lm.cache_shape(2), lm.device()).unwrap();
    let found = error(&[4, 5], &mut [&mut one, &mut two]);
    assert!(
        found.contains("rows of a cache is 2; allowed: 1"),
        "{found}"
    );
}
