//! Every policy on a prompt so small that a reader can work out what it keeps. One query head, one KV head.

use crate::common;
use burn::tensor::{DType, Device, Tensor, TensorData};
use polykv::testing::{kept, max_difference};
use polykv::{Budget, KvCache, LayerFacts, LayerShape, ModelFacts, Phase, Plan, RopeFacts};

const DIM: usize = 16;
const TOKENS: usize = 8;

/// A vector that begins so, and is zero further on.
fn vector(first: &[f64]) -> Vec<f64> {
    let mut all = first.to_vec();
    all.resize(DIM, 0.0);
    all
}

/// `length` along one axis.
fn axis(axis: usize, length: f64) -> Vec<f64> {
    let mut all = vector(&[]);
    all[axis] = length;
    all
}

fn tensor(tokens: &[Vec<f64>]) -> Tensor<4> {
    let values: Vec<f32> = tokens.concat().into_iter().map(|x| x as f32).collect();
    let dims = [1, 1, tokens.len(), DIM];
    Tensor::from_data(TensorData::new(values, dims), &Device::flex())
}

/// Where a query's attention goes: entries with their parts.
type Look<'a> = &'a [(usize, f64)];

/// A query that attends so, if the key of token i is `key(i)`: what is not named gets e⁻³⁶ of it at most.
fn query(look: Look) -> Vec<f64> {
    let mut all = vector(&[]);
    for (entry, part) in look {
        all[*entry] = (36.0 + part.ln()) * (DIM as f64).sqrt() / 12.0;
    }
    all
}

fn key(token: usize) -> Vec<f64> {
    axis(token, 12.0)
}

