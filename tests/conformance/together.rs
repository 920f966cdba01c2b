//! Tokens of several caches at once against each cache by itself on the CPU.

use super::BOTH;
use crate::common::{each_policy, policy, repeat};
use burn::tensor::{DType, Device, Tensor, TensorData};
use polykv::policy::TokenRule;
use polykv::testing::{self, Inputs, Windows, facts, kept, max_difference};
use polykv::{
    Budget, KvCache, LayerShape, Phase, Plan, PlanFile, Policy, Registry, Rule, Session,
    SessionInfo,
};
use std::ops::Range;
use std::sync::Arc;

const LAYERS: usize = 2;

/// A sequence: its cache on the device, the same by itself on the CPU, and what it is given.
struct Row {
    name: String,
    own: KvCache,
    wanted: KvCache,
    data: Vec<Inputs>,
    at: usize,
}

fn cache(plan: &Plan, dtype: DType, device: &Device) -> KvCache {
    let shape = LayerShape {
        dtype,
        ..testing::shape()
    };
    let mut cache = KvCache::new(plan.clone(), shape, device).unwrap();
    cache.set_facts(&facts(LAYERS, device));
    cache
}

/// The same where the second layer sees the latest entries alone.
fn windowed(plan: &Plan, dtype: DType, device: &Device) -> KvCache {
    let mut cache = cache(plan, dtype, device);
    let windows = Windows {
        layers: vec![None, Some(50)],
        softcap: None,
    };
    cache.set_facts(&windows.in_facts(facts(LAYERS, device)));
    cache
}

fn prefill(cache: &mut KvCache, data: &[Inputs], range: Range<usize>, device: &Device) {
    let mut prompt = cache.prompt(range.len()).unwrap();
    for (layer, own) in data.iter().enumerate() {
        let [q, k, v] = own.part(range.clone(), device);
        prompt.attend(layer, q, k, v).unwrap();
        repeat(&mut prompt, layer, own.part(range.clone(), device)).unwrap();
        prompt.end_layer(layer).unwrap();
    }
    prompt.finish().unwrap();
}

impl Row {
    fn new(name: &str, plan: &Plan, tokens: usize, dtype: DType, device: &Device) -> Self {
        let seed = 11 + tokens as u64 + name.len() as u64;
        let layers = 0..LAYERS;
        let cache = match name.contains("window") {
            true => windowed,
            false => cache,
        };
        let mut row = Self {
            name: format!("{name} after {tokens}"),
            own: cache(plan, dtype, device),
            wanted: cache(plan, dtype, &Device::flex()),
            data: layers
                .map(|layer| Inputs::seeded(tokens + 300, seed, layer))
                .collect(),
            at: tokens,
        };
        prefill(&mut row.own, &row.data, 0..tokens, device);
        prefill(&mut row.wanted, &row.data, 0..tokens, &Device::flex());
        row
    }

    /// A token of the cache that is by itself.
    fn wanted(&mut self, layer: usize) -> Vec<f32> {
        let [q, k, v] = self.data[layer].part(self.at..self.at + 1, &Device::flex());
        read(self.wanted.decode(layer, q, k, v).unwrap())
    }

    fn check(&self, device: &str) {
        for layer in 0..LAYERS {
            let name = format!("{device}, {}, layer {layer}", self.name);
            let (found, wanted) = (kept(&self.own, layer), kept(&self.wanted, layer));
            assert_eq!(found.unwrap(), wanted.unwrap(), "{name}");
            let (found, wanted) = (&self.own.layers()[layer], &self.wanted.layers()[layer]);
            let evicts = self.own.plan().layers[layer].decode.policy().is_some();
            // Ranges have no slots that tensors of a cache's own do not have.
            if evicts {
                assert_eq!(found.kv_bytes(), wanted.kv_bytes(), "{name}");
            }
        }
    }
}

fn read(tensor: Tensor<4>) -> Vec<f32> {
    tensor.cast(DType::F32).try_into_vec_as().unwrap()
}

