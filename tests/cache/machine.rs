//! Any sequence of calls on a cache, beside a naive cache in f64 that is called the same way.

use crate::common::{all_variants, repeat, written};
use burn::tensor::{Device, Tensor};
use polykv::testing::{HEADS, Inputs, KV_HEADS, Reference, Token, cache, kept, max_difference};
use polykv::{Budget, ErrorKind, KvCache, Phase, Plan, Rule, Spans};
use proptest::prelude::*;
use std::ops::Range;

const LAYERS: usize = 2;
/// Tokens between two times that the cache is empty, at most.
const TOKENS: usize = 150;
/// Positions that are protected, at most.
const PROTECTED: usize = 6;

#[derive(Clone, Debug)]
enum Call {
    /// A prompt of so many tokens, so many of them at a time.
    Prompt(usize, usize),
    /// So many tokens one by one.
    Decode(usize),
    Reserve(usize),
    Protect(Vec<Range<usize>>),
    Clear,
    /// Either goes on as if the other did not exist, whatever that does.
    Clone {
        keep_original: bool,
    },
    /// A prompt that is dropped after so many layers.
    GiveUp(usize),
    /// What is refused and changes nothing.
    Wrong(usize),
}

fn calls() -> impl Strategy<Value = Call> {
    let spans = prop::collection::vec((0usize..60, 1..=PROTECTED / 2), 0..=2);
    prop_oneof![
        4 => (1usize..40, 1usize..40).prop_map(|(tokens, chunk)| Call::Prompt(tokens, chunk)),
        4 => (1usize..12).prop_map(Call::Decode),
        1 => (1usize..50).prop_map(Call::Reserve),
        2 => spans.prop_map(|all| Call::Protect(
            all.into_iter().map(|(start, count)| start..start + count).collect()
        )),
        1 => Just(Call::Clear),
        2 => any::<bool>().prop_map(|keep_original| Call::Clone { keep_original }),
        1 => (0..LAYERS).prop_map(Call::GiveUp),
        2 => (0usize..4).prop_map(Call::Wrong),
    ]
}

/// The cache and its naive double.
struct Both {
    plan: Plan,
    data: Vec<Inputs>,
    cache: KvCache,
    naive: Vec<Reference>,
    /// What is protected from the next prompt on.
    spans: Spans,
    seen: usize,
}

