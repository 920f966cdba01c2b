use super::score::{Scale, means};
use super::{Data, Design, ExampleLosses, Losses};
use crate::Result;
use crate::apportion::within;
use crate::random::splitmix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The part by which a screening raises and lowers a layer's budget.
const STEP: f64 = 1.0 / 3.0;

/// The number of budgets that are tried between the given ones and those that the screening recommends.
const STEPS: usize = 3;

/// The most rounds of a search.
const ROUNDS: usize = 4;

/// A search over the budgets of one phase by the losses of whole plans, which is an addition of this project. In the runs of a
/// [`Design`] each layer has a third more or a third fewer entries; the effect on the score says how much entries are worth
/// in that layer.
///
/// If the loss of each layer falls as `a / budget`, the sum of all losses is least for budgets in proportion to `√a`. The
/// search tries budgets a third, two thirds and all of the way there. The best of them is taken if it lowers the score by more
/// than the standard error of that difference over the examples, and the next round begins there, up to four rounds in all;
/// otherwise the search ends.
#[derive(Clone, Debug)]
pub struct BudgetSearch<'a> {
    /// The losses of the single policies, which scores are relative to.
    pub singles: Vec<Losses>,
    /// The budgets to start from, in entries per KV head for each layer. Their sum does not change.
    pub budgets: &'a [usize],
    /// The least budget that works with every policy of the route, and the most entries that each layer holds of the prompt, which its
    /// budget does not exceed.
    pub limits: (usize, Vec<usize>),
    /// The seed of the screening.
    pub seed: u64,
}

/// The result of a [`BudgetSearch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FoundBudgets {
    /// Entries per KV head for each layer.
    pub budgets: Vec<usize>,
    /// The losses of the plan with these budgets.
    pub losses: Losses,
    /// The score of these losses; lower is better.
    pub score: f64,
    /// The given budgets, then those that were tried, in all rounds.
    pub tried: Vec<TriedBudgets>,
    /// For each layer, the loss with a third more entries there minus that with a third fewer, per kind of data, around the
    /// given budgets.
    pub effects: BTreeMap<Data, Vec<f64>>,
}

/// Plans to evaluate that differ in the budgets of one phase.
#[derive(Clone, Copy, Debug)]
pub enum Trials<'a> {
    /// For each plan, whether each layer has the higher budget or the lower one.
    Levels {
        /// The lower and the higher budget of each layer, in entries per KV head.
        levels: [&'a [usize]; 2],
        /// One per plan.
        rows: &'a [Vec<bool>],
    },
    /// For each plan, entries per KV head for each layer.
    Budgets(&'a [Vec<usize>]),
}

/// Budgets that a [`BudgetSearch`] evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TriedBudgets {
    /// Entries per KV head for each layer.
    pub budgets: Vec<usize>,
    /// The losses of the plan with these budgets.
    pub losses: Losses,
    /// The score of these losses; lower is better.
    pub score: f64,
}