fn step(name: &str, device: &Device, rows: &mut [Row], most: f64) {
    for layer in 0..LAYERS {
        let parts: Vec<[Tensor<4>; 3]> = rows
            .iter()
            .map(|row| row.data[layer].part(row.at..row.at + 1, device))
            .collect();
        let of =
            |index: usize| Tensor::cat(parts.iter().map(|own| own[index].clone()).collect(), 0);
        let parts = [of(0), of(1), of(2)];
        let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.own).collect();
        let (output, errors) = KvCache::decode_together(&mut caches, layer, parts).unwrap();
        assert!(errors.iter().all(Option::is_none), "{errors:?}");
        let output = read(output);
        let each = output.len() / rows.len();
        for (row, found) in rows.iter_mut().zip(output.chunks(each)) {
            let difference = max_difference(found, &row.wanted(layer));
            let at = row.at;
            assert!(
                difference < most,
                "{name}, {}, token {at}, layer {layer}: {difference}",
                row.name
            );
        }
    }
    rows.iter_mut().for_each(|row| row.at += 1);
}

fn plans() -> Vec<(String, Plan)> {
    let mut plans = vec![("full".to_string(), Plan::full(LAYERS))];
    plans.push(("full in a window".into(), Plan::full(LAYERS)));
    let normalized = policy("h2o", "{normalize: true, recent_fraction: 0.0}");
    // Of those that are taken one by one a few will do.
    let together = |policy: &Arc<dyn Policy>| {
        policy.token_rule().is_some() || ["scissorhands", "d2o"].contains(&policy.name())
    };
    let own = each_policy().into_iter().filter(together);
    for policy in own.chain([normalized]) {
        let name = policy.key();
        let forgets = policy.token_rule() == Some(TokenRule::Forgets);
        let phases: &[Phase] = match forgets {
            true => &[Phase::Prefill],
            false => &BOTH,
        };
        let plan = Plan::uniform(LAYERS, policy, Budget::Tokens(40), phases);
        plans.push((name, plan));
    }
    let mut mixed = Plan::uniform(LAYERS, policy("snapkv", "{}"), Budget::Tokens(48), &BOTH);
    mixed.layers[0].decode = Rule::evict(policy("h2o", "{}"));
    mixed.layers[1].decode = Rule::evict(policy("tova", "{}"));
    plans.push(("snapkv, then h2o and tova".into(), mixed));
    let summed = Plan::uniform(
        LAYERS,
        policy("h2o", "{}"),
        Budget::Tokens(30),
        &[Phase::Prefill],
    );
    plans.push(("h2o in the prefill".into(), summed));
    for (name, every) in [("snapkv", 8), ("h2o", 5), ("tova", 3)] {
        let mut plan = Plan::uniform(LAYERS, policy(name, "{}"), Budget::Tokens(40), &BOTH);
        plan.every = every;
        plans.push((format!("{name} every {every}"), plan));
    }
    for name in ["h2o", "tova", "streaming-llm"] {
        let mut plan = Plan::uniform(LAYERS, policy(name, "{}"), Budget::Tokens(30), &BOTH);
        plan.layers[0].heads = Some([3.0, 1.0].into());
        plans.push((format!("{name} with parts"), plan));
    }
    plans
}

