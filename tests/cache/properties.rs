//! Every policy under every allocator, on shapes, prompts and budgets of any size.

#[path = "properties/windows.rs"]
mod windows;

use crate::common::{all_variants, each_policy, written};
use burn::tensor::{DType, Device, Tensor, TensorData};
use polykv::allocate::{Allocators, least_budget};
use polykv::testing::{Case, Windows, compare, kept, max_difference};
use polykv::{
    Allocator, Budget, Error, ErrorKind, KvCache, LayerFacts, LayerShape, ModelFacts, Phase, Plan,
    Policy, RopeFacts, Rule, Spans,
};
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// What queries, keys and values are.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// Numbers between ±2.
    Any,
    /// Zeros: every score is a tie.
    Zeros,
    /// All tokens alike.
    Same,
    /// Numbers between ±2, one in 23 of another value.
    With(f32),
}

/// A synthetic model and a prompt.
#[derive(Clone, Copy, Debug)]
struct World {
    shape: LayerShape,
    layers: usize,
    prompt: usize,
    chunk: usize,
    steps: usize,
    fill: Fill,
    seed: u64,
    /// Of the layers with an even index.
    window: Option<usize>,
}

/// What is left of a run: outputs of all calls, and entries per layer after the prompt and after every step.
#[derive(Debug)]
struct Run {
    outputs: Vec<f32>,
    lengths: Vec<Vec<usize>>,
}

fn hash(words: [u64; 6]) -> u64 {
    words.iter().fold(0x9E37_79B9_7F4A_7C15, |x: u64, word| {
        let x = (x ^ word).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x ^ (x >> 29)
    })
}

impl World {
    fn new(layers: usize, prompt: usize, steps: usize) -> Self {
        Self {
            shape: LayerShape {
                batch: 1,
                heads: 4,
                kv_heads: 2,
                head_dim: 8,
                dtype: DType::F32,
            },
            layers,
            prompt,
            chunk: prompt,
            steps,
            fill: Fill::Any,
            seed: 1,
            window: None,
        }
    }

    /// Queries (0), keys (1) or values (2) of a layer: `[batch, heads, tokens, head_dim]`.
    fn part(&self, layer: usize, kind: u64, tokens: Range<usize>) -> Tensor<4> {
        let heads = if kind == 0 {
            self.shape.heads
        } else {
            self.shape.kv_heads
        };
        let dims = [self.shape.batch, heads, tokens.len(), self.shape.head_dim];
        let mut values = Vec::new();
        for row in 0..self.shape.batch * heads {
            for token in tokens.clone() {
                let token = if matches!(self.fill, Fill::Same) {
                    0
                } else {
                    token
                };
                let number = |d: usize| {
                    let words = [
                        self.seed,
                        layer as u64,
                        kind,
                        row as u64,
                        token as u64,
                        d as u64,
                    ];
                    let hash = hash(words);
                    let number = (hash >> 40) as f32 / (1u64 << 22) as f32 - 2.0;
                    match self.fill {
                        Fill::Zeros => 0.0,
                        Fill::With(other) if hash.is_multiple_of(23) => other,
                        _ => number,
                    }
                };
                values.extend((0..self.shape.head_dim).map(number));
            }
        }
        Tensor::from_data(TensorData::new(values, dims), &Device::flex())
    }

    fn cache(&self, plan: Plan) -> Result<KvCache, Error> {
        let device = Device::flex();
        let mut cache = KvCache::new(plan, self.shape, &device)?;
        let pairs = self.shape.head_dim / 2;
        let width = self.shape.heads * self.shape.head_dim;
        let mut layer = LayerFacts::default();
        layer.rope = Some(RopeFacts {
            frequencies: (0..pairs).map(|pair| 0.7f64.powi(pair as i32)).collect(),
            magnitude: 1.0,
        });
        layer.output = Some(Tensor::<2>::ones([5, width], &device).into());
        let mut facts = ModelFacts::default();
        facts.layers = vec![layer; self.layers];
        for (facts, window) in facts.layers.iter_mut().zip(self.windows()) {
            facts.window = window;
        }
        cache.set_facts(&facts);
        Ok(cache)
    }

