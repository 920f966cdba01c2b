//! Dividing a layer's budget over its KV heads, one entry at a time.

use super::{Entry, Head, Reference};
use crate::apportion::within;
use crate::phase::Phase;
use crate::plan::Eviction;
use crate::policy::HeadBudgets;
use crate::testing::inputs::KV_HEADS;

impl Reference {
    /// How many entries each head keeps when they share a budget, at least as many as its policy protects at most.
    pub(super) fn divide(
        &self,
        phase: Phase,
        eviction: &Eviction,
        heads: &HeadBudgets,
        scores: &[Vec<f64>],
    ) -> Vec<usize> {
        let Eviction { policy, budget } = eviction;
        let views: Vec<Head<'_>> = (0..KV_HEADS)
            .map(|h| self.head(h, phase, *budget))
            .collect();
        let protect = policy.protect(*budget);
        let seen = self.queries.len();
        let visible = |entry: &&Entry| self.sees(seen, entry.position);
        let most: Vec<usize> = self.heads.iter().map(Vec::len).collect();
        let least = self.rules.protected(eviction, &self.spans, seen);
        let missing: usize = most.iter().map(|&held| least.saturating_sub(held)).sum();
        let total = budget * KV_HEADS - missing;
        let floor = match heads {
            HeadBudgets::ByScore { floor } => (*budget as f64 * floor) as usize,
            _ => 0,
        };
        let mut counts: Vec<usize> = (0..KV_HEADS)
            .map(|head| {
                let seen = self.heads[head].iter().filter(visible).count();
                least.min(most[head]).max(floor.min(seen))
            })
            .collect();
        if let HeadBudgets::Shares(shares) = heads {
            let counts = within(total, shares, &counts, &most).into_iter();
            let held = counts.zip(most).map(|(count, most)| count.min(most));
            return held.map(|count| count.max(least)).collect();
        }
        // One entry at a time to the head whose next one is the best of all.
        let ranks: Vec<Vec<usize>> = views
            .iter()
            .zip(scores)
            .map(|(view, scores)| view.best(scores, protect, &self.spans, &[], usize::MAX))
            .collect();
        while counts.iter().sum::<usize>() < total {
            let next = (0..KV_HEADS).filter(|&head| counts[head] < ranks[head].len());
            let best = next.max_by(|&a, &b| {
                let key = |head: usize| {
                    let index = ranks[head][counts[head]];
                    let entry = &self.heads[head][index];
                    let sees = visible(&entry);
                    (
                        sees,
                        if sees { scores[head][index] } else { 0.0 },
                        entry.position,
                    )
                };
                let (a_key, b_key) = (key(a), key(b));
                let by_score = a_key.1.total_cmp(&b_key.1);
                let by_place = a_key.2.cmp(&b_key.2).then(b.cmp(&a));
                a_key.0.cmp(&b_key.0).then(by_score).then(by_place)
            });
            match best {
                Some(head) => counts[head] += 1,
                None => break,
            }
        }
        counts.into_iter().map(|count| count.max(least)).collect()
    }
}
