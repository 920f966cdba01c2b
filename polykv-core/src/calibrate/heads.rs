//! Budgets of KV heads from what repeating the examples attends to (KVzip, arXiv 2505.23416, as the teacher of a fixed plan; an
//! addition of this project).

use crate::allocate::wins;
use crate::apportion::within;

/// How many of the `total` entries with the highest scores of all heads of all layers each of them has:
/// `scores [layer][head][entry]` → `[layer][head]`. Of equal scores the lower layer's and head's come first.
pub fn contest(scores: &[Vec<Vec<f32>>], total: usize) -> Vec<Vec<usize>> {
    let heads = scores.iter().flatten().map(Vec::as_slice);
    let mut counts = wins(heads, total).into_iter();
    let layers = scores.iter();
    layers
        .map(|heads| counts.by_ref().take(heads.len()).collect())
        .collect()
}

/// The part of the budget that each KV head of each layer gets, `[layer][head]`, relative to the average head's: the mean of what
/// it has in the contests of several examples, each relative to their total, in thousandths. No head has none.
pub fn parts(contests: &[Vec<Vec<usize>>]) -> Vec<Vec<f64>> {
    let Some(first) = contests.first() else {
        return Vec::new();
    };
    let mut sums: Vec<Vec<f64>> = first.iter().map(|heads| vec![0.0; heads.len()]).collect();
    for counts in contests {
        let total: usize = counts.iter().flatten().sum();
        for (sums, heads) in sums.iter_mut().zip(counts) {
            for (sum, &count) in sums.iter_mut().zip(heads) {
                *sum += count.max(1) as f64 / total.max(1) as f64;
            }
        }
    }
    let all: f64 = sums.iter().flatten().sum();
    let count = sums.iter().flatten().count() as f64;
    let rounded = |part: &f64| (part / all * count * 1e3).round().max(1.0) / 1e3;
    let layers = sums.iter();
    layers
        .map(|heads| heads.iter().map(rounded).collect())
        .collect()
}

/// Budgets of layers in proportion to the `parts` of their heads, at least `least` and at most `most[layer]` each.
pub(super) fn budgets(
    parts: &[Vec<f64>],
    total: usize,
    least: usize,
    most: &[usize],
) -> Vec<usize> {
    let weights: Vec<f64> = parts.iter().map(|heads| heads.iter().sum()).collect();
    let least: Vec<usize> = most.iter().map(|&most| least.min(most)).collect();
    within(total, &weights, &least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_all_heads_win() {
        let scores = [
            vec![vec![0.9, 0.1, 0.5], vec![0.2, 0.5]],
            vec![vec![0.8, 0.7, f32::INFINITY]],
        ];
        assert_eq!(contest(&scores, 3), [vec![1, 0], vec![2]]);
        assert_eq!(contest(&scores, 4), [vec![1, 0], vec![3]]);
        // Of the two with 0.5 the lower head's.
        assert_eq!(contest(&scores, 5), [vec![2, 0], vec![3]]);
        assert_eq!(contest(&scores, 100), [vec![3, 2], vec![3]]);
    }

    #[test]
    fn every_example_counts_alike_and_every_head_gets_something() {
        let found = parts(&[vec![vec![6, 0], vec![4, 0]], vec![vec![2, 0], vec![0, 2]]]);
        // 6/10 + 2/4, 1/10 + 1/4, 4/10 + 1/4, 1/10 + 2/4.
        for (part, wanted) in found.iter().flatten().zip([1.1, 0.35, 0.65, 0.6]) {
            assert!((part - 4.0 * wanted / 2.7).abs() < 1e-3, "{found:?}");
        }
        assert!(parts(&[]).is_empty());
        assert_eq!(
            budgets(&[vec![0.5, 0.1], vec![0.4]], 100, 5, &[90, 30]),
            [70, 30]
        );
        assert_eq!(
            budgets(&[vec![0.9], vec![0.1]], 100, 20, &[90, 90]),
            [74, 26]
        );
    }
}