struct Prompt {
    queries: Vec<Vec<f64>>,
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Prompt {
    /// Tokens with keys on axes of their own, and queries that attend as said.
    fn looking(looks: [Look; TOKENS]) -> Self {
        Self {
            queries: looks.into_iter().map(query).collect(),
            keys: (0..TOKENS).map(key).collect(),
            values: (0..TOKENS).map(|token| axis(token, 1.0)).collect(),
        }
    }

    /// As [`Prompt::looking`], with `early` for all queries before the given last ones.
    fn ending(early: Look, last: &[Look]) -> Self {
        let mut looks = [early; TOKENS];
        looks[TOKENS - last.len()..].copy_from_slice(last);
        Self::looking(looks)
    }

    /// Only the last query matters.
    fn last(look: Look) -> Self {
        Self::ending(&[], &[look])
    }

    /// Keys of a few elements; queries and values are all the same.
    fn of_keys(keys: &[&[f64]]) -> Self {
        Self {
            queries: vec![axis(0, 1.0); keys.len()],
            keys: keys.iter().map(|key| vector(key)).collect(),
            values: vec![axis(0, 1.0); keys.len()],
        }
    }

    /// The cache after the prompt under a policy of its prefill.
    fn run(&self, policy: &str, params: &str, budget: usize) -> KvCache {
        let policy = common::policy(policy, params);
        self.filled(Plan::uniform(
            1,
            policy,
            Budget::Tokens(budget),
            &[Phase::Prefill],
        ))
    }

    fn filled(&self, plan: Plan) -> KvCache {
        let device = Device::flex();
        let shape = LayerShape {
            batch: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: DIM,
            dtype: DType::F32,
        };
        let mut cache = KvCache::new(plan, shape, &device).unwrap();
        // No rotation, and a projection that changes nothing.
        let mut layer = LayerFacts::default();
        layer.rope = Some(RopeFacts {
            frequencies: vec![0.0; DIM / 2].into(),
            magnitude: 1.0,
        });
        layer.output = Some(Tensor::<2>::eye(DIM, &device).into());
        let mut facts = ModelFacts::default();
        facts.layers = vec![layer];
        cache.set_facts(&facts);
        let [q, k, v] = [&self.queries, &self.keys, &self.values].map(|own| tensor(own));
        let mut prompt = cache.prompt(self.keys.len()).unwrap();
        prompt.attend(0, q, k, v).unwrap();
        prompt.end_layer(0).unwrap();
        prompt.finish().unwrap();
        cache
    }

    fn kept(&self, policy: &str, params: &str, budget: usize) -> Vec<usize> {
        kept(&self.run(policy, params, budget), 0)
            .unwrap()
            .remove(0)
    }
}

/// What a further query sees: the parts that it gives to the values, as the output's first elements.
fn output(cache: &mut KvCache, query: Vec<f64>) -> Vec<f32> {
    let own = |x| tensor(&[x]);
    let attended = cache.decode(0, own(query), own(vector(&[])), own(vector(&[])));
    attended.unwrap().try_into_vec_as().unwrap()
}

/// Compares the first numbers.
fn assert_near(found: &[f32], wanted: &[f32]) {
    let found = &found[..wanted.len()];
    let apart = max_difference(found, wanted);
    assert!(apart < 1e-5, "{found:?}, not {wanted:?}");
}

#[test]
fn full_keeps_everything_and_streaming_llm_both_ends() {
    let prompt = Prompt::last(&[(3, 1.0)]);
    let full = prompt.filled(Plan::full(1));
    assert_eq!(kept(&full, 0).unwrap()[0], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(prompt.kept("streaming-llm", "{sinks: 1}", 4), [0, 5, 6, 7]);
    assert_eq!(prompt.kept("streaming-llm", "{sinks: 3}", 4), [0, 1, 2, 7]);
}

#[test]
fn tova_keeps_what_the_last_query_attends_to() {
    let prompt = Prompt::last(&[(1, 0.5), (4, 0.3), (6, 0.15), (2, 0.05)]);
    assert_eq!(prompt.kept("tova", "{}", 3), [1, 4, 6]);
    assert_eq!(prompt.kept("tova", "{protect_last: 1}", 3), [1, 4, 7]);
}

#[test]
fn h2o_adds_up_what_all_queries_pay() {
    // To 0, 1, 2 and 5 they pay 1.2, 3, 2 and 1.8.
    let looks: [Look; TOKENS] = [
        &[(0, 1.0)],
        &[(1, 1.0)],
        &[(1, 1.0)],
        &[(1, 1.0)],
        &[(2, 1.0)],
        &[(2, 1.0)],
        &[(5, 0.9), (0, 0.1)],
        &[(5, 0.9), (0, 0.1)],
    ];
    let prompt = Prompt::looking(looks);
    assert_eq!(prompt.kept("h2o", "{recent_fraction: 0}", 2), [1, 2]);
    // Half of four entries are the latest, and do not include 5.
    assert_eq!(prompt.kept("h2o", "{}", 4), [1, 2, 6, 7]);
    // 1.8 of three queries that could see 5, 3 of seven that could see 1, 2 of six that could see 2.
    let normalised = "{recent_fraction: 0, normalize: true}";
    assert_eq!(prompt.kept("h2o", normalised, 1), [5]);
    assert_eq!(prompt.kept("h2o", normalised, 2), [1, 5]);
}

#[test]
fn snapkv_and_pyramidkv_ask_the_window_only() {
    let window: [Look; 2] = [&[(1, 0.6), (3, 0.4)], &[(3, 0.9), (0, 0.1)]];
    let prompt = Prompt::ending(&[(0, 1.0)], &window);
    for policy in ["snapkv", "pyramidkv"] {
        // 3 has 1.3, 1 has 0.6; all that 0 got before does not count.
        assert_eq!(prompt.kept(policy, "{window: 2, kernel: 1}", 3), [3, 6, 7]);
        assert_eq!(
            prompt.kept(policy, "{window: 2, kernel: 1}", 4),
            [1, 3, 6, 7]
        );
        // The largest of three neighbours: 2 and 4 have what 3 has.
        assert_eq!(
            prompt.kept(policy, "{window: 2, kernel: 3}", 5),
            [2, 3, 4, 6, 7]
        );
    }
}

#[test]
fn cake_weighs_mean_and_variance_of_the_window() {
    // 1: mean 0.4, variance 0; 3: mean 0.3, variance 0.09.
    let window: [Look; 2] = [&[(1, 0.4), (3, 0.6)], &[(1, 0.4), (0, 0.3), (2, 0.3)]];
    let prompt = Prompt::ending(&[], &window);
    let steady = "{window: 2, kernel: 1, gamma: 0}";
    assert_eq!(prompt.kept("cake", steady, 3), [1, 6, 7]);
    let changing = "{window: 2, kernel: 1, gamma: 5}";
    assert_eq!(prompt.kept("cake", changing, 3), [3, 6, 7]);
}

#[test]
fn scissorhands_counts_queries_that_pay_an_even_part() {
    // Of the last three, 1 gets the average (an eighth) twice, 2 once, 3 never, though more in all than 2; what 0 got
    // is too long ago.
    let twice: Look = &[(1, 0.89), (3, 0.11)];
    let last = [twice, twice, &[(2, 0.14), (3, 0.11), (7, 0.75)]];
    let prompt = Prompt::ending(&[(0, 1.0)], &last);
    let params = "{history: 3, recent: 1}";
    assert_eq!(prompt.kept("scissorhands", params, 3), [1, 2, 7]);
    let longer = "{history: 8, recent: 1}";
    assert_eq!(prompt.kept("scissorhands", longer, 3), [0, 1, 7]);
}

#[test]
fn d2o_averages_what_goes_into_the_nearest_that_stays() {
    // 0 is a sink, 3 the latest. 1 has the direction of 0 (cosine 1), 2 is nearest to 3 (0.8): below the mean, 0.9.
    let mut prompt = Prompt::of_keys(&[&[2.0], &[3.0], &[3.0, 4.0], &[0.0, 1.0]]);
    prompt.values = (0..4).map(|token| axis(token, 1.0)).collect();
    let params = "{sinks: 1, recent_fraction: 0.5}";
    assert_eq!(prompt.kept("d2o", params, 2), [0, 3]);
    let mut cache = prompt.run("d2o", params, 2);
    let keys: Vec<f32> = cache.layers()[0].keys().unwrap().try_into_vec_as().unwrap();
    // e¹ for the evicted and e for the kept are halves.
    assert_near(&keys[..2], &[2.5, 0.0]);
    assert_near(&keys[DIM..][..2], &[0.0, 1.0]);
    // 100 / 4 · 2.5 stands against 0 for the other two.
    let seen = output(&mut cache, axis(0, 100.0));
    assert_near(&seen, &[0.5, 0.5, 0.0, 0.0]);
    let seen = output(&mut cache, axis(1, 200.0));
    assert_near(&seen, &[0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn cam_leaves_values_to_those_that_follow() {
    // The window pays 1 more than the mean of 6 and 7, and 2 nothing: chances 1 and 0.
    let prompt = Prompt::ending(&[], &[&[(1, 1.0)], &[(1, 0.5), (7, 0.5)]]);
    let mut cache = prompt.run("cam", "{sinks: 1, window: 2}", 3);
    assert_eq!(kept(&cache, 0).unwrap()[0], [0, 6, 7]);
    // A half of its value to each of the next two.
    let wanted = |own: usize, part| {
        let mut all = vec![0.0; DIM];
        (all[own], all[1]) = (1.0, part);
        all
    };
    for (entry, part) in [(0, 0.0), (6, 0.5), (7, 0.5)] {
        let seen = output(&mut cache, query(&[(entry, 1.0)]));
        assert_near(&seen, &wanted(entry, part));
    }
}

#[test]
fn expected_attention_takes_queries_for_normal() {
    let params = "{sinks: 0, epsilon: 0}";
    // All queries alike: no covariance, and parts 4, 3, 2, 1 times the norms of the values: 4, 3, 5, 6.
    let parts: Look = &[(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)];
    let norms = [1.0, 1.0, 2.5, 6.0];
    let prompt = Prompt {
        queries: vec![query(parts); 4],
        keys: (0..4).map(key).collect(),
        values: norms.map(|norm| axis(0, norm)).to_vec(),
    };
    assert_eq!(prompt.kept("expected-attention", params, 2), [2, 3]);
    // Their mean is zero, and they vary along the first axis: so do the keys that will be asked for, on either side.
    let mut prompt = Prompt::of_keys(&[&[0.0, 3.0], &[1.0], &[0.0, 0.0, 3.0], &[-2.0]]);
    prompt.queries = [5.0, -5.0, 5.0, -5.0].map(|x| axis(0, x)).to_vec();
    assert_eq!(prompt.kept("expected-attention", params, 2), [1, 3]);
}

#[test]
fn lagkv_keeps_what_stands_out_from_the_next_partition() {
    // 0 is a sink; 1 and 2 are scaled by the ranges of 3 and 4, which are 1 in two channels. One of the two is even over
    // the channels.
    let (even, odd): (&[f64], &[f64]) = (&[0.5, 0.5], &[1.0, 0.0]);
    let others: [&[f64]; 3] = [&[0.0, 0.0], &[1.0, 1.0], &[0.0, 0.0]];
    let of =
        |first, second| Prompt::of_keys(&[&[9.0], first, second, others[0], others[1], others[2]]);
    let params = "{lag: 2, sinks: 1}";
    assert_eq!(of(odd, even).kept("lagkv", params, 5), [0, 1, 3, 4, 5]);
    assert_eq!(of(even, odd).kept("lagkv", params, 5), [0, 2, 3, 4, 5]);
}

#[test]
fn criticalkv_weighs_the_second_half_by_the_values() {
    let mut prompt = Prompt::last(&[(0, 0.5), (1, 0.3), (2, 0.2)]);
    assert_eq!(prompt.kept("criticalkv", "{base: tova}", 2), [0, 1]);
    // 0 is the base policy's first; then 0.2 · 10 against 0.3.
    prompt.values[2] = axis(2, 10.0);
    assert_eq!(prompt.kept("criticalkv", "{base: tova}", 2), [0, 2]);
}

#[test]
fn knorm_keeps_short_keys_and_keydiff_unusual_ones() {
    let prompt = Prompt::of_keys(&[&[3.0], &[1.0], &[2.0], &[5.0], &[4.0]]);
    assert_eq!(prompt.kept("knorm", "{}", 2), [1, 2]);
    // Whatever their lengths, most point one way, 1 across and 4 back.
    let prompt = Prompt::of_keys(&[&[3.0], &[0.0, 7.0], &[2.0], &[5.0, 0.1], &[-4.0]]);
    assert_eq!(prompt.kept("keydiff", "{}", 2), [1, 4]);
}

#[test]
fn blend_gives_each_member_its_part() {
    // tova's favourites are 0 and 1, knorm's 5 and 6.
    let mut prompt = Prompt::last(&[(0, 0.6), (1, 0.4)]);
    prompt.keys[5] = axis(5, 1.0);
    prompt.keys[6] = axis(6, 2.0);
    assert_eq!(
        prompt.kept("blend", "{policies: 'tova:1,knorm:1'}", 2),
        [0, 5]
    );
    assert_eq!(
        prompt.kept("blend", "{policies: 'tova:2,knorm:1'}", 3),
        [0, 1, 5]
    );
    assert_eq!(
        prompt.kept("blend", "{policies: 'tova:1,knorm:2'}", 3),
        [0, 5, 6]
    );
}

#[test]
fn random_keeps_the_largest_hashes() {
    // Worked out apart from this code: SplitMix64 of seed, layer 0, head 0 and position, upper 24 bits.
    let prompt = Prompt::last(&[(0, 1.0)]);
    assert_eq!(prompt.kept("random", "{seed: 0}", 3), [0, 1, 7]);
    assert_eq!(prompt.kept("random", "{seed: 9}", 3), [1, 4, 7]);
}

#[test]
fn a_decode_step_evicts_the_least() {
    // The step attends to 0, 2 and itself, earlier queries to 1.
    let look: Look = &[(0, 0.5), (2, 0.3), (3, 0.2)];
    for (policy, params, wanted) in [
        ("streaming-llm", "{sinks: 1}", [0, 2, 3]),
        ("tova", "{}", [0, 2, 3]),
        ("cake", "{window: 1, kernel: 1}", [0, 2, 3]),
        ("h2o", "{recent_fraction: 0}", [0, 1, 2]),
        ("knorm", "{}", [0, 1, 3]),
    ] {
        let prompt = Prompt {
            queries: [&[(0, 1.0)][..], &[(1, 1.0)], &[(1, 0.5), (2, 0.5)]]
                .map(query)
                .to_vec(),
            keys: vec![key(0), key(1), axis(2, 12.5)],
            values: (0..3).map(|token| axis(token, 1.0)).collect(),
        };
        let own = common::policy(policy, params);
        let plan = Plan::uniform(1, own, Budget::Tokens(3), &[Phase::Decode]);
        let mut cache = prompt.filled(plan);
        let one = |x: Vec<f64>| tensor(&[x]);
        cache
            .decode(0, one(query(look)), one(key(3)), one(axis(3, 1.0)))
            .unwrap();
        assert_eq!(kept(&cache, 0).unwrap()[0], wanted, "{policy}");
    }
}