    fn windows(&self) -> Vec<Option<usize>> {
        let window = |layer: usize| self.window.filter(|_| layer.is_multiple_of(2));
        (0..self.layers).map(window).collect()
    }

    /// The most entries that a layer holds after `seen` tokens.
    fn most(&self, layer: usize, seen: usize) -> usize {
        let window = self.windows()[layer].unwrap_or(usize::MAX);
        seen.min(window.saturating_sub(1).max(1))
    }

    fn run(&self, plan: Plan) -> Result<Run, Error> {
        let mut cache = self.cache(plan)?;
        let mut outputs = Vec::new();
        let mut take = |output: Tensor<4>| outputs.extend(output.try_into_vec_as::<f32>().unwrap());
        let mut prompt = cache.prompt(self.prompt)?;
        for layer in 0..self.layers {
            for start in (0..self.prompt).step_by(self.chunk) {
                let range = start..self.prompt.min(start + self.chunk);
                let [q, k, v] = [0, 1, 2].map(|kind| self.part(layer, kind, range.clone()));
                take(prompt.attend(layer, q, k, v)?);
            }
            prompt.end_layer(layer)?;
        }
        prompt.finish()?;
        let mut lengths = vec![self.lengths(&cache)];
        for i in self.prompt..self.prompt + self.steps {
            for layer in 0..self.layers {
                let [q, k, v] = [0, 1, 2].map(|kind| self.part(layer, kind, i..i + 1));
                take(cache.decode(layer, q, k, v)?);
            }
            lengths.push(self.lengths(&cache));
        }
        cache.report()?;
        Ok(Run { outputs, lengths })
    }

    /// Entries per layer, the same in all rows and heads, each once and of what was seen.
    fn lengths(&self, cache: &KvCache) -> Vec<usize> {
        let length = |layer| {
            let heads = kept(cache, layer).unwrap();
            let last = heads.iter().flatten().max();
            assert!(last.is_some_and(|&last| last < cache.seen()));
            assert_eq!(heads.len(), self.shape.batch * self.shape.kv_heads);
            assert!(heads.iter().all(|head| head.len() == heads[0].len()));
            heads[0].len()
        };
        (0..self.layers).map(length).collect()
    }
}

/// None, and every allocator that a plan can name.
fn allocators() -> Vec<Option<Arc<dyn Allocator>>> {
    let allocators = Allocators::default();
    let online = allocators.iter().filter(|own| own.basis().is_online());
    std::iter::once(None)
        .chain(online.cloned().map(Some))
        .collect()
}

/// The policy in all layers; none where the allocator does not go with it.
fn plan(
    world: &World,
    policy: &Arc<dyn Policy>,
    online: &Option<Arc<dyn Allocator>>,
    budget: Budget,
    phases: &[Phase],
) -> Option<Plan> {
    let mut plan = Plan::uniform(world.layers, policy.clone(), budget, phases);
    plan.online = online.clone();
    match plan.check() {
        Ok(()) => Some(plan),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Plan, "{error}");
            assert!(!policy.can_cut_in_steps() && online.is_some(), "{error}");
            None
        }
    }
}

fn phases(index: usize) -> &'static [Phase] {
    [&Phase::BOTH[..1], &Phase::BOTH[1..], &Phase::BOTH][index]
}

/// How many entries a layer of a budget of its own holds after each call.
fn expected(world: &World, budget: usize, phases: &[Phase]) -> Vec<usize> {
    let cut = |held: usize, phase| match phases.contains(&phase) {
        true => held.min(budget),
        false => held,
    };
    let mut all = vec![cut(world.prompt, Phase::Prefill)];
    for _ in 0..world.steps {
        all.push(cut(all[all.len() - 1] + 1, Phase::Decode));
    }
    all
}

