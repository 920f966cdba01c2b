use super::Data;
use super::route::{joint, least, regrets, spread};
use crate::Result;
use crate::plan::LayerRange;
use crate::policy::splitmix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Mean NLL beyond FullKV's, per kind of data.
pub type Losses = BTreeMap<Data, f64>;

/// NLL beyond FullKV's of every example, per kind of data; always in the same order.
pub type ExampleLosses = BTreeMap<Data, Vec<f64>>;

/// Candidates that groups try: the best single policy on each kind of data, then those with the best scores. All of a dozen
/// would spend the moves on the first halves.
const TRIED: usize = 6;

/// A coordinate search over the route of one phase with the whole plan in effect (our addition): what a layer does alone
/// does not tell what many do together. Groups of consecutive layers, first halves, then quarters and so on, try the
/// most promising candidates, and the best one that helps stays. A move helps if it lowers the score by more than the
/// standard error of that difference over the examples: smaller gains do not carry over to others.
///
/// The score is the [`joint`] regret: each kind of data's loss beyond that of the best single policy, in units of the
/// distance from there to the median single policy. With one kind of data, a plan below 0 beats every single policy; with
/// two, its gain on one outweighs what it may lose on the other.
#[derive(Clone, Debug)]
pub struct Search {
    pub candidates: usize,
    /// The route to start from, unless a single policy is better.
    pub start: Vec<usize>,
    /// How many moves are evaluated, beside the start and the single policies.
    pub moves: usize,
    /// Of the order in which groups are tried.
    pub seed: u64,
}

/// An evaluated route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Where the candidate was put; the start has none.
    pub layers: Option<LayerRange>,
    pub candidate: Option<usize>,
    pub losses: Losses,
    pub score: f64,
    /// Whether the search went on from here.
    pub taken: bool,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    pub picks: Vec<usize>,
    pub losses: Losses,
    pub score: f64,
    /// The single policies, the start, then every move in order.
    pub moves: Vec<Move>,
}

/// The scale of the score: per kind of data the best single policy and the distance to the median one.
struct Scale(Vec<(Data, f64, f64)>);

fn means(losses: &ExampleLosses) -> Losses {
    let mean = |own: &Vec<f64>| own.iter().sum::<f64>() / own.len().max(1) as f64;
    losses
        .iter()
        .map(|(&data, own)| (data, mean(own)))
        .collect()
}

impl Scale {
    fn of(singles: &[Losses]) -> Self {
        let kinds: Vec<Data> = singles
            .first()
            .map_or(Vec::new(), |one| one.keys().copied().collect());
        let of = |data: Data| {
            let losses: Vec<f64> = singles.iter().map(|one| one[&data]).collect();
            // Below a thousandth of a nat all policies are equal.
            (data, least(&losses), spread(&losses).max(1e-3))
        };
        Self(kinds.into_iter().map(of).collect())
    }

    /// The candidates that groups try, from the losses of each alone.
    fn promising(&self, singles: &[Losses]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..singles.len()).collect();
        let score = |own: usize| self.score(&singles[own]);
        order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
        let mut chosen: Vec<usize> = Vec::new();
        for (data, _, _) in &self.0 {
            let loss = |own: usize| singles[own][data];
            let best = order
                .iter()
                .copied()
                .min_by(|&a, &b| loss(a).total_cmp(&loss(b)));
            chosen.extend(best.filter(|best| !chosen.contains(best)));
        }
        for own in order {
            if chosen.len() < TRIED && !chosen.contains(&own) {
                chosen.push(own);
            }
        }
        chosen
    }

    fn score(&self, losses: &Losses) -> f64 {
        let of =
            |(data, best, scale): &(Data, f64, f64)| regrets(&[losses[data]], *best, *scale)[0];
        joint(&self.0.iter().map(of).collect::<Vec<f64>>())
    }

    /// The standard error of the difference between two routes' scores on the same examples, by the jackknife; each kind
    /// of data is a sample of its own. A single example says nothing about it and adds nothing.
    fn error(&self, a: &ExampleLosses, b: &ExampleLosses) -> f64 {
        let (whole_a, whole_b) = (means(a), means(b));
        let mut variance = 0.0;
        for (data, _, _) in &self.0 {
            let count = a[data].len() as f64;
            if count < 2.0 {
                continue;
            }
            let without = |index: usize| {
                let score = |whole: &Losses, all: &ExampleLosses| {
                    let mut losses = whole.clone();
                    let left = (whole[data] * count - all[data][index]) / (count - 1.0);
                    losses.insert(*data, left);
                    self.score(&losses)
                };
                score(&whole_a, a) - score(&whole_b, b)
            };
            let differences: Vec<f64> = (0..a[data].len()).map(without).collect();
            let mean = differences.iter().sum::<f64>() / count;
            let squares = differences.iter().map(|own| (own - mean).powi(2));
            variance += squares.sum::<f64>() * (count - 1.0) / count;
        }
        variance.sqrt()
    }
}