impl BudgetSearch<'_> {
    /// The lower and the higher budget of each layer in the screening around some budgets, in entries per KV head.
    fn levels(&self, budgets: &[usize]) -> [Vec<usize>; 2] {
        let (least, most) = &self.limits;
        let level = |factor: f64| {
            let of = |(&budget, &most): (&usize, &usize)| {
                let entries = (budget as f64 * factor).round() as usize;
                entries.max(*least).min(most)
            };
            budgets.iter().zip(most).map(of).collect()
        };
        [level(1.0 - STEP), level(1.0 + STEP)]
    }

    /// Runs the search, where `evaluate` returns the losses of each plan in their order.
    ///
    /// # Errors
    /// Those of `evaluate`.
    pub fn run(
        &self,
        evaluate: &mut dyn FnMut(Trials<'_>) -> Result<Vec<ExampleLosses>>,
    ) -> Result<FoundBudgets> {
        let scale = Scale::of(&self.singles);
        let score = |losses: &ExampleLosses| scale.score(&means(losses));
        let given = evaluate(Trials::Budgets(&[self.budgets.to_vec()]))?;
        let mut all: Vec<(Vec<usize>, ExampleLosses)> = Vec::new();
        all.extend(
            given
                .into_iter()
                .map(|losses| (self.budgets.to_vec(), losses)),
        );
        let (mut chosen, mut first_effects, mut seed) = (0, None, self.seed);
        for _ in 0..ROUNDS {
            let (base, losses) = all[chosen].clone();
            let design = Design::new(base.len(), seed);
            seed = splitmix(seed);
            let [low, high] = self.levels(&base);
            let runs = evaluate(Trials::Levels {
                levels: [&low, &high],
                rows: design.rows(),
            })?;
            let effects = design.effects(&runs.iter().map(means).collect::<Vec<_>>());
            let worth = self.worth(&scale, &means(&losses), &effects);
            first_effects.get_or_insert(effects);
            let mut next: Vec<Vec<usize>> = Vec::new();
            for step in 1..=STEPS {
                let budgets = self.towards(&base, &worth, step as f64 / STEPS as f64);
                let known = all.iter().any(|(other, _)| *other == budgets);
                if !known && !next.contains(&budgets) {
                    next.push(budgets);
                }
            }
            let found = evaluate(Trials::Budgets(&next))?;
            let first = all.len();
            all.extend(next.into_iter().zip(found));
            let best =
                (first..all.len()).min_by(|&a, &b| score(&all[a].1).total_cmp(&score(&all[b].1)));
            let gains = |&plan: &usize| {
                score(&losses) - score(&all[plan].1) > scale.error(&losses, &all[plan].1)
            };
            match best.filter(gains) {
                Some(best) => chosen = best,
                None => break,
            }
        }
        let tried = |(budgets, losses): &(Vec<usize>, ExampleLosses)| TriedBudgets {
            budgets: budgets.clone(),
            losses: means(losses),
            score: score(losses),
        };
        let tried: Vec<TriedBudgets> = all.iter().map(tried).collect();
        Ok(FoundBudgets {
            budgets: tried[chosen].budgets.clone(),
            losses: tried[chosen].losses.clone(),
            score: tried[chosen].score,
            tried,
            effects: first_effects.unwrap_or_default(),
        })
    }

    /// How much more entries in each layer lower the score, at least 0.
    fn worth(&self, scale: &Scale, start: &Losses, effects: &BTreeMap<Data, Vec<f64>>) -> Vec<f64> {
        let of = |layer: usize| {
            let with = start
                .iter()
                .map(|(&data, loss)| (data, loss + effects[&data][layer]));
            (scale.score(start) - scale.score(&with.collect())).max(0.0)
        };
        (0..self.budgets.len()).map(of).collect()
    }

    /// Budgets a `part` of the way from `base` to those in proportion to √worth. No layer gets less than a quarter of what it
    /// has.
    fn towards(&self, base: &[usize], worth: &[f64], part: f64) -> Vec<usize> {
        let (least, most) = &self.limits;
        let total: usize = base.iter().sum();
        let roots: f64 = worth.iter().map(|worth| worth.sqrt()).sum();
        if roots <= 0.0 {
            return base.to_vec();
        }
        let weight = |(&worth, &budget): (&f64, &usize)| {
            (1.0 - part) * budget as f64 + part * total as f64 * worth.sqrt() / roots
        };
        let weights: Vec<f64> = worth.iter().zip(base).map(weight).collect();
        let floor = |(&budget, &most): (&usize, &usize)| most.min((*least).max(budget / 4));
        let floors: Vec<usize> = base.iter().zip(most).map(floor).collect();
        // What raising layers to their floors costs is taken from the others in proportion.
        let above = weights.iter().zip(&floors);
        let above: Vec<f64> = above
            .map(|(weight, &floor)| (weight - floor as f64).max(0.0))
            .collect();
        within(total, &above, &floors, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYERS: usize = 6;

    /// Two layers matter to text and one to evidence, like `a / budget`; the others do not.
    fn losses(budgets: &[usize]) -> ExampleLosses {
        let of = |layer: usize, a: f64| a / budgets[layer] as f64;
        let text = of(0, 100.0) + of(3, 400.0);
        let evidence = of(5, 900.0);
        ExampleLosses::from([
            (Data::Text, vec![text; 3]),
            (Data::Evidence, vec![evidence; 3]),
        ])
    }

    fn search(budgets: &[usize]) -> BudgetSearch<'_> {
        let one = |text, evidence| Losses::from([(Data::Text, text), (Data::Evidence, evidence)]);
        BudgetSearch {
            singles: vec![one(4.0, 8.0), one(5.0, 9.0), one(6.0, 10.0)],
            budgets,
            limits: (4, vec![1000; budgets.len()]),
            seed: 3,
        }
    }

    #[test]
    fn entries_go_where_they_help() {
        let budgets = [100; LAYERS];
        let search = search(&budgets);
        let mut rounds = Vec::new();
        let mut evaluate = |trials: Trials<'_>| {
            Ok(match trials {
                Trials::Levels { levels, rows } => {
                    assert_eq!(rows.len(), Design::runs(LAYERS));
                    rounds.push(levels.map(|level| level[0]));
                    let level = |row: &Vec<bool>| {
                        let layers = row.iter().enumerate();
                        let budgets = layers.map(|(layer, &high)| levels[usize::from(high)][layer]);
                        losses(&budgets.collect::<Vec<_>>())
                    };
                    rows.iter().map(level).collect()
                }
                Trials::Budgets(all) => all.iter().map(|budgets| losses(budgets)).collect(),
            })
        };
        let found = search.run(&mut evaluate).unwrap();
        // The second round begins where the first one ended.
        let first = found.tried[STEPS].budgets[0] as f64;
        let second = [1.0 - STEP, 1.0 + STEP].map(|factor| (first * factor).round() as usize);
        assert_eq!(rounds[..2], [[67, 133], second]);
        assert!(rounds.len() <= ROUNDS);
        assert_eq!(found.budgets.iter().sum::<usize>(), 600);
        // Of a third more and a third fewer, whatever the others have.
        let effect = 400.0 / 133.0 - 400.0 / 67.0;
        assert!((found.effects[&Data::Text][3] - effect).abs() < 1e-9);
        assert!(found.effects[&Data::Text][1].abs() < 1e-9);
        // The idle layers end at their floor; four times the loss is worth twice the entries.
        let last = &found.tried[STEPS].budgets;
        assert_eq!([last[1], last[2], last[4]], [25; 3]);
        let ratio = (last[3] - 25) as f64 / (last[0] - 25) as f64;
        assert!((1.8..2.6).contains(&ratio), "{last:?}");
        let least = found.tried.iter().map(|tried| tried.score);
        assert_eq!(found.score, least.fold(f64::INFINITY, f64::min));
        assert!(found.score < found.tried[STEPS].score);
        // There is no better place for the last idle entries than the three layers that matter.
        let idle: usize = [1, 2, 4].map(|layer| found.budgets[layer]).iter().sum();
        assert!(idle <= 30, "{:?}", found.budgets);
    }

    proptest! {
        #[test]
        fn every_step_keeps_the_sum_and_the_limits(
            layers in prop::collection::vec((8usize..400, 0.0f64..1.0), 2..40),
            part in 0.0f64..1.0,
        ) {
            let budgets: Vec<usize> = layers.iter().map(|layer| layer.0).collect();
            let worth: Vec<f64> = layers.iter().map(|layer| layer.1).collect();
            let search = BudgetSearch { limits: (8, vec![500; budgets.len()]), ..search(&budgets) };
            let found = search.towards(&budgets, &worth, part);
            prop_assert_eq!(found.iter().sum::<usize>(), budgets.iter().sum::<usize>());
            for (found, budget) in found.iter().zip(&budgets) {
                prop_assert!((8.max(budget / 4)..=500).contains(found), "{} of {}", found, budget);
            }
        }
    }

    #[test]
    fn what_helps_nobody_is_left() {
        let budgets = [10, 20, 30];
        let mut same = |trials: Trials<'_>| {
            let count = match trials {
                Trials::Levels { rows, .. } => rows.len(),
                Trials::Budgets(all) => all.len(),
            };
            let one = ExampleLosses::from([(Data::Text, vec![1.0; 3])]);
            Ok(vec![one; count])
        };
        let one = |text| Losses::from([(Data::Text, text)]);
        let search = BudgetSearch {
            singles: vec![one(1.0), one(2.0)],
            budgets: &budgets,
            limits: (4, vec![25; 3]),
            seed: 1,
        };
        assert_eq!(search.levels(&budgets), [vec![7, 13, 20], vec![13, 25, 25]]);
        let found = search.run(&mut same).unwrap();
        assert_eq!((&found.budgets[..], found.tried.len()), (&budgets[..], 1));
    }
}
