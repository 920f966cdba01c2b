//! Every policy under every allocator, on shapes, prompts and budgets of any size.

#[path = "properties/windows.rs"]
mod windows;

use super::world::{Fill, World, allocators, expected, phases, plan};
use crate::common::{all_variants, each_policy, written};
use burn::tensor::{DType, Device};
use polykv::allocate::{Allocators, least_budget};
use polykv::policy::{Params, Policies};
use polykv::testing::{Case, Windows, compare, max_difference};
use polykv::{Budget, ErrorKind, LayerShape, Phase, Plan, Rule, Spans};
use proptest::prelude::*;

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

/// What a policy remembers of a window or a history takes the room of what was seen, not of what it could hold.
#[test]
fn the_largest_parameters_take_no_room_of_their_own() {
    let policies = Policies::default();
    for entry in policies.iter() {
        let build = |params: &Params| policies.build(&entry.name, params);
        let defaults = build(&Params::new()).unwrap().params();
        for name in defaults.names().filter(|name| *name != "seed") {
            if defaults.get::<usize>(name).is_none() {
                continue;
            }
            // Kernels are odd, and smaller.
            let largest = [1 << 20, 1023].map(|value| Params::new().with(name, value));
            let policy = largest.iter().find_map(|params| build(params).ok());
            let policy = policy.unwrap_or_else(|| panic!("{} {name}", entry.name));
            let budget = Budget::Tokens(least_budget(&*policy).unwrap().max(12));
            let world = World::new(2, 24, 6);
            let plan = plan(&world, &policy, &None, budget, &Phase::BOTH).unwrap();
            let what = written(&plan);
            let run = world
                .run(plan)
                .unwrap_or_else(|error| panic!("{error}: {what}"));
            assert!(run.aux_bytes < 1 << 18, "{}: {what}", run.aux_bytes);
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
        every in 1usize..6,
    ) {
        let variants = all_variants();
        let windows = Windows { layers: windows, softcap };
        let spans = Spans::new(spans.into_iter().map(|(start, count)| start..start + count));
        let mut plan = Plan::full(2);
        // Of two entries keydiff prefers neither: both are as far from their mean.
        let mut budget = 2;
        for (index, (pick, what)) in picks.into_iter().enumerate() {
            let policy = pick.get(&variants);
            budget = budget.max(least_budget(&**policy).unwrap() + spans.count());
            // A pyramid may leave one entry to its last layer.
            let ties = pyramid && policy.key().contains("keydiff");
            // One in four keeps everything.
            if what > 0 && !ties {
                *plan.layers[index / 2].rule_mut(Phase::BOTH[index % 2]) = Rule::evict(policy.clone());
            }
        }
        plan.budget = Budget::Tokens(budget + more);
        plan.allow_full_extra = true;
        plan.every = every;
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
            let Some(plan) = plan(&world, &policy, &None, budget, &Phase::BOTH) else { continue };
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
