use super::score::{Scale, means};
use super::{Data, Design};
use crate::Result;
use crate::plan::{LayerRange, LayerSet};
use crate::random::splitmix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Mean NLL beyond FullKV's, per kind of data.
pub type Losses = BTreeMap<Data, f64>;

/// NLL beyond FullKV's of every example, per kind of data; always in the same order.
pub type ExampleLosses = BTreeMap<Data, Vec<f64>>;

/// Into how many parts the layers that a screening recommends are divided: the first part, the first two and so on are tried.
const PARTS: usize = 6;

/// A search over the route of one phase with the whole plan in effect (our addition): what a layer does alone does not tell
/// what many do together. It begins at the first of the given routes, or at the best single policy or another route where
/// that helps, and takes from the most promising of these what helps, in two ways as long as moves are left:
///
/// 1. *Screening.* The layers take either what they have or what the other route has there, in the runs of a [`Design`]. Those
///    that should gain by it are put there together, the surest first in growing numbers.
/// 2. *Groups.* Consecutive layers, first halves, then quarters and so on, take it together.
///
/// A move helps if it lowers the score by more than the standard error of that difference over the examples: smaller gains do
/// not carry over to others.
///
/// The score is the [`joint`](super::joint) regret: each kind of data's loss beyond that of the best single policy, in units
/// of the distance from there to the median single policy. With one kind of data, a plan below 0 beats every single policy;
/// with two, its gain on one outweighs what it may lose on the other.
#[derive(Clone, Debug)]
pub struct Search {
    pub candidates: usize,
    /// What single layers make of the measurements, at least one; of equally good ones the first is preferred.
    pub routes: Vec<Vec<usize>>,
    /// How many moves are evaluated, beside the routes and the single policies.
    pub moves: usize,
    /// Of the order in which groups are tried, and of the screening.
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
    pub layers: LayerSet,
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

/// Gives the losses of some routes, a candidate per layer each, in the order of the routes.
pub type Evaluate<'a> = dyn FnMut(&[Vec<usize>]) -> Result<Vec<ExampleLosses>> + 'a;

/// Layers, and what they may take instead of what they have.
type Try<'a> = (Vec<usize>, &'a (Source, Vec<usize>));

/// Where the search stands.
struct Run<'a> {
    evaluate: &'a mut Evaluate<'a>,
    known: BTreeMap<Vec<usize>, ExampleLosses>,
    scale: Scale,
    /// Moves that may be evaluated.
    left: usize,
    picks: Vec<usize>,
    losses: ExampleLosses,
    score: f64,
    moves: Vec<Move>,
}

