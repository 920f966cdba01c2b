use super::Data;
use super::route::{joint, least, regrets, spread};
use crate::Result;
use crate::plan::LayerRange;
use crate::policy::splitmix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Mean NLL beyond FullKV's, per kind of data.
pub type Losses = BTreeMap<Data, f64>;

/// A move must lower the score by this much, or it is taken for noise: on a dozen or two examples smaller gains have not
/// carried over to others.
const LEAST_GAIN: f64 = 0.1;

/// Candidates that groups try: the best single policy on each kind of data, then those with the best scores. All of a dozen
/// would spend the moves on the first halves.
const TRIED: usize = 6;

/// A coordinate search over the route of one phase with the whole plan in effect (our addition): what a layer does alone
/// does not tell what many do together. Groups of consecutive layers, first halves, then quarters and so on, try the
/// most promising candidates, and the best one that helps stays.
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
}

impl Search {
    /// Runs the search; `evaluate` gives the losses of a route.
    ///
    /// # Errors
    /// Those of `evaluate`.
    pub fn run(&self, evaluate: &mut dyn FnMut(&[usize]) -> Result<Losses>) -> Result<Found> {
        let layers = self.start.len();
        let mut known: BTreeMap<Vec<usize>, Losses> = BTreeMap::new();
        let mut singles = Vec::new();
        for candidate in 0..self.candidates {
            let picks = vec![candidate; layers];
            let losses = evaluate(&picks)?;
            known.insert(picks, losses.clone());
            singles.push(losses);
        }
        let scale = Scale::of(&singles);
        let tried = scale.promising(&singles);
        let mut found = Found {
            picks: Vec::new(),
            losses: Losses::new(),
            score: f64::INFINITY,
            moves: Vec::new(),
        };
        for (candidate, losses) in singles.into_iter().enumerate() {
            let all = Some(LayerRange::all(layers));
            found.consider(
                all,
                Some(candidate),
                vec![candidate; layers],
                losses,
                &scale,
                0.0,
            );
        }
        let losses = match known.get(&self.start) {
            Some(losses) => losses.clone(),
            None => evaluate(&self.start)?,
        };
        found.consider(None, None, self.start.clone(), losses, &scale, 0.0);
        let mut left = self.moves;
        let mut state = splitmix(self.seed);
        loop {
            let before = found.score;
            for group in groups(layers, &mut state) {
                let base = found.picks.clone();
                for &candidate in &tried {
                    let mut picks = base.clone();
                    picks[group.first..=group.last].fill(candidate);
                    if known.contains_key(&picks) {
                        continue;
                    }
                    if left == 0 {
                        return Ok(found);
                    }
                    left -= 1;
                    let losses = evaluate(&picks)?;
                    known.insert(picks.clone(), losses.clone());
                    found.consider(
                        Some(group),
                        Some(candidate),
                        picks,
                        losses,
                        &scale,
                        LEAST_GAIN,
                    );
                }
            }
            if found.score >= before {
                return Ok(found);
            }
        }
    }
}

impl Found {
    /// Notes a route, and goes there if it is better by `gain`.
    fn consider(
        &mut self,
        layers: Option<LayerRange>,
        candidate: Option<usize>,
        picks: Vec<usize>,
        losses: Losses,
        scale: &Scale,
        gain: f64,
    ) {
        let score = scale.score(&losses);
        let taken = score < self.score - gain;
        if taken {
            (self.picks, self.losses, self.score) = (picks, losses.clone(), score);
        }
        self.moves.push(Move {
            layers,
            candidate,
            losses,
            score,
            taken,
        });
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
            Ok(losses(picks))
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
