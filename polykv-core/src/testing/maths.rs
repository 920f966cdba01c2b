//! Arithmetic in f64 for the definitions of policies.

use crate::ops::Pool;

/// The largest absolute difference of two lists of numbers; infinite if one of them holds a NaN or an infinity, or if their
/// lengths differ.
pub fn max_difference<A, B>(found: &[A], wanted: &[B]) -> f64
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    if found.len() != wanted.len() {
        return f64::INFINITY;
    }
    let differences = found.iter().zip(wanted).map(|(&found, &wanted)| {
        let (found, wanted): (f64, f64) = (found.into(), wanted.into());
        match found.is_finite() && wanted.is_finite() {
            true => (found - wanted).abs(),
            false => f64::INFINITY,
        }
    });
    differences.fold(0.0, f64::max)
}

/// The dot product, Σ aᵢ bᵢ.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean norm, √Σ xᵢ².
pub fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// The mean of rows of equal length, element by element; empty if there are no rows.
pub fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let width = rows.first().map_or(0, Vec::len);
    let column = |j: usize| rows.iter().map(|row| row[j]).sum::<f64>() / rows.len() as f64;
    (0..width).map(column).collect()
}

/// The softmax: eˣ divided by the sum over all elements; −∞ gives 0.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let total: f64 = exp.iter().sum();
    exp.iter().map(|e| e / total).collect()
}

/// Pools each score over the `kernel` positions around it. The last `window` scores are left out: they stay as they are and
/// do not reach their neighbours. The mean counts positions beyond the ends as zeros.
pub fn pooled(scores: &[f64], window: usize, kernel: usize, pool: Pool) -> Vec<f64> {
    let old = scores.len().saturating_sub(window);
    let reach = kernel / 2;
    let of = |j: usize| {
        if j >= old {
            return scores[j];
        }
        let near = &scores[j.saturating_sub(reach)..(j + reach + 1).min(old)];
        match pool {
            // Unlike f64::max, this keeps a NaN.
            Pool::Max => near.iter().fold(f64::NEG_INFINITY, |most, &x| {
                if x > most || x.is_nan() { x } else { most }
            }),
            Pool::Avg => near.iter().sum::<f64>() / (2 * reach + 1) as f64,
        }
    };
    (0..scores.len()).map(of).collect()
}

/// One score per entry for a choice in stages. `stages` has the entries that each stage took and the scores that it took them
/// by. Entries of earlier stages score above those of later stages, and these above all others, which have the scores `rest`.
/// An entry with a NaN in any stage has NaN.
pub fn staged(stages: &[(Vec<usize>, Vec<f64>)], rest: Vec<f64>) -> Vec<f64> {
    let mut scores = rest;
    for (stage, (taken, stage_scores)) in stages.iter().enumerate() {
        for (j, score) in stage_scores.iter().enumerate() {
            match (score.is_nan() || scores[j].is_nan(), taken.contains(&j)) {
                (true, _) => scores[j] = f64::NAN,
                (false, true) => scores[j] = 1e30 * (stages.len() - stage) as f64,
                (false, false) => {}
            }
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_infinitely_far_from_everything() {
        assert_eq!(max_difference(&[1.0f32, 2.0], &[1.5f64, 2.0]), 0.5);
        assert_eq!(max_difference::<f32, f32>(&[], &[]), 0.0);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (found, wanted) in [([wrong, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, wrong])] {
                assert_eq!(max_difference(&found, &wanted), f64::INFINITY);
            }
            assert_eq!(max_difference(&[wrong], &[wrong]), f64::INFINITY);
        }
        assert_eq!(max_difference(&[1.0f32], &[1.0f32, 1.0]), f64::INFINITY);
    }

    #[test]
    fn stages_come_before_what_is_left_and_keep_nan() {
        let (first, second) = (vec![4.0, f64::NAN, 2.0], vec![0.0; 3]);
        let stages = [(vec![0], first), (vec![2], second)];
        let scores = staged(&stages, vec![1.0; 3]);
        assert_eq!((scores[0], scores[2]), (2e30, 1e30));
        assert!(scores[1].is_nan());
        let pooled = pooled(&[1.0, f64::NAN, 3.0, 4.0], 0, 3, Pool::Max);
        assert!(pooled[..3].iter().all(|x| x.is_nan()));
        assert_eq!(pooled[3], 4.0);
    }

    #[test]
    fn pooling_leaves_the_window_alone() {
        let scores = [1.0, 5.0, 0.0, 9.0];
        assert_eq!(pooled(&scores, 1, 3, Pool::Max), [5.0, 5.0, 5.0, 9.0]);
        assert_eq!(pooled(&scores, 1, 3, Pool::Avg), [2.0, 2.0, 5.0 / 3.0, 9.0]);
        assert_eq!(pooled(&scores, 9, 3, Pool::Max), scores);
    }
}