impl Both {
    fn new(plan: Plan, seed: u64) -> Self {
        let inputs = |layer| Inputs::seeded(TOKENS, seed, layer);
        Self {
            cache: cache(plan.clone(), &Device::flex()).unwrap(),
            naive: naive(&plan),
            data: (0..LAYERS).map(inputs).collect(),
            spans: Spans::default(),
            seen: 0,
            plan,
        }
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::Prompt(tokens, chunk) => self.prompt(*tokens, *chunk),
            Call::Decode(tokens) => self.decode(*tokens),
            Call::Reserve(tokens) => self.cache.reserve(*tokens),
            Call::Protect(spans) => {
                self.spans = Spans::new(spans.iter().cloned());
                self.cache.protect(self.spans.clone());
            }
            Call::Clear => self.clear(),
            Call::Clone { keep_original } => {
                let mut other = self.cache.clone();
                if !keep_original {
                    std::mem::swap(&mut other, &mut self.cache);
                }
                self.disturb(other);
            }
            Call::GiveUp(layers) => self.give_up(*layers),
            Call::Wrong(which) => self.wrong(*which),
        }
        self.compare();
    }

    fn prompt(&mut self, tokens: usize, chunk: usize) {
        let tokens = tokens.min(TOKENS - self.seen);
        if tokens == 0 {
            return;
        }
        let end = self.seen + tokens;
        let mut prompt = self.cache.prompt(tokens).unwrap();
        for (layer, (data, naive)) in self.data.iter().zip(&mut self.naive).enumerate() {
            naive.protect(self.spans.clone());
            naive.begin(tokens).unwrap();
            for start in (self.seen..end).step_by(chunk) {
                let range = start..end.min(start + chunk);
                let [q, k, v] = data.part(range.clone(), &Device::flex());
                let found = prompt.attend(layer, q, k, v).unwrap();
                let step = |i: usize| naive.step(&data.q[i], &data.k[i], &data.v[i]);
                assert_equal(found, &range.map(step).collect::<Vec<_>>());
            }
            if layer < prompt.layers_to_repeat() {
                let part = Inputs::seeded(3, self.seen as u64, layer);
                let [q, k, v] = part.part(0..3, &Device::flex());
                let found = prompt.repeat(layer, q, k, v).unwrap();
                assert_equal(found, &naive.repeat(&part));
            }
            prompt.end_layer(layer).unwrap();
            naive.evict(Phase::Prefill).unwrap();
        }
        prompt.finish().unwrap();
        self.seen = end;
    }

    fn decode(&mut self, tokens: usize) {
        if self.seen == 0 {
            let [q, k, v] = self.data[0].part(0..1, &Device::flex());
            let error = self.cache.decode(0, q, k, v).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Order, "{error}");
            return;
        }
        for i in self.seen..TOKENS.min(self.seen + tokens) {
            for (layer, (data, naive)) in self.data.iter().zip(&mut self.naive).enumerate() {
                let [q, k, v] = data.part(i..i + 1, &Device::flex());
                let found = self.cache.decode(layer, q, k, v).unwrap();
                let wanted = naive.step(&data.q[i], &data.k[i], &data.v[i]);
                assert_equal(found, &[wanted]);
                naive.evict(Phase::Decode).unwrap();
            }
            self.seen = i + 1;
        }
    }

    fn clear(&mut self) {
        self.cache.clear();
        self.naive = naive(&self.plan);
        self.spans = Spans::default();
        self.seen = 0;
    }

    /// The other one of a clone and its original: goes on with other tokens, is emptied and used again.
    fn disturb(&self, mut other: KvCache) {
        for _ in 0..2 {
            let mut prompt = other.prompt(9).unwrap();
            for layer in 0..LAYERS {
                let parts = Inputs::seeded(9, 9, layer).part(0..9, &Device::flex());
                let [q, k, v] = parts.clone();
                prompt.attend(layer, q, k, v).unwrap();
                repeat(&mut prompt, layer, parts).unwrap();
                prompt.end_layer(layer).unwrap();
            }
            prompt.finish().unwrap();
            for layer in 0..LAYERS {
                let [q, k, v] = Inputs::seeded(9, 8, layer).part(0..1, &Device::flex());
                other.decode(layer, q, k, v).unwrap();
            }
            other.clear();
        }
    }

    fn give_up(&mut self, layers: usize) {
        let mut prompt = self.cache.prompt(5).unwrap();
        for layer in 0..layers {
            let parts = self.data[layer].part(0..5, &Device::flex());
            let [q, k, v] = parts.clone();
            prompt.attend(layer, q, k, v).unwrap();
            repeat(&mut prompt, layer, parts).unwrap();
            prompt.end_layer(layer).unwrap();
        }
        let error = prompt.finish().map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Order, "{error}");
        let error = self.cache.prompt(3).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Order, "{error}");
        self.clear();
    }

    fn wrong(&mut self, which: usize) {
        let ones = |heads, tokens| Tensor::<4>::ones([1, heads, tokens, 16], &Device::flex());
        let (q, k) = (ones(HEADS, 1), ones(KV_HEADS, 1));
        let refused = match which {
            0 => self.cache.prompt(0).map(drop),
            1 => self.cache.decode(LAYERS, q, k.clone(), k).map(drop),
            2 => self.cache.decode(0, q, k, ones(KV_HEADS, 2)).map(drop),
            _ => self.cache.decode(0, q, ones(KV_HEADS + 1, 1), k).map(drop),
        };
        assert!(refused.is_err(), "{which}");
    }

    fn compare(&mut self) {
        assert_eq!(self.cache.seen(), self.seen);
        assert_eq!(self.cache.next_positions(), [self.seen]);
        let report = self.cache.report().unwrap();
        if self.seen == 0 {
            assert_eq!((report.bytes, report.seen), (0, 0));
            return;
        }
        for (layer, naive) in self.naive.iter().enumerate() {
            let wanted = naive.positions();
            let together: usize = wanted.iter().map(Vec::len).sum();
            assert_eq!(report.kept[layer], together as f64 / wanted.len() as f64);
            assert_eq!(kept(&self.cache, layer).unwrap(), wanted, "layer {layer}");
        }
    }
}

fn naive(plan: &Plan) -> Vec<Reference> {
    (0..LAYERS)
        .map(|layer| Reference::new(plan, layer).unwrap())
        .collect()
}

/// The outputs of some tokens, `[1, HEADS, tokens, DIM]`, and what the naive cache gives for each.
fn assert_equal(found: Tensor<4>, wanted: &[Token]) {
    let found: Vec<f32> = found.swap_dims(1, 2).try_into_vec_as().unwrap();
    let wanted: Vec<f64> = wanted.iter().flatten().flatten().copied().collect();
    let apart = max_difference(&found, &wanted);
    assert!(apart < 1e-5, "{apart}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_calls_give_what_the_naive_cache_gives(
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4), 2 * LAYERS),
        more in 0usize..14,
        calls in prop::collection::vec(calls(), 1..14),
        seed in 0u64..1000,
    ) {
        let variants = all_variants();
        let mut plan = Plan::full(LAYERS);
        let mut policies = Vec::new();
        for (index, (pick, what)) in picks.into_iter().enumerate() {
            let policy = pick.get(&variants);
            policies.push(policy.clone());
            // One in four keeps everything.
            if what > 0 {
                *plan.layers[index / 2].rule_mut(Phase::BOTH[index % 2]) = Rule::evict(policy.clone());
            }
        }
        // Room for whatever is protected beside what the policies protect.
        let fits = |&budget: &usize| {
            let most = policies.iter().map(|policy| policy.protect(budget).count()).max();
            most.unwrap_or(0) + PROTECTED <= budget
        };
        let budget = (1..1000).find(fits).unwrap();
        plan.budget = Budget::Tokens(budget + more);
        plan.allow_full_extra = true;
        let what = written(&plan);
        let mut both = Both::new(plan, seed);
        for (index, call) in calls.iter().enumerate() {
            let run = std::panic::AssertUnwindSafe(|| both.call(call));
            let panicked = std::panic::catch_unwind(run).is_err();
            prop_assert!(!panicked, "call {} of {:?} under\n{}", index, calls, what);
        }
    }
}