/// Where the search stands.
struct Best<'a> {
    scale: &'a Scale,
    picks: Vec<usize>,
    losses: ExampleLosses,
    score: f64,
    moves: Vec<Move>,
}

impl Best<'_> {
    /// Notes a route, and goes there if it is better; as a `step` of the search, only if it is so beyond the noise.
    fn consider(
        &mut self,
        put: Option<(LayerRange, usize)>,
        picks: &[usize],
        losses: ExampleLosses,
        step: bool,
    ) {
        let means = means(&losses);
        let score = self.scale.score(&means);
        let noise = match step {
            true => self.scale.error(&self.losses, &losses),
            false => 0.0,
        };
        let taken = score < self.score - noise;
        if taken {
            (self.picks, self.losses, self.score) = (picks.to_vec(), losses, score);
        }
        self.moves.push(Move {
            layers: put.map(|own| own.0),
            candidate: put.map(|own| own.1),
            losses: means,
            score,
            taken,
        });
    }

    fn found(self) -> Found {
        Found {
            losses: means(&self.losses),
            picks: self.picks,
            score: self.score,
            moves: self.moves,
        }
    }
}

impl Search {
    /// Runs the search; `evaluate` gives the losses of a route.
    ///
    /// # Errors
    /// Those of `evaluate`.
    pub fn run(
        &self,
        evaluate: &mut dyn FnMut(&[usize]) -> Result<ExampleLosses>,
    ) -> Result<Found> {
        let layers = self.start.len();
        let mut known: BTreeMap<Vec<usize>, ExampleLosses> = BTreeMap::new();
        for candidate in 0..self.candidates {
            let picks = vec![candidate; layers];
            let losses = evaluate(&picks)?;
            known.insert(picks, losses);
        }
        let single = |candidate: usize| known[&vec![candidate; layers]].clone();
        let singles: Vec<Losses> = (0..self.candidates)
            .map(|own| means(&single(own)))
            .collect();
        let scale = Scale::of(&singles);
        let tried = scale.promising(&singles);
        let mut best = Best {
            scale: &scale,
            picks: Vec::new(),
            losses: ExampleLosses::new(),
            score: f64::INFINITY,
            moves: Vec::new(),
        };
        for candidate in 0..self.candidates {
            let put = Some((LayerRange::all(layers), candidate));
            best.consider(put, &vec![candidate; layers], single(candidate), false);
        }
        let losses = match known.get(&self.start) {
            Some(losses) => losses.clone(),
            None => evaluate(&self.start)?,
        };
        best.consider(None, &self.start, losses, false);
        let mut left = self.moves;
        let mut state = splitmix(self.seed);
        loop {
            let before = best.score;
            for group in groups(layers, &mut state) {
                let base = best.picks.clone();
                for &candidate in &tried {
                    let mut picks = base.clone();
                    picks[group.first..=group.last].fill(candidate);
                    if known.contains_key(&picks) {
                        continue;
                    }
                    if left == 0 {
                        return Ok(best.found());
                    }
                    left -= 1;
                    let losses = evaluate(&picks)?;
                    known.insert(picks.clone(), losses.clone());
                    best.consider(Some((group, candidate)), &picks, losses, true);
                }
            }
            if best.score >= before {
                return Ok(best.found());
            }
        }
    }
}

