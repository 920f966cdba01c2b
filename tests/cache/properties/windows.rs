//! Every second layer has a window.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// No layer exceeds its window or its budget, and windows leave the rest of the total to the others.
    #[test]
    fn layers_with_windows_hold_what_they_see(
        world in worlds(),
        window in 1usize..60,
        phase in 0usize..3,
        more in 0usize..60,
    ) {
        let world = World { window: Some(window), ..world };
        let phases = phases(phase);
        let windows = world.windows();
        for policy in each_policy() {
            let budget = least_budget(&*policy).unwrap() + more;
            for online in allocators() {
                let Some(plan) = plan(&world, &policy, &online, Budget::Tokens(budget), phases) else { continue };
                let what = format!("{world:?}\n{}", written(&plan));
                let cost = world.shape.cost(&windows);
                let resolved = plan.resolve(world.prompt, &cost).unwrap();
                let room: usize = (0..world.layers).map(|layer| cost.most(layer)).fold(0, usize::saturating_add);
                for &phase in phases {
                    let wanted = (budget * world.layers).min(room);
                    prop_assert_eq!(resolved.total(phase), wanted, "{}", &what);
                }
                let run = world.run(plan.clone()).unwrap();
                for (step, lengths) in run.lengths.iter().enumerate() {
                    let seen = world.prompt + step;
                    let cut = phases.contains(&Phase::Prefill) && step == 0 || phases.contains(&Phase::Decode) && step > 0;
                    let held: usize = lengths.iter().sum();
                    prop_assert!(!cut || held <= budget * world.layers, "{:?}: {}", lengths, &what);
                    let all: usize = (0..world.layers).map(|layer| world.most(layer, seen)).sum();
                    for (layer, &length) in lengths.iter().enumerate() {
                        let most = world.most(layer, seen);
                        prop_assert!(length <= most, "{:?}: {}", lengths, &what);
                        if budget * world.layers >= all && phases.len() == 2 && online.is_some() && step == 0 {
                            prop_assert_eq!(length, most, "{:?}: {}", lengths, &what);
                        }
                        if online.is_none() && phases.len() == 2 {
                            let budget = resolved.layers[layer].budget(Phase::Decode).unwrap();
                            prop_assert_eq!(length, most.min(budget), "{:?}: {}", lengths, &what);
                        }
                    }
                }
            }
        }
    }

    /// A budget that covers what windows hold gives FullKV's outputs.
    #[test]
    fn a_budget_that_covers_the_windows_changes_nothing(
        world in worlds(),
        window in 1usize..60,
        phase in 0usize..3,
    ) {
        let world = World { window: Some(window), ..world };
        let full = world.run(Plan::full(world.layers)).unwrap();
        for policy in each_policy() {
            let each = (world.prompt + world.steps).max(least_budget(&*policy).unwrap());
            let budget = Budget::Tokens(each);
            let Some(plan) = plan(&world, &policy, &None, budget, phases(phase)) else { continue };
            let what = format!("{world:?}\n{}", written(&plan));
            let run = world.run(plan).unwrap();
            prop_assert_eq!(&run.lengths, &full.lengths, "{}", &what);
            let apart = max_difference(&run.outputs, &full.outputs);
            prop_assert!(apart <= 1e-6, "{}: {}", apart, &what);
        }
    }
}