/// What is left of a sequence goes on by itself: the cache, a copy of it, and one from a file.
fn goes_on(row: &mut Row, device: &Device, most: f64) {
    let info = SessionInfo {
        model: "made up".into(),
        plan: PlanFile::of(row.own.plan(), &Registry::default()),
        tokens: Vec::new(),
        pending: Vec::new(),
    };
    let mut copy = row.own.clone();
    let content = row.own.to_session(&info).unwrap();
    let session = Session::from_bytes("a session", content).unwrap();
    let made = match row.name.contains("window") {
        true => windowed,
        false => cache,
    };
    let mut loaded = made(row.own.plan(), row.own.shape().dtype, device);
    loaded.load(&session, "made up").unwrap();
    for layer in 0..LAYERS {
        let wanted = row.wanted(layer);
        for (what, cache) in [
            ("itself", &mut row.own),
            ("a copy", &mut copy),
            ("a file", &mut loaded),
        ] {
            let [q, k, v] = row.data[layer].part(row.at..row.at + 1, device);
            let found = read(cache.decode(layer, q, k, v).unwrap());
            let difference = max_difference(&found, &wanted);
            assert!(
                difference < most,
                "{}, {what}, layer {layer}: {difference}",
                row.name
            );
        }
    }
    row.at += 1;
    let (found, wanted) = (row.own.report().unwrap(), row.wanted.report().unwrap());
    assert_eq!(found.kept, wanted.kept, "{}", row.name);
    assert_eq!(found.kept_heads, wanted.kept_heads, "{}", row.name);
    assert_eq!(found.full_bytes, wanted.full_bytes, "{}", row.name);
}

/// Rows of all plans that differ in length, some of which leave while others come.
pub fn rows(name: &str, device: &Device) {
    // Scores that are close are told apart alike in f32 alone.
    for (dtype, count, most) in [(DType::F32, usize::MAX, 2e-4), (DType::F16, 2, 5e-3)] {
        let plans: Vec<(String, Plan)> = plans().into_iter().take(count).collect();
        let named = plans.iter().cycle().take(plans.len().max(4)).enumerate();
        let mut rows: Vec<Row> = named
            .map(|(index, (of, plan))| Row::new(of, plan, 37 + 29 * (index % 4), dtype, device))
            .collect();
        (0..6).for_each(|_| step(name, device, &mut rows, most));
        rows.iter().for_each(|row| row.check(name));
        let (mut leave, mut stay) = (Vec::new(), Vec::new());
        for (index, row) in rows.into_iter().enumerate() {
            match index % 2 {
                0 => leave.push(row),
                _ => stay.push(row),
            }
        }
        leave.iter_mut().for_each(|row| goes_on(row, device, most));
        drop(leave);
        stay.push(Row::new(&plans[0].0, &plans[0].1, 190, dtype, device));
        // Ranges that keep everything grow beyond their room.
        (0..40).for_each(|_| step(name, device, &mut stay, most));
        // Parts of them, which overlap with all.
        let half = stay.len() / 2;
        for _ in 0..15 {
            step(name, device, &mut stay[..half], most);
            step(name, device, &mut stay[half..], most);
            step(name, device, &mut stay, most);
        }
        for row in &mut stay {
            row.check(name);
            goes_on(row, device, most);
        }
    }
}

/// Copies that go on differently from what a prompt left, which they share.
pub fn copies(name: &str, device: &Device) {
    let budget = Budget::Tokens(140);
    let plans = [
        Plan::full(LAYERS),
        Plan::uniform(LAYERS, policy("snapkv", "{}"), budget, &[Phase::Prefill]),
        Plan::uniform(
            LAYERS,
            policy("adakv", "{base: {policy: snapkv}}"),
            budget,
            &[Phase::Prefill],
        ),
    ];
    let mut rows = Vec::new();
    for plan in plans {
        let first = Row::new("copies", &plan, 170, DType::F32, device);
        for copy in 0..3 {
            let own = first.own.clone();
            let wanted = first.wanted.clone();
            let seeds = (0..LAYERS).map(|layer| Inputs::seeded(400, 50 + copy, layer));
            rows.push(Row {
                name: format!("copy {copy}"),
                own,
                wanted,
                data: seeds.collect(),
                at: first.at,
            });
        }
    }
    step(name, device, &mut rows, 2e-4);
    let held = KvCache::holdings(rows.iter().map(|row| &row.own));
    let each: usize = rows.iter().map(|row| row.own.kv_bytes()).sum();
    // Two thirds of what is shared would otherwise be copies.
    assert!(held.shared_bytes > 0, "{name}: {held:?}");
    assert_eq!(
        held.bytes - held.free_bytes,
        each - 2 * held.shared_bytes,
        "{name}: {held:?}"
    );
    // Their own ranges move once.
    (0..70).for_each(|_| step(name, device, &mut rows, 2e-4));
    rows.iter().for_each(|row| row.check(name));
    rows.truncate(7);
    (0..3).for_each(|_| step(name, device, &mut rows, 2e-4));
    for row in &mut rows {
        goes_on(row, device, 2e-4);
        row.check(name);
    }
}

