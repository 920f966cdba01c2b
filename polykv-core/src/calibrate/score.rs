use super::route::{joint, least, regrets, spread};
use super::{Data, ExampleLosses, Losses};
use std::collections::BTreeMap;

/// The number of sources that a search tries: the best on each kind of data, then those with the best scores. A dozen would
/// use up the moves on the first halves.
const TRIED: usize = 6;

/// The scale of the score, which is the [`joint`] regret: for each kind of data the loss of the best single policy and the
/// distance from it to the median one, or to FullKV if there is only one.
pub(super) struct Scale(pub(super) Vec<(Data, f64, f64)>);

pub(super) fn means(losses: &ExampleLosses) -> Losses {
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    losses
        .iter()
        .map(|(&data, examples)| (data, mean(examples)))
        .collect()
}

impl Scale {
    pub(super) fn of(singles: &[Losses]) -> Self {
        let kinds: Vec<Data> = singles
            .first()
            .map_or(Vec::new(), |one| one.keys().copied().collect());
        let of = |data: Data| {
            let losses: Vec<f64> = singles.iter().map(|one| one[&data]).collect();
            let distance = match losses.as_slice() {
                [only] => only.abs(),
                all => spread(all),
            };
            // Differences below a thousandth of a nat are taken for none.
            (data, least(&losses), distance.max(1e-3))
        };
        Self(kinds.into_iter().map(of).collect())
    }

    /// The indices of the sources that a search tries, by the losses of each in all layers.
    pub(super) fn promising(&self, losses: &[Losses]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..losses.len()).collect();
        let score = |source: usize| self.score(&losses[source]);
        order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
        let mut chosen: Vec<usize> = Vec::new();
        for (data, _, _) in &self.0 {
            let loss = |source: usize| losses[source][data];
            let best = order
                .iter()
                .copied()
                .min_by(|&a, &b| loss(a).total_cmp(&loss(b)));
            chosen.extend(best.filter(|best| !chosen.contains(best)));
        }
        for source in order {
            if chosen.len() < TRIED && !chosen.contains(&source) {
                chosen.push(source);
            }
        }
        chosen
    }

    /// The factors that lower the score, the one that lowers it most first, if their `effects` on the losses `start` add up.
    pub(super) fn gaining(&self, start: &Losses, effects: &BTreeMap<Data, Vec<f64>>) -> Vec<usize> {
        let factors = effects.values().next().map_or(0, Vec::len);
        let with = |losses: &Losses, factor: usize| -> Losses {
            let kinds = losses.iter();
            kinds
                .map(|(&data, loss)| (data, loss + effects[&data][factor]))
                .collect()
        };
        let mut losses = start.clone();
        let mut order: Vec<usize> = Vec::new();
        loop {
            let left = (0..factors).filter(|factor| !order.contains(factor));
            let next = left
                .map(|factor| (factor, self.score(&with(&losses, factor))))
                .min_by(|a, b| a.1.total_cmp(&b.1));
            match next {
                Some((factor, score)) if score < self.score(&losses) => {
                    losses = with(&losses, factor);
                    order.push(factor);
                }
                _ => return order,
            }
        }
    }

    pub(super) fn score(&self, losses: &Losses) -> f64 {
        let of =
            |(data, best, scale): &(Data, f64, f64)| regrets(&[losses[data]], *best, *scale)[0];
        joint(&self.0.iter().map(of).collect::<Vec<f64>>())
    }

    /// The standard error of the difference between two routes' scores on the same examples, by the jackknife with each kind
    /// of data as a sample. A kind with a single example adds nothing to it.
    pub(super) fn error(&self, a: &ExampleLosses, b: &ExampleLosses) -> f64 {
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
            let squares = differences
                .iter()
                .map(|difference| (difference - mean).powi(2));
            variance += squares.sum::<f64>() * (count - 1.0) / count;
        }
        variance.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_policy_is_measured_by_what_it_loses() {
        let losses =
            |text, evidence| Losses::from([(Data::Text, text), (Data::Evidence, evidence)]);
        let one = Scale::of(&[losses(0.1, 2.0)]);
        // Half of either loss is as much.
        let gains = [losses(0.05, 2.0), losses(0.1, 1.0)].map(|losses| one.score(&losses));
        assert!((gains[0] - gains[1]).abs() < 1e-12 && gains[0] < 0.0);
        let three = [losses(0.1, 2.0), losses(0.3, 2.5), losses(0.4, 9.0)];
        assert_eq!(Scale::of(&three).0[0], (Data::Text, 0.1, 0.3 - 0.1));
    }

    #[test]
    fn what_gains_most_comes_first_until_nothing_does() {
        let scale = Scale(vec![(Data::Text, 0.0, 1.0), (Data::Evidence, 0.0, 1.0)]);
        let start = Losses::from([(Data::Text, 1.0), (Data::Evidence, 1.0)]);
        let effects = BTreeMap::from([
            (Data::Text, vec![-0.1, -0.6, 0.2, -0.4]),
            (Data::Evidence, vec![-0.1, 0.0, 0.2, -0.4]),
        ]);
        // The third helps with nothing.
        assert_eq!(scale.gaining(&start, &effects), [3, 1, 0]);
    }
}
