use super::{Data, Losses};
use crate::random::splitmix;
use std::collections::BTreeMap;

/// A two-level screening design (Plackett and Burman, Biometrika 33, 1946, in Sylvester's form). Every factor is high in
/// half of the runs and any two are high together in a quarter, so that all runs measure every factor. Each run comes with its
/// opposite, which keeps interactions of two factors out of the effects of single ones (Box and Wilson, 1951).
#[derive(Clone, Debug)]
pub struct Design {
    rows: Vec<Vec<bool>>,
}

impl Design {
    /// A design of `factors` factors. Its runs are twice the least power of two above `factors`; the seed assigns the columns
    /// of the design to the factors.
    #[must_use]
    pub fn new(factors: usize, seed: u64) -> Self {
        let order = Self::runs(factors) / 2;
        let mut columns: Vec<usize> = (1..order).collect();
        let mut state = splitmix(seed);
        for last in (1..columns.len()).rev() {
            state = splitmix(state);
            columns.swap(last, (state % (last as u64 + 1)) as usize);
        }
        let row = |run: usize, flip: bool| {
            let high = |&column: &usize| ((run & column).count_ones() % 2 == 1) != flip;
            columns.iter().take(factors).map(high).collect()
        };
        let one_way = (0..order).map(|run| row(run, false));
        Self {
            rows: one_way
                .chain((0..order).map(|run| row(run, true)))
                .collect(),
        }
    }

    /// The number of runs of a design of `factors` factors.
    pub fn runs(factors: usize) -> usize {
        2 * (factors + 1).next_power_of_two()
    }

    /// For each run, whether each factor is high.
    pub fn rows(&self) -> &[Vec<bool>] {
        &self.rows
    }

    /// The effect of each factor on the losses of the runs, per kind of data: their mean over the runs where the factor is
    /// high minus their mean over those where it is low.
    pub fn effects(&self, losses: &[Losses]) -> BTreeMap<Data, Vec<f64>> {
        let factors = self.rows.first().map_or(0, Vec::len);
        let half = self.rows.len() as f64 / 2.0;
        let mut effects = BTreeMap::new();
        for (row, losses) in self.rows.iter().zip(losses) {
            for (&data, loss) in losses {
                let sums: &mut Vec<f64> = effects.entry(data).or_insert_with(|| vec![0.0; factors]);
                for (effect, &high) in sums.iter_mut().zip(row) {
                    *effect += if high { loss / half } else { -loss / half };
                }
            }
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_balanced_and_apart() {
        for factors in [1, 2, 3, 7, 8, 30, 36] {
            let design = Design::new(factors, 5);
            let rows = design.rows();
            assert_eq!(rows.len(), Design::runs(factors));
            let high = |a: usize| rows.iter().filter(|row| row[a]).count();
            let both = |a: usize, b: usize| rows.iter().filter(|row| row[a] && row[b]).count();
            for a in 0..factors {
                assert_eq!(2 * high(a), rows.len());
                assert!((0..a).all(|b| 4 * both(a, b) == rows.len()));
            }
        }
        assert_eq!(Design::runs(30), 64);
    }

    #[test]
    fn effects_are_found_whatever_pairs_do() {
        // As many as there are columns: what a pair does looks like what some third factor does, but for the opposites.
        let design = Design::new(7, 1);
        let loss = |row: &Vec<bool>| {
            let one = |factor: usize| f64::from(u8::from(row[factor]));
            let sign = |factor: usize| 2.0 * one(factor) - 1.0;
            let text = 3.0 + 0.5 * one(0) - 2.0 * one(3) + 7.0 * sign(1) * sign(2);
            Losses::from([(Data::Text, text), (Data::Evidence, one(4))])
        };
        let losses: Vec<Losses> = design.rows().iter().map(loss).collect();
        let effects = design.effects(&losses);
        let near = |data: Data, wanted: [f64; 7]| {
            let pairs = effects[&data].iter().zip(wanted);
            pairs
                .for_each(|(found, wanted)| assert!((found - wanted).abs() < 1e-12, "{effects:?}"));
        };
        near(Data::Text, [0.5, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0]);
        near(Data::Evidence, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    }
}