/// Heads and vectors of many sizes; a prompt of more than a cube's keys.
pub fn shapes(name: &str, device: &Device) {
    // All pass with vectors of 128 and 256 numbers, too, whose kernels a software adapter compiles for minutes.
    let sizes = [[4, 4, 6], [8, 1, 64], [12, 4, 96]];
    for [heads, kv_heads, head_dim] in sizes {
        let shape = LayerShape {
            heads,
            kv_heads,
            head_dim,
            ..testing::shape()
        };
        let uniform = |name| Plan::uniform(1, policy(name, "{}"), Budget::Tokens(33), &BOTH);
        let plans = [
            Plan::full(1),
            uniform("tova"),
            uniform("h2o"),
            uniform("streaming-llm"),
        ];
        let part = |heads: usize, tokens: usize, seed: usize| {
            let numbers = |i: usize| (((i * 37 + seed * 101) % 211) as f32 / 105.0 - 1.0).powi(3);
            let values: Vec<f32> = (0..heads * tokens * head_dim).map(numbers).collect();
            TensorData::new(values, [1, heads, tokens, head_dim])
        };
        let parts = |tokens: usize, seed: usize, device: &Device| {
            let of = [(heads, 0), (kv_heads, 1), (kv_heads, 2)];
            of.map(|(heads, more)| {
                Tensor::<4>::from_data(part(heads, tokens, 3 * seed + more), device)
            })
        };
        let after_prompt = |row: usize, device: &Device| {
            let mut cache = KvCache::new(plans[row].clone(), shape, device).unwrap();
            let tokens = 150 - 30 * row;
            let mut prompt = cache.prompt(tokens).unwrap();
            let [q, k, v] = parts(tokens, row, device);
            prompt.attend(0, q, k, v).unwrap();
            prompt.end_layer(0).unwrap();
            prompt.finish().unwrap();
            cache
        };
        let rows = 0..plans.len();
        let caches = |device| -> Vec<KvCache> {
            rows.clone().map(|row| after_prompt(row, device)).collect()
        };
        let (mut own, mut wanted) = (caches(device), caches(&Device::flex()));
        for step in 0..5 {
            let seed = |row: usize| 100 + 10 * step + row;
            let each: Vec<[Tensor<4>; 3]> = rows
                .clone()
                .map(|row| parts(1, seed(row), device))
                .collect();
            let of = |index: usize| {
                let all = each.iter().map(|own| own[index].clone());
                Tensor::cat(all.collect(), 0)
            };
            let mut together: Vec<&mut KvCache> = own.iter_mut().collect();
            let (output, _) =
                KvCache::decode_together(&mut together, 0, [of(0), of(1), of(2)]).unwrap();
            for (row, cache) in wanted.iter_mut().enumerate() {
                let [q, k, v] = parts(1, seed(row), &Device::flex());
                let wanted = read(cache.decode(0, q, k, v).unwrap());
                let found = read(output.clone().narrow(0, row, 1));
                let difference = max_difference(&found, &wanted);
                let place = format!("{name}, {shape:?}, row {row}, step {step}");
                assert!(difference < 1e-4, "{place}: {difference}");
            }
        }
        for (row, (own, wanted)) in own.iter().zip(&wanted).enumerate() {
            let (found, wanted) = (kept(own, 0).unwrap(), kept(wanted, 0).unwrap());
            assert_eq!(found, wanted, "{name}, {shape:?}, row {row}");
        }
    }
}
