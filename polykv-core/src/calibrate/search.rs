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

/// Sources that groups try: the best one on each kind of data, then those with the best scores. All of a dozen would spend
/// the moves on the first halves.
const TRIED: usize = 6;

/// A coordinate search over the route of one phase with the whole plan in effect (our addition): what a layer does alone
/// does not tell what many do together. It begins at the best of the given routes and the single policies. Groups of
/// consecutive layers, first halves, then quarters and so on, try what the most promising of these have there, and the best
/// one that helps stays. A move helps if it lowers the score by more than the standard error of that difference over the
/// examples: smaller gains do not carry over to others.
///
/// The score is the [`joint`] regret: each kind of data's loss beyond that of the best single policy, in units of the
/// distance from there to the median single policy. With one kind of data, a plan below 0 beats every single policy; with
/// two, its gain on one outweighs what it may lose on the other.
#[derive(Clone, Debug)]
pub struct Search {
    pub candidates: usize,
    /// What single layers make of the measurements, at least one; of equally good ones the first is preferred.
    pub routes: Vec<Vec<usize>>,
    /// How many moves are evaluated, beside the routes and the single policies.
    pub moves: usize,
    /// Of the order in which groups are tried.
    pub seed: u64,
}

/// What layers take their candidates from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Candidate(usize),
    Route(usize),
}

/// An evaluated route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Where something else was put.
    pub layers: LayerRange,
    /// What was put there: a candidate, or that part of one of [`Found::routes`].
    #[serde(flatten)]
    pub source: Source,
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
    /// The single policies, the given routes, then every move in order.
    pub moves: Vec<Move>,
    /// The routes that were given.
    pub routes: Vec<Vec<usize>>,
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

    /// The sources that groups try, as indices, from the losses of each in all layers.
    fn promising(&self, losses: &[Losses]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..losses.len()).collect();
        let score = |own: usize| self.score(&losses[own]);
        order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
        let mut chosen: Vec<usize> = Vec::new();
        for (data, _, _) in &self.0 {
            let loss = |own: usize| losses[own][data];
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
        (layers, source): (LayerRange, Source),
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
            layers,
            source,
            losses: means,
            score,
            taken,
        });
    }

    fn found(self, routes: &[Vec<usize>]) -> Found {
        Found {
            losses: means(&self.losses),
            picks: self.picks,
            score: self.score,
            moves: self.moves,
            routes: routes.to_vec(),
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
        let layers = self.routes.first().map_or(0, Vec::len);
        let single = |own: usize| (Source::Candidate(own), vec![own; layers]);
        let given = self.routes.iter().enumerate();
        let sources: Vec<(Source, Vec<usize>)> = (0..self.candidates)
            .map(single)
            .chain(given.map(|(own, picks)| (Source::Route(own), picks.clone())))
            .collect();
        let mut known: BTreeMap<Vec<usize>, ExampleLosses> = BTreeMap::new();
        for (_, picks) in &sources {
            if !known.contains_key(picks) {
                let losses = evaluate(picks)?;
                known.insert(picks.clone(), losses);
            }
        }
        let losses: Vec<Losses> = sources.iter().map(|own| means(&known[&own.1])).collect();
        let scale = Scale::of(&losses[..self.candidates]);
        let tried = scale.promising(&losses);
        let mut best = Best {
            scale: &scale,
            picks: Vec::new(),
            losses: ExampleLosses::new(),
            score: f64::INFINITY,
            moves: Vec::new(),
        };
        for (index, (source, picks)) in sources.iter().enumerate() {
            let put = (LayerRange::all(layers), *source);
            best.consider(put, picks, known[picks].clone(), index > self.candidates);
        }
        let mut left = self.moves;
        let mut state = splitmix(self.seed);
        loop {
            let before = best.score;
            for group in groups(layers, &mut state) {
                let base = best.picks.clone();
                for (source, from) in tried.iter().map(|&own| &sources[own]) {
                    let mut picks = base.clone();
                    let own = group.first..=group.last;
                    picks[own.clone()].copy_from_slice(&from[own]);
                    if known.contains_key(&picks) {
                        continue;
                    }
                    if left == 0 {
                        return Ok(best.found(&self.routes));
                    }
                    left -= 1;
                    let losses = evaluate(&picks)?;
                    known.insert(picks.clone(), losses.clone());
                    best.consider((group, *source), &picks, losses, true);
                }
            }
            if best.score >= before {
                return Ok(best.found(&self.routes));
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
mod tests;
