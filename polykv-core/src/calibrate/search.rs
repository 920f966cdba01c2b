use super::score::{Scale, means};
use super::{Data, Design};
use crate::Result;
use crate::plan::{LayerRange, LayerSet};
use crate::random::splitmix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A loss per kind of data: the mean negative log-likelihood (NLL, in nats) of the scored tokens under a plan, minus that under
/// FullKV.
pub type Losses = BTreeMap<Data, f64>;

/// The loss of every example per kind of data: its NLL in nats under a plan minus that under FullKV. The examples are in the
/// same order in every value.
pub type ExampleLosses = BTreeMap<Data, Vec<f64>>;

/// The layers that a screening recommends are divided into this many parts: the first part, the first two and so on are
/// tried.
const PARTS: usize = 6;

/// A search over the route of one phase by the losses of whole plans, which is an addition of this project: the effects of
/// layers alone do not add up when many layers evict.
///
/// The search starts at the best of the single policies and the first given route, or at another given route if that is better
/// by more than the standard error. As long as moves are left, it tries to replace the candidates of some layers by those of
/// another promising route or single policy, in two ways:
///
/// 1. *Screening.* Each layer has either its candidate or that of the other route, in the runs of a [`Design`]. The layers
///    that the screening recommends are then replaced together, in growing numbers that start with the largest effect.
/// 2. *Groups.* Consecutive layers are replaced together: first halves of all layers, then quarters and so on.
///
/// A move is taken if it lowers the score by more than the standard error of that difference over the examples, since smaller
/// gains do not carry over to other examples.
///
/// The score is the [`joint`](super::joint) regret over the kinds of data. The regret on one kind is the loss minus that of
/// the best single policy, in units of the distance from the best to the median single policy. With one kind of data, a plan
/// with a score below 0 beats every single policy; with two, its gain on one kind outweighs its loss on the other.
#[derive(Clone, Debug)]
pub struct RouteSearch {
    /// The number of candidates.
    pub candidates: usize,
    /// The routes to start from, a candidate per layer each; at least one. Of equally good routes the first is preferred.
    pub routes: Vec<Vec<usize>>,
    /// The most plans to evaluate beside the routes and the single policies.
    pub moves: usize,
    /// The seed of the order in which groups are tried, and of the screening.
    pub seed: u64,
}

/// Where a move takes the candidates of its layers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The candidate with this index, in all layers.
    Candidate(usize),
    /// The route with this index in [`FoundRoute::routes`].
    Route(usize),
}

/// A route that the search evaluated, as a change of the route before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Move {
    /// The layers whose candidates were replaced.
    pub layers: LayerSet,
    /// Where their new candidates come from.
    #[serde(flatten)]
    pub source: Source,
    /// The losses of the plan with this route.
    pub losses: Losses,
    /// The score of these losses; lower is better.
    pub score: f64,
    /// Whether the search went on from this route.
    pub taken: bool,
}

/// The result of a [`RouteSearch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FoundRoute {
    /// The route: the index of a candidate for each layer.
    pub picks: Vec<usize>,
    /// The losses of the plan with this route.
    pub losses: Losses,
    /// The score of these losses; lower is better.
    pub score: f64,
    /// Every evaluated route: the single policies, the given routes, then the moves in order.
    pub moves: Vec<Move>,
    /// The routes that the search was given.
    pub routes: Vec<Vec<usize>>,
}

/// A function that evaluates routes, the index of a candidate for each layer. It returns the losses of the plan with each
/// route, in the order of the routes.
pub type Evaluate<'a> = dyn FnMut(&[Vec<usize>]) -> Result<Vec<ExampleLosses>> + 'a;

/// Layers, and the route whose candidates they may have instead of their own.
type Try<'a> = (Vec<usize>, &'a (Source, Vec<usize>));

/// The state of a search.
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
    /// Records an evaluated route and goes on from it if its score is lower. For a `step` of the search it must be lower by
    /// more than the standard error.
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

    /// The losses of `base` with the replacement of each of `tries`. Routes that were not evaluated before count as moves;
    /// their losses are `None` once no moves are left.
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

    /// Screens which layers gain by the candidates of a source. Does nothing if too few moves are left.
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

impl RouteSearch {
    /// Runs the search with `evaluate` for the losses of routes.
    ///
    /// # Errors
    /// Those of `evaluate`.
    pub fn run(&self, evaluate: &mut Evaluate<'_>) -> Result<FoundRoute> {
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
                return Ok(FoundRoute {
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

/// The halves of all layers, then the quarters and so on down to single layers, each size in a seeded order.
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
