//! Splitting a whole number in proportion to weights.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

/// Weights up to here can be multiplied with any total and added up.
const LARGE: f64 = 1e250;

/// Whole numbers in proportion to `weights` that sum to `total` exactly, by the largest remainder method: each share is
/// rounded down, and what is left goes to the largest remainders, one each; of equal remainders the lower index comes
/// first. Weights that sum to 0 give zeros only. A weight that is negative or NaN counts as 0, an infinite one as the
/// largest number.
pub fn largest_remainder(total: usize, weights: &[f64]) -> Vec<usize> {
    let weights = usable(weights);
    let sum: f64 = weights.iter().sum();
    if sum <= 0.0 {
        return vec![0; weights.len()];
    }
    // Index, count and remainder of each.
    let share = |(index, weight): (usize, &f64)| {
        let exact = total as f64 * weight / sum;
        (index, exact.floor() as usize, exact.fract())
    };
    let mut shares: Vec<(usize, usize, f64)> = weights.iter().enumerate().map(share).collect();
    shares.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
    let given: u128 = shares.iter().map(|share| share.1 as u128).sum();
    let mut missing = (total as u128).saturating_sub(given);
    while missing > 0 {
        for (_, count, _) in &mut shares {
            let one = missing.min(1);
            *count = count.saturating_add(one as usize);
            missing = missing.saturating_sub(one);
        }
    }
    // Rounding in f64 can push the floors past the total for huge weights: take those back from the same order.
    let mut excess = given.saturating_sub(total as u128);
    for (_, count, _) in shares.iter_mut().rev() {
        let back = excess.min(*count as u128);
        *count = count.saturating_sub(back as usize);
        excess = excess.saturating_sub(back);
    }
    shares.sort_by_key(|share| share.0);
    shares.into_iter().map(|share| share.1).collect()
}

fn usable(weights: &[f64]) -> Vec<f64> {
    // Of NaN and a number, `max` is the number.
    let clean = weights.iter().map(|weight| weight.max(0.0));
    let mut weights: Vec<f64> = clean.map(|weight| weight.min(f64::MAX)).collect();
    if weights.iter().any(|&weight| weight > LARGE) {
        // A power of two, which rounds nothing of their size.
        let scale = 2f64.powi(-200);
        weights.iter_mut().for_each(|weight| *weight *= scale);
    }
    weights
}

/// Whole numbers in proportion to `weights` that sum to `total` exactly, where number `i` is at least `least[i]` and at most
/// `most[i]`. A total below the sum of `least` is split by weight alone. If the total exceeds the sum of `most`, the excess
/// is split evenly on top of `most`.
pub fn within(total: usize, weights: &[f64], least: &[usize], most: &[usize]) -> Vec<usize> {
    let sum = |numbers: &[usize]| numbers.iter().copied().fold(0, usize::saturating_add);
    if sum(least) > total {
        return largest_remainder(total, weights);
    }
    if let Some(above) = total.checked_sub(sum(most)) {
        let surplus = largest_remainder(above, &vec![1.0; most.len()]);
        let both = most.iter().zip(surplus);
        return both.map(|(most, more)| most.saturating_add(more)).collect();
    }
    let mut counts = least.to_vec();
    let mut left = total.saturating_sub(sum(least));
    // Each round fills a layer for good or ends.
    while left > 0 {
        let open = counts.iter().zip(most).map(|(count, most)| count < most);
        let open = open.zip(weights);
        let weights: Vec<f64> = open
            .map(|(open, &weight)| if open { weight } else { 0.0 })
            .collect();
        let given = largest_remainder(left, &weights);
        let before = left;
        give(&mut counts, most, &mut left, given);
        if left == before {
            // Only layers of weight zero have room.
            give(&mut counts, most, &mut left, vec![before; most.len()]);
        }
    }
    counts
}

/// The same numbers where none is above `most[i]`: what is above goes to the others in proportion to their numbers, first to
/// those below `enough` up to there, then to all, as far as they have room.
pub fn capped(counts: &[usize], most: &[usize], enough: usize) -> Vec<usize> {
    let sum = |numbers: &[usize]| numbers.iter().copied().fold(0, usize::saturating_add);
    let mut held: Vec<usize> = counts.iter().zip(most).map(|(a, b)| *a.min(b)).collect();
    let mut excess = sum(counts).saturating_sub(sum(&held));
    let weights: Vec<f64> = counts.iter().map(|&count| count.max(1) as f64).collect();
    for limit in [enough, usize::MAX] {
        let room = held.iter().zip(most);
        let room: Vec<usize> = room
            .map(|(held, &most)| most.min(limit).saturating_sub(*held))
            .collect();
        let given = excess.min(sum(&room));
        if given > 0 {
            let more = within(given, &weights, &vec![0; held.len()], &room);
            for (held, more) in held.iter_mut().zip(more) {
                *held = held.saturating_add(more);
            }
            excess = excess.saturating_sub(given);
        }
    }
    held
}