impl Run<'_> {
    /// Notes a route, and goes there if it is better; as a `step` of the search, only if it is so beyond the noise.
    fn consider(
        &mut self,
        (layers, source): (LayerSet, Source),
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

    /// The losses of `base` with some layers as in some source, for each of `tries`. Those that are not known yet are moves;
    /// none when no moves are left.
    fn try_all(&mut self, base: &[usize], tries: &[Try<'_>]) -> Result<Vec<Option<Losses>>> {
        let put = |(layers, (_, from)): &Try<'_>| {
            let mut picks = base.to_vec();
            for &layer in layers {
                picks[layer] = from[layer];
            }
            picks
        };
        let all: Vec<Vec<usize>> = tries.iter().map(put).collect();
        let mut new: Vec<Vec<usize>> = Vec::new();
        let mut places = Vec::new();
        for (picks, (layers, (source, _))) in all.iter().zip(tries) {
            if new.len() < self.left && !self.known.contains_key(picks) && !new.contains(picks) {
                new.push(picks.clone());
                places.push((LayerSet::of(layers), *source));
            }
        }
        self.left -= new.len();
        let losses = (self.evaluate)(&new)?;
        for ((picks, place), losses) in new.into_iter().zip(places).zip(losses) {
            self.known.insert(picks.clone(), losses.clone());
            self.consider(place, &picks, losses, true);
        }
        let losses = all.iter().map(|picks| self.known.get(picks).map(means));
        Ok(losses.collect())
    }

    /// Which layers gain by what a source has there; skipped if the moves left do not suffice.
    fn screen(&mut self, source: &(Source, Vec<usize>), seed: u64) -> Result<()> {
        let base = self.picks.clone();
        let differ: Vec<usize> = (0..base.len())
            .filter(|&layer| base[layer] != source.1[layer])
            .collect();
        if differ.is_empty() || self.left < Design::runs(differ.len()) + PARTS {
            return Ok(());
        }
        let design = Design::new(differ.len(), seed);
        let start = means(&self.losses);
        let high = |row: &Vec<bool>| {
            let high = differ.iter().zip(row).filter(|(_, high)| **high);
            (high.map(|(&layer, _)| layer).collect(), source)
        };
        let tries: Vec<Try<'_>> = design.rows().iter().map(high).collect();
        let runs = self.try_all(&base, &tries)?;
        let runs: Vec<Losses> = runs.into_iter().flatten().collect();
        let order = self.scale.gaining(&start, &design.effects(&runs));
        let surest = |part: usize| {
            let chosen = &order[..(order.len() * part).div_ceil(PARTS)];
            let mut layers: Vec<usize> = chosen.iter().map(|&factor| differ[factor]).collect();
            layers.sort_unstable();
            (layers, source)
        };
        let tries: Vec<Try<'_>> = (1..=PARTS).rev().map(surest).collect();
        self.try_all(&base, &tries)?;
        Ok(())
    }
}

impl Search {
    /// Runs the search.
    ///
    /// # Errors
    /// Those of `evaluate`.
    pub fn run(&self, evaluate: &mut Evaluate<'_>) -> Result<Found> {
        let layers = self.routes.first().map_or(0, Vec::len);
        let single = |candidate: usize| (Source::Candidate(candidate), vec![candidate; layers]);
        let given = self.routes.iter().enumerate();
        let sources: Vec<(Source, Vec<usize>)> = (0..self.candidates)
            .map(single)
            .chain(given.map(|(route, picks)| (Source::Route(route), picks.clone())))
            .collect();
        let mut different: Vec<Vec<usize>> = Vec::new();
        for (_, picks) in &sources {
            if !different.contains(picks) {
                different.push(picks.clone());
            }
        }
        let losses = evaluate(&different)?;
        let known: BTreeMap<Vec<usize>, ExampleLosses> =
            different.into_iter().zip(losses).collect();
        let losses: Vec<Losses> = sources
            .iter()
            .map(|(_, picks)| means(&known[picks]))
            .collect();
        let scale = Scale::of(&losses[..self.candidates]);
        let tried = scale.promising(&losses);
        let mut run = Run {
            evaluate,
            known,
            scale,
            left: self.moves,
            picks: Vec::new(),
            losses: ExampleLosses::new(),
            score: f64::INFINITY,
            moves: Vec::new(),
        };
        let all = LayerSet(vec![LayerRange::all(layers)]);
        for (index, (source, picks)) in sources.iter().enumerate() {
            let losses = run.known[picks].clone();
            let put = (all.clone(), *source);
            run.consider(put, picks, losses, index > self.candidates);
        }
        let mut state = splitmix(self.seed);
        loop {
            let before = run.score;
            for &source in &tried {
                state = splitmix(state);
                run.screen(&sources[source], state)?;
            }
            for group in groups(layers, &mut state) {
                let base = run.picks.clone();
                let group: Vec<usize> = (group.first..=group.last).collect();
                let tries = tried
                    .iter()
                    .map(|&source| (group.clone(), &sources[source]));
                run.try_all(&base, &tries.collect::<Vec<_>>())?;
            }
            if run.left == 0 || run.score >= before {
                return Ok(Found {
                    losses: means(&run.losses),
                    picks: run.picks,
                    score: run.score,
                    moves: run.moves,
                    routes: self.routes.clone(),
                });
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