#[test]
fn prompts_of_few_tokens_run_under_every_policy_and_allocator() {
    for policy in all_variants() {
        let least = least_budget(&*policy).unwrap();
        for online in allocators() {
            for prompt in 1..=4 {
                for budget in [least, least + 2] {
                    let world = World::new(3, prompt, 5);
                    let Some(plan) = plan(
                        &world,
                        &policy,
                        &online,
                        Budget::Tokens(budget),
                        &Phase::BOTH,
                    ) else {
                        continue;
                    };
                    let what = format!("{prompt} tokens\n{}", written(&plan));
                    let run = world
                        .run(plan)
                        .unwrap_or_else(|error| panic!("{error}: {what}"));
                    for (step, lengths) in run.lengths.iter().enumerate() {
                        let seen = prompt + step;
                        let held: usize = lengths.iter().sum();
                        assert!(held <= (3 * budget).min(3 * seen), "{lengths:?}: {what}");
                        if 3 * budget >= 3 * seen {
                            assert_eq!(lengths, &vec![seen; 3], "{what}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn ties_and_zeros_run_and_what_is_infinite_is_an_error_or_does_no_harm() {
    for policy in all_variants() {
        let budget = least_budget(&*policy).unwrap() + 3;
        for online in allocators() {
            for fill in [
                Fill::Zeros,
                Fill::Same,
                Fill::With(0.0),
                Fill::With(1e30),
                Fill::With(f32::INFINITY),
                Fill::With(f32::NEG_INFINITY),
                Fill::With(f32::NAN),
            ] {
                let world = World {
                    fill,
                    ..World::new(2, budget + 13, 6)
                };
                let Some(plan) = plan(
                    &world,
                    &policy,
                    &online,
                    Budget::Tokens(budget),
                    &Phase::BOTH,
                ) else {
                    continue;
                };
                let what = format!("{fill:?}\n{}", written(&plan));
                let harmless = !matches!(fill, Fill::With(other) if other != 0.0);
                match world.run(plan) {
                    Ok(run) => {
                        for lengths in &run.lengths {
                            assert_eq!(lengths.iter().sum::<usize>(), 2 * budget, "{what}");
                        }
                        let finite = run.outputs.iter().all(|x| x.is_finite());
                        assert!(finite || !harmless, "{what}");
                    }
                    Err(error) => {
                        assert!(!harmless, "{error}: {what}");
                        assert_eq!(error.kind(), ErrorKind::NotFinite, "{error}: {what}");
                    }
                }
            }
        }
    }
}

prop_compose! {
    fn worlds()(
        batch in 1usize..3,
        kv_heads in 1usize..4,
        group in 1usize..5,
        pairs in 1usize..10,
        layers in 1usize..5,
        prompt in 1usize..70,
        chunk in 1usize..70,
        steps in 0usize..9,
        seed in any::<u64>(),
    ) -> World {
        let shape = LayerShape { batch, heads: kv_heads * group, kv_heads, head_dim: 2 * pairs, dtype: DType::F32 };
        World { shape, layers, prompt, chunk, steps, fill: Fill::Any, seed, window: None }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_budget_that_covers_everything_changes_nothing(
        world in worlds(),
        phase in 0usize..3,
        more in 0usize..30,
        unit in 0usize..2,
    ) {
        let full = world.run(Plan::full(world.layers)).unwrap();
        for policy in each_policy() {
            let least = least_budget(&*policy).unwrap();
            let each = (world.prompt + world.steps + more).max(least);
            for online in allocators() {
                let budget = [Budget::Tokens(each), Budget::Total(each * world.layers + more % world.layers)][unit];
                let Some(plan) = plan(&world, &policy, &online, budget, phases(phase)) else { continue };
                let what = written(&plan);
                let run = world.run(plan).unwrap();
                prop_assert_eq!(&run.lengths, &full.lengths, "{}", &what);
                let apart = max_difference(&run.outputs, &full.outputs);
                prop_assert!(apart <= 1e-6, "{}: {}", apart, &what);
            }
        }
    }

    #[test]
    fn every_layer_keeps_its_budget_and_all_layers_theirs(
        world in worlds(),
        phase in 0usize..3,
        more in 0usize..30,
    ) {
        let phases = phases(phase);
        for policy in each_policy() {
            let budget = least_budget(&*policy).unwrap() + more;
            for online in allocators() {
                let Some(plan) = plan(&world, &policy, &online, Budget::Tokens(budget), phases) else { continue };
                let what = format!("{world:?}\n{}", written(&plan));
                let run = world.run(plan).unwrap();
                let wanted = expected(&world, budget, phases);
                for (step, (lengths, wanted)) in run.lengths.iter().zip(wanted).enumerate() {
                    if online.is_none() {
                        prop_assert_eq!(lengths, &vec![wanted; world.layers], "{}", &what);
                    }
                    let held: usize = lengths.iter().sum();
                    let (seen, total) = (world.prompt + step, budget * world.layers);
                    // Cut to the total after the prompt, or only once the decode has begun.
                    let cut = phases.contains(&Phase::Prefill) && step == 0 || phases.contains(&Phase::Decode) && step > 0;
                    if cut {
                        prop_assert!(held <= total, "{:?}: {}", lengths, &what);
                    }
                    // While everything fits, nothing goes.
                    if total >= world.layers * seen {
                        prop_assert_eq!(lengths, &vec![seen; world.layers], "{}", &what);
                    }
                }
            }
        }
    }

    /// Prompts and steps in any sizes, several rounds of them, rules that differ between layers and phases, protected
    /// positions, windows and a soft-cap: the cache against the naive one.
    #[test]
    fn any_sequence_of_prompts_and_steps_equals_the_reference(
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4), 4),
        (prompt, chunk, steps, rounds) in (1usize..50, 1usize..50, 0usize..14, 1usize..4),
        more in 0usize..14,
        spans in prop::collection::vec((0usize..40, 1usize..4), 0..3),
        pyramid in any::<bool>(),
        seed in 0u64..1000,
        windows in prop::collection::vec(prop::option::of(1usize..60), 2),
        softcap in prop::option::of(0.5f64..20.0),
    ) {
        let variants = all_variants();
        let windows = Windows { layers: windows, softcap };
        let spans = Spans::new(spans.into_iter().map(|(start, count)| start..start + count));
        let mut plan = Plan::full(2);
        let mut budget = 1;
        for (index, (pick, what)) in picks.into_iter().enumerate() {
            let policy = pick.get(&variants);
            budget = budget.max(least_budget(&**policy).unwrap() + spans.count());
            // One in four keeps everything.
            if what > 0 {
                *plan.layers[index / 2].rule_mut(Phase::BOTH[index % 2]) = Rule::evict(policy.clone());
            }
        }
        plan.budget = Budget::Tokens(budget + more);
        plan.allow_full_extra = true;
        if pyramid {
            plan.online = Some(Allocators::default().get("pyramid").unwrap());
        }
        let what = format!("{windows:?}\n{}", written(&plan));
        let case = Case { plan, prompt, chunk, steps, rounds, spans, seed, windows };
        match compare(&case, &Device::flex()) {
            Ok(found) => {
                prop_assert!(found.output < 1e-5 && found.kept == 0, "{:?}: {}", found, what);
            }
            // A pyramid's last layer may get less than it protects.
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Budget, "{}: {}", error, what),
        }
    }

    /// A policy's prompt in chunks is the prompt at once, whatever the shape.
    #[test]
    fn kept_sets_do_not_depend_on_chunks(world in worlds(), more in 0usize..12) {
        for policy in each_policy() {
            let budget = Budget::Tokens(least_budget(&*policy).unwrap() + more);
            let plan = Plan::uniform(world.layers, policy.clone(), budget, &Phase::BOTH);
            let whole = World { chunk: world.prompt, ..world };
            let (found, wanted) = (world.run(plan.clone()).unwrap(), whole.run(plan).unwrap());
            prop_assert_eq!(found.lengths, wanted.lengths);
            // Chunks' outputs come layer by layer, whatever their sizes, but heads lie apart in each.
            if world.chunk >= world.prompt {
                prop_assert!(max_difference(&found.outputs, &wanted.outputs) <= 1e-6, "{}", policy.key());
            }
        }
    }
}
