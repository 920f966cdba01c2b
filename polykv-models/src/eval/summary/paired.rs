//! How far a difference between two plans may be chance: both answered the same samples, so the samples are drawn anew for
//! both at once.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// So many that the ends of the interval are two of them.
const RESAMPLES: usize = 1999;
/// Resamples beyond either end of a 95 % interval, the end included.
const TAIL: usize = 50;
/// Fixed, so that equal predictions have equal intervals.
const SEED: u64 = 0x0DD5_A3B1;

/// The scores of all plans on one task, over many samples of as many draws from the task's own.
#[derive(Clone, Debug)]
pub(super) struct Resampled {
    /// By plan, then by draw.
    scores: Vec<Vec<f64>>,
}

impl Resampled {
    /// Of `samples`, each with one number per plan; `score` makes a task's score of a mean of them. `task` numbers the tasks
    /// of a run, whose draws have nothing to do with each other. None of fewer than two samples, whose spread is unknown.
    pub fn new(samples: &[Vec<f64>], score: fn(f64) -> f64, task: usize) -> Option<Self> {
        let plans = samples.first()?.len();
        if samples.len() < 2 {
            return None;
        }
        let mut rng = StdRng::seed_from_u64(SEED.wrapping_add(task as u64));
        let mut scores = vec![Vec::with_capacity(RESAMPLES); plans];
        for _ in 0..RESAMPLES {
            let mut sums = vec![0.0; plans];
            for _ in samples {
                let drawn = samples.get(rng.random_range(0..samples.len()))?;
                sums.iter_mut()
                    .zip(drawn)
                    .for_each(|(sum, score)| *sum += score);
            }
            let count = samples.len() as f64;
            for (of_plan, sum) in scores.iter_mut().zip(sums) {
                of_plan.push(score(sum / count));
            }
        }
        Some(Self { scores })
    }
}

/// The 95 % interval (percentiles) of how much more plan `plan` has than plan `other` in the unweighted mean of the tasks'
/// scores. Each task's samples are drawn from that task's. None if a task's spread is unknown.
pub(super) fn interval(
    tasks: &[Option<&Resampled>],
    plan: usize,
    other: usize,
) -> Option<[f64; 2]> {
    let tasks: Vec<&Resampled> = tasks.iter().copied().collect::<Option<_>>()?;
    if tasks.is_empty() {
        return None;
    }
    let difference = |draw: usize| {
        let score = |task: &Resampled, plan: usize| task.scores.get(plan)?.get(draw).copied();
        let of_task = |task: &&Resampled| Some(score(task, plan)? - score(task, other)?);
        let sum: Option<f64> = tasks.iter().map(of_task).sum();
        Some(sum? / tasks.len() as f64)
    };
    let mut differences = (0..RESAMPLES)
        .map(difference)
        .collect::<Option<Vec<f64>>>()?;
    let mut end = |rank: usize| *differences.select_nth_unstable_by(rank, f64::total_cmp).1;
    Some([end(TAIL - 1), end(RESAMPLES - TAIL)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of two plans on one task.
    fn of(samples: &[[f64; 2]]) -> Option<Resampled> {
        let samples: Vec<Vec<f64>> = samples.iter().map(|sample| sample.to_vec()).collect();
        Resampled::new(&samples, |mean| mean, 0)
    }

    fn interval_of(samples: &[[f64; 2]]) -> Option<[f64; 2]> {
        interval(&[of(samples).as_ref()], 0, 1)
    }

    #[test]
    fn a_constant_difference_has_no_width() {
        // The scores themselves are far apart.
        let samples = [[1.0, 0.75], [9.0, 8.75], [-4.0, -4.25], [0.5, 0.25]];
        assert_eq!(interval_of(&samples), Some([0.25, 0.25]));
    }

    #[test]
    fn ends_are_percentiles_of_the_binomial_distribution() {
        // Ten samples, five of which differ by one: the number of ones among ten draws is binomial with p = ½, and 1 has
        // 1.1 % of it at or below, 2 has 5.5 %.
        let samples: Vec<[f64; 2]> = (0..10).map(|i| [f64::from(i % 2), 0.0]).collect();
        assert_eq!(interval_of(&samples), Some([0.2, 0.8]));
        let other_way = interval(&[of(&samples).as_ref()], 1, 0);
        assert_eq!(other_way, Some([-0.8, -0.2]));
        // Of two samples none, one or both, with ¼, ½ and ¼.
        assert_eq!(interval_of(&[[0.0, 0.0], [1.0, 0.0]]), Some([0.0, 1.0]));
    }

    #[test]
    fn samples_are_drawn_within_their_task() {
        let steady = of(&[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]);
        let loose = of(&[[0.0, 0.0], [1.0, 0.0]]);
        // The loose task says 0 to 1, the steady one 1; from all five together also 0.2 could be drawn.
        let both = interval(&[steady.as_ref(), loose.as_ref()], 0, 1);
        assert_eq!(both, Some([0.5, 1.0]));
    }

    #[test]
    fn tasks_are_drawn_apart() {
        // Two plans that differ by +1 and −1 in turn, the other way round in the second task: with the same draws in both,
        // the mean would be 0 always.
        let turns = |sign: f64| -> Vec<Vec<f64>> {
            let values = (0..20).map(|i| if i % 2 == 0 { sign } else { -sign });
            values.map(|value| vec![value, 0.0]).collect()
        };
        let tasks = [(1.0, 0), (-1.0, 1)]
            .map(|(sign, task)| Resampled::new(&turns(sign), |mean| mean, task).unwrap());
        let [low, high] = interval(&[Some(&tasks[0]), Some(&tasks[1])], 0, 1).unwrap();
        assert!(low < -0.15 && high > 0.15, "{low} to {high}");
    }

    #[test]
    fn scores_are_made_of_means() {
        // Two samples of ln 2 and ln 8: the geometric mean is 2, 4 or 8.
        let samples = [[2f64.ln(), 0.0], [8f64.ln(), 0.0]].map(|sample| sample.to_vec());
        let task = Resampled::new(&samples, f64::exp, 0).unwrap();
        let [low, high] = interval(&[Some(&task)], 0, 1).unwrap();
        assert!((low - 1.0).abs() < 1e-12 && (high - 7.0).abs() < 1e-12);
    }

    #[test]
    fn one_sample_tells_nothing_of_the_spread() {
        let lone = of(&[[1.0, 0.0]]);
        let several = of(&[[1.0, 0.0], [0.0, 0.0]]);
        assert!(lone.is_none() && of(&[]).is_none());
        assert_eq!(interval(&[several.as_ref(), None], 0, 1), None);
        assert_eq!(interval(&[], 0, 1), None);
    }

    #[test]
    fn the_same_again() {
        let samples: Vec<[f64; 2]> = (0..7).map(|i| [f64::from(i * i % 5), 1.0]).collect();
        let [low, high] = interval_of(&samples).unwrap();
        assert_eq!(interval_of(&samples), Some([low, high]));
        assert!(low < high);
    }
}