/// Raises each count by what is given to it, up to its limit and while something is left.
fn give(counts: &mut [usize], most: &[usize], left: &mut usize, given: Vec<usize>) {
    for ((count, most), given) in counts.iter_mut().zip(most).zip(given) {
        let taken = given.min(*left).min(most.saturating_sub(*count));
        *count = count.saturating_add(taken);
        *left = left.saturating_sub(taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn remainders_go_to_the_largest_fraction() {
        assert_eq!(largest_remainder(10, &[1.0, 1.0, 1.0]), [4, 3, 3]);
        assert_eq!(largest_remainder(10, &[1.0, 2.0, 4.0]), [1, 3, 6]);
    }

    #[test]
    fn limits_hold_and_the_excess_goes_to_the_others() {
        assert_eq!(within(10, &[8.0, 1.0, 1.0], &[1; 3], &[4; 3]), [4, 3, 3]);
        assert_eq!(within(10, &[1.0, 0.0], &[0; 2], &[6; 2]), [6, 4]);
        assert_eq!(within(10, &[1.0, 1.0], &[6; 2], &[9; 2]), [5, 5]);
    }

    #[test]
    fn a_surplus_comes_on_top_of_every_limit() {
        assert_eq!(within(20, &[9.0, 1.0], &[0; 2], &[6, 8]), [9, 11]);
        assert_eq!(within(15, &[9.0, 1.0], &[0; 2], &[6, 8]), [7, 8]);
    }

    #[test]
    fn what_is_above_a_limit_goes_to_those_with_room() {
        let most = [15, 15, usize::MAX, usize::MAX];
        assert_eq!(capped(&[20, 5, 20, 10], &most, 0), [15, 6, 23, 11]);
        assert_eq!(capped(&[20, 5, 20, 10], &most, 13), [15, 7, 20, 13]);
        assert_eq!(capped(&[20, 14], &most[..2], 100), [15, 15]);
        assert_eq!(capped(&[3, 4], &[3, 9], 5), [3, 4]);
    }

    proptest! {
        #[test]
        fn caps_hold_and_keep_the_sum(
            layers in prop::collection::vec((0usize..3000, prop::option::of(1usize..2000)), 1..60),
            enough in 0usize..4000,
        ) {
            let counts: Vec<usize> = layers.iter().map(|layer| layer.0).collect();
            let most: Vec<usize> = layers.iter().map(|layer| layer.1.unwrap_or(usize::MAX)).collect();
            let found = capped(&counts, &most, enough);
            let room = most.iter().copied().fold(0, usize::saturating_add);
            prop_assert_eq!(found.iter().sum::<usize>(), counts.iter().sum::<usize>().min(room));
            for i in 0..found.len() {
                prop_assert!(found[i] <= most[i] && found[i] >= counts[i].min(most[i]), "{}: {:?}", i, found);
            }
        }

        #[test]
        fn limits_that_fit_the_total_hold(
            total in 0usize..20_000,
            layers in prop::collection::vec((0.0f64..1e6, 0usize..300, 0usize..3000), 1..80),
        ) {
            let weights: Vec<f64> = layers.iter().map(|layer| layer.0).collect();
            let least: Vec<usize> = layers.iter().map(|layer| layer.1).collect();
            let most: Vec<usize> = layers.iter().map(|layer| layer.1 + layer.2).collect();
            let counts = within(total, &weights, &least, &most);
            prop_assume!(weights.iter().any(|&weight| weight > 0.0));
            prop_assert_eq!(counts.iter().sum::<usize>(), total);
            let all: usize = most.iter().sum();
            for (i, &count) in counts.iter().enumerate() {
                if total >= least.iter().sum() && total <= all {
                    prop_assert!((least[i]..=most[i]).contains(&count), "{} of {:?}", i, counts);
                } else if total > all {
                    prop_assert!(count >= most[i], "{} of {:?}", i, counts);
                }
            }
        }

        /// Whatever the weights are, unless all of them count as 0.
        #[test]
        fn any_weights_sum_exactly(
            total in prop_oneof![0usize..100, any::<usize>()],
            weights in prop::collection::vec(prop_oneof![
                Just(0.0), Just(1.0), Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY),
                Just(f64::MAX), Just(f64::MIN_POSITIVE), any::<f64>(),
            ], 0..40),
        ) {
            let counts = largest_remainder(total, &weights);
            let some = weights.iter().any(|&weight| weight > 0.0);
            let expected = if some { total as u128 } else { 0 };
            prop_assert_eq!(counts.iter().map(|&count| count as u128).sum::<u128>(), expected);
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(*count <= weights.len() || *weight > 0.0 || total > 1 << 50, "{} for {}", count, weight);
            }
            let limits: Vec<usize> = weights.iter().map(|_| total / 2).collect();
            let counts = within(total, &weights, &vec![0; weights.len()], &limits);
            if weights.len() > 2 {
                prop_assert_eq!(counts.iter().map(|&count| count as u128).sum::<u128>(), total as u128);
            }
        }

        #[test]
        fn the_sum_is_exact(total in 0usize..1_000_000, weights in prop::collection::vec(1e-6f64..1e6, 1..200)) {
            let counts = largest_remainder(total, &weights);
            prop_assert_eq!(counts.iter().sum::<usize>(), total);
        }
    }
}
