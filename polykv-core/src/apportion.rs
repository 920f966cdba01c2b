//! Splitting a whole number in proportion to weights.

/// Whole numbers in proportion to `weights` that sum to `total` exactly, by the largest remainder method: each share is
/// rounded down, and what is left goes to the largest remainders, one each; of equal remainders the lower index comes
/// first. Weights that sum to 0 give zeros only.
pub fn largest_remainder(total: usize, weights: &[f64]) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    if weights.is_empty() || sum <= 0.0 {
        return vec![0; weights.len()];
    }
    let exact: Vec<f64> = weights.iter().map(|w| total as f64 * w / sum).collect();
    let mut counts: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| {
        exact[b]
            .fract()
            .total_cmp(&exact[a].fract())
            .then(a.cmp(&b))
    });
    // Rounding in f64 can push the floors past the total for huge weights: take those back from the same order.
    let given: usize = counts.iter().sum();
    for &i in order.iter().cycle().take(total.saturating_sub(given)) {
        counts[i] += 1;
    }
    let mut excess = given.saturating_sub(total);
    for &i in order.iter().rev() {
        let back = excess.min(counts[i]);
        counts[i] -= back;
        excess -= back;
    }
    counts
}

/// Whole numbers in proportion to `weights` that sum to `total` exactly, where number `i` is at least `least[i]` and at most
/// `most[i]`. A total below the sum of `least` is split by weight alone. If the total exceeds the sum of `most`, the excess
/// is split evenly on top of `most`.
pub fn within(total: usize, weights: &[f64], least: &[usize], most: &[usize]) -> Vec<usize> {
    let floor = least.iter().copied().fold(0, usize::saturating_add);
    let ceiling = most.iter().copied().fold(0, usize::saturating_add);
    if floor > total {
        return largest_remainder(total, weights);
    }
    if ceiling <= total {
        let surplus = largest_remainder(total - ceiling, &vec![1.0; most.len()]);
        return most
            .iter()
            .zip(surplus)
            .map(|(most, more)| most + more)
            .collect();
    }
    let mut counts = least.to_vec();
    let mut left = total - floor;
    // Each round fills a layer for good or ends.
    while left > 0 {
        let open = |i: usize| counts[i] < most[i];
        let open_weights: Vec<f64> = weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| if open(i) { weight } else { 0.0 })
            .collect();
        let given = largest_remainder(left, &open_weights);
        let before = left;
        for (i, given) in given.into_iter().enumerate() {
            let taken = given.min(most[i].saturating_sub(counts[i]));
            counts[i] += taken;
            left -= taken;
        }
        if left == before {
            // Only layers of weight zero have room.
            for (count, &most) in counts.iter_mut().zip(most) {
                let taken = left.min(most.saturating_sub(*count));
                *count += taken;
                left -= taken;
            }
        }
    }
    counts
}

/// The same numbers where none is above `most[i]`: what is above goes to the others in proportion to their numbers, first to
/// those below `enough` up to there, then to all, as far as they have room.
pub fn capped(counts: &[usize], most: &[usize], enough: usize) -> Vec<usize> {
    let mut held: Vec<usize> = counts.iter().zip(most).map(|(a, b)| *a.min(b)).collect();
    let mut excess = counts.iter().sum::<usize>() - held.iter().sum::<usize>();
    let weights: Vec<f64> = counts.iter().map(|&count| count.max(1) as f64).collect();
    for limit in [enough, usize::MAX] {
        let room = held.iter().zip(most);
        let room: Vec<usize> = room
            .map(|(held, &most)| most.min(limit).saturating_sub(*held))
            .collect();
        let free = room.iter().copied().fold(0, usize::saturating_add);
        let given = excess.min(free);
        if given > 0 {
            let more = within(given, &weights, &vec![0; held.len()], &room);
            held.iter_mut()
                .zip(more)
                .for_each(|(held, more)| *held += more);
            excess -= given;
        }
    }
    held
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

        #[test]
        fn the_sum_is_exact(total in 0usize..1_000_000, weights in prop::collection::vec(1e-6f64..1e6, 1..200)) {
            let counts = largest_remainder(total, &weights);
            prop_assert_eq!(counts.iter().sum::<usize>(), total);
        }
    }
}