/// Halves, quarters, … down to single layers, each size in a seeded order.
fn groups(layers: usize, state: &mut u64) -> Vec<LayerRange> {
    let mut all = Vec::new();
    let mut parts = 1;
    while parts < layers {
        parts = layers.min(2 * parts);
        let edge = |part: usize| part * layers / parts;
        let mut level: Vec<LayerRange> = (0..parts)
            .map(|part| LayerRange {
                first: edge(part),
                last: edge(part + 1) - 1,
            })
            .collect();
        for last in (1..level.len()).rev() {
            *state = splitmix(*state);
            level.swap(last, (*state % (last as u64 + 1)) as usize);
        }
        all.extend(level);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text wants candidate 0 in layers 0-3, evidence candidate 1 in layers 4-7; candidate 2 is bad at both.
    fn losses(picks: &[usize]) -> Losses {
        let wrong = |layers: std::ops::Range<usize>, wanted: usize| {
            picks[layers]
                .iter()
                .map(|&pick| (pick as f64 - wanted as f64).abs())
                .sum::<f64>()
        };
        Losses::from([
            (Data::Text, wrong(0..4, 0)),
            (Data::Evidence, 10.0 * wrong(4..8, 1)),
        ])
    }

    fn search(moves: usize) -> (Found, usize) {
        let mut runs = 0;
        let search = Search {
            candidates: 3,
            start: vec![2, 0, 2, 0, 2, 0, 2, 0],
            moves,
            seed: 7,
        };
        let found = search.run(&mut |picks| {
            runs += 1;
            let twice = |(data, loss): (Data, f64)| (data, vec![loss; 2]);
            Ok(losses(picks).into_iter().map(twice).collect())
        });
        (found.unwrap(), runs)
    }

    #[test]
    fn the_mixture_is_found_and_every_step_recorded() {
        let (found, runs) = search(100);
        assert_eq!(found.picks, [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(
            found.losses,
            Losses::from([(Data::Text, 0.0), (Data::Evidence, 0.0)])
        );
        // Both are as good as the best single policy, each on its own kind.
        assert_eq!(found.score, 0.0);
        assert_eq!(found.moves.len(), runs);
        let taken: Vec<f64> = found
            .moves
            .iter()
            .filter(|one| one.taken)
            .map(|one| one.score)
            .collect();
        assert!(taken.windows(2).all(|pair| pair[1] < pair[0]) && taken.last() == Some(&0.0));
        assert_eq!(search(100).0, found);
    }

    #[test]
    fn the_best_of_each_kind_and_then_of_both_are_tried() {
        let losses = |text: f64, evidence: f64| {
            Losses::from([(Data::Text, text), (Data::Evidence, evidence)])
        };
        // The first is best on text only, the last on evidence only.
        let singles = [
            losses(0.0, 9.0),
            losses(5.0, 5.0),
            losses(1.0, 1.0),
            losses(2.0, 2.0),
            losses(3.0, 3.0),
            losses(4.0, 4.0),
            losses(6.0, 6.0),
            losses(9.0, 0.0),
        ];
        let tried = Scale::of(&singles).promising(&singles);
        assert_eq!(tried, [0, 7, 2, 3, 4, 5]);
    }

    /// Layer 0 gains 1.0 on average by candidate 1; how evenly is in `gains`.
    fn mixed(gains: [f64; 4]) -> Vec<usize> {
        let search = Search {
            candidates: 2,
            start: vec![0, 0],
            moves: 10,
            seed: 1,
        };
        let found = search.run(&mut |picks| {
            let of = |gain: f64| match picks {
                [1, 0] => 10.0 - gain,
                [0, 0] => 10.0,
                _ => 20.0,
            };
            Ok(ExampleLosses::from([(Data::Text, gains.map(of).to_vec())]))
        });
        found.unwrap().picks
    }

    #[test]
    fn a_gain_within_the_noise_is_left() {
        assert_eq!(mixed([1.0, 1.1, 0.9, 1.0]), [1, 0]);
        // The same mean, with a standard error of 3.5.
        assert_eq!(mixed([7.0, -5.0, 7.0, -5.0]), [0, 0]);
    }

    #[test]
    fn the_error_is_that_of_the_paired_mean() {
        let scale = Scale(vec![(Data::Text, 0.0, 2.0)]);
        let of = |losses: [f64; 4]| ExampleLosses::from([(Data::Text, losses.to_vec())]);
        let (a, b) = (of([5.0, 8.0, 1.0, 4.0]), of([4.0, 6.0, 0.0, 2.0]));
        // Differences 1, 2, 1, 2: deviation √(1/3), over √4, in units of 2.
        let wanted = (1.0f64 / 3.0).sqrt() / 2.0 / 2.0;
        assert!((scale.error(&a, &b) - wanted).abs() < 1e-12);
        assert_eq!(scale.error(&a, &a), 0.0);
    }

    #[test]
    fn moves_are_limited() {
        let (found, runs) = search(2);
        assert_eq!((found.moves.len(), runs), (6, 6));
        let (found, runs) = search(0);
        // Candidates 0 and 1 alone are equally good, and better than the start.
        assert_eq!((found.picks, runs), (vec![0; 8], 4));
    }

    #[test]
    fn groups_cover_all_layers_at_each_size() {
        let all = groups(6, &mut 1);
        assert_eq!(all.iter().map(LayerRange::count).sum::<usize>(), 18);
        let sizes: Vec<usize> = all.iter().map(LayerRange::count).collect();
        assert_eq!(sizes[..2], [3, 3]);
        assert_eq!(sizes[6..], [1; 6]);
        assert!(groups(1, &mut 1).is_empty());
    }
}
