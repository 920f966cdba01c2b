//! Choosing which entries stay where the heads of a layer share one budget. It runs on the host: how many entries a head keeps
//! is known there only.

use super::protect::Protected;
use crate::apportion::within;
use crate::policy::HeadBudgets;

/// What one KV head of a sequence holds, in slot order.
#[derive(Clone, Debug, Default)]
pub struct HeadScores {
    /// The score of every entry, no NaN.
    pub scores: Vec<f32>,
    /// The position of every entry.
    pub positions: Vec<i64>,
}

/// The slots that each of a sequence's KV heads keeps, in ascending order of position: `budget` per head on average, divided as
/// `budgets` says, at least one in each. In each head entries that the next token does not see go first and protected ones last;
/// of equal scores the later position stays, of equal positions that of the lower head. What a head cannot fill goes to the
/// others, but for what it needs to hold as many entries as the policy protects at most, `floor`.
pub fn choose_of_heads(
    heads: &[HeadScores],
    protected: Protected<'_>,
    floor: usize,
    budget: usize,
    budgets: &HeadBudgets,
) -> Vec<Vec<usize>> {
    let guard = protected.guard();
    let oldest = protected.oldest as i64;
    let sees = |head: &HeadScores, slot: usize| head.positions[slot] >= oldest;
    let safe =
        |head: &HeadScores, slot: usize| sees(head, slot) && guard.contains(head.positions[slot]);
    // Every head's slots, the best first.
    let ranked: Vec<Vec<usize>> = heads
        .iter()
        .map(|head| {
            let mut slots: Vec<usize> = (0..head.positions.len()).collect();
            slots.sort_by(|&a, &b| {
                let class = |slot| (sees(head, slot), safe(head, slot));
                class(b)
                    .cmp(&class(a))
                    .then(match sees(head, a) {
                        true => head.scores[b].total_cmp(&head.scores[a]),
                        false => std::cmp::Ordering::Equal,
                    })
                    .then(head.positions[b].cmp(&head.positions[a]))
            });
            slots
        })
        .collect();
    let lengths: Vec<usize> = ranked.iter().map(Vec::len).collect();
    let missing = lengths.iter().map(|&length| floor.saturating_sub(length));
    let missing = missing.fold(0, usize::saturating_add);
    let total = budget.saturating_mul(heads.len()).saturating_sub(missing);
    let least: Vec<usize> = lengths.iter().map(|&length| floor.min(length)).collect();
    let counts = match budgets {
        HeadBudgets::Even => within(total, &vec![1.0; heads.len()], &least, &lengths),
        HeadBudgets::Shares(shares) => within(total, shares, &least, &lengths),
        HeadBudgets::ByScore { floor } => {
            let floor = (budget as f64 * floor) as usize;
            let seen = heads
                .iter()
                .map(|head| (0..head.positions.len()).filter(|&slot| sees(head, slot)));
            let mut counts: Vec<usize> = least
                .iter()
                .zip(seen)
                .map(|(&least, seen)| least.max(floor.min(seen.count())))
                .collect();
            // What every head keeps anyway, and the best of the rest of all heads.
            let mut rest: Vec<(usize, usize)> = ranked
                .iter()
                .enumerate()
                .flat_map(|(head, slots)| {
                    let after = slots.iter().skip(counts[head]);
                    after.map(move |&slot| (head, slot))
                })
                .collect();
            rest.sort_by(|&(a, x), &(b, y)| {
                let (first, second) = (&heads[a], &heads[b]);
                sees(second, y)
                    .cmp(&sees(first, x))
                    .then(match sees(first, x) {
                        true => second.scores[y].total_cmp(&first.scores[x]),
                        false => std::cmp::Ordering::Equal,
                    })
                    .then(second.positions[y].cmp(&first.positions[x]))
                    .then(a.cmp(&b))
            });
            let left = total.saturating_sub(counts.iter().sum());
            for (head, _) in rest.into_iter().take(left) {
                counts[head] += 1;
            }
            counts
        }
    };
    let kept = ranked.into_iter().zip(counts).zip(heads);
    kept.map(|((mut slots, count), head)| {
        slots.truncate(count.max(1));
        slots.sort_unstable_by_key(|&slot| head.positions[slot]);
        slots
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(scores: &[f32]) -> HeadScores {
        HeadScores {
            scores: scores.to_vec(),
            positions: (0..scores.len() as i64).collect(),
        }
    }

    fn counts(heads: &[HeadScores], budget: usize, budgets: &HeadBudgets) -> Vec<usize> {
        let slots = choose_of_heads(heads, Protected::nothing(6), 1, budget, budgets);
        slots.iter().map(Vec::len).collect()
    }

    #[test]
    fn the_best_of_all_heads_stay_beside_each_heads_own() {
        let heads = [
            head(&[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]),
            head(&[0.0, 1.0, 0.5, 3.0, 2.0, 4.5]),
        ];
        let by_score = |floor| HeadBudgets::ByScore { floor };
        assert_eq!(
            choose_of_heads(&heads, Protected::nothing(6), 1, 3, &by_score(0.0)),
            [vec![0, 1, 2, 3, 4], vec![5]]
        );
        assert_eq!(counts(&heads, 3, &by_score(0.7)), [4, 2]);
        assert_eq!(counts(&heads, 3, &by_score(1.0)), [3, 3]);
        assert_eq!(counts(&heads, 3, &HeadBudgets::Even), [3, 3]);
        // What the first head cannot fill goes to the other.
        assert_eq!(
            counts(&heads, 4, &HeadBudgets::Shares(vec![9.0, 1.0])),
            [6, 2]
        );
    }

    #[test]
    fn protected_entries_stay_in_every_head_and_what_is_not_seen_goes_first() {
        let heads = [head(&[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]), head(&[0.0; 6])];
        let mut protected = Protected::nothing(6);
        protected.protect.recent = 2;
        let none = HeadBudgets::ByScore { floor: 0.0 };
        assert_eq!(
            choose_of_heads(&heads, protected, 2, 3, &none),
            [vec![0, 1, 4, 5], vec![4, 5]]
        );
        protected.oldest = 3;
        assert_eq!(
            choose_of_heads(&heads, protected, 2, 3, &none),
            [vec![3, 4, 5], vec![3, 4, 5]]
        );
    }

    #[test]
    fn a_head_has_room_for_what_its_policy_will_protect() {
        let heads = [head(&[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]), head(&[0.0, 1.0])];
        let none = HeadBudgets::ByScore { floor: 0.0 };
        let counts = |floor| {
            let slots = choose_of_heads(&heads, Protected::nothing(6), floor, 3, &none);
            slots.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(counts(1), [5, 1]);
        assert_eq!(counts(2), [4, 2]);
        // One of its three is still to come.
        assert_eq!(counts(3), [3, 2]);
    }

    #[test]
    fn of_equal_scores_the_later_position_stays_and_then_the_lower_head() {
        let heads = [head(&[1.0; 4]), head(&[1.0; 4])];
        let none = HeadBudgets::ByScore { floor: 0.0 };
        let heads = choose_of_heads(&heads, Protected::nothing(4), 1, 2, &none);
        assert_eq!(heads, [vec![2, 3], vec![2, 3]]);
    }
}
