//! Dividing a layer's budget over its KV heads, one entry at a time.

use super::{Entry, Head, Reference};
use crate::apportion::within;
use crate::phase::Phase;
use crate::plan::Eviction;
use crate::policy::HeadBudgets;
use crate::testing::inputs::KV_HEADS;

impl Reference {
    /// How many entries each head keeps when they share a budget.
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
        let safe = |entry: &&Entry| {
            let p = entry.position;
            let ends = p < protect.sinks || p + protect.recent >= seen;
            visible(entry) && (ends || self.spans.contains(p))
        };
        let least = |head: usize| self.heads[head].iter().filter(safe).count().max(1);
        let floor = match heads {
            HeadBudgets::ByScore { floor } => (*budget as f64 * floor) as usize,
            _ => 0,
        };
        let mut counts: Vec<usize> = (0..KV_HEADS)
            .map(|head| {
                let seen = self.heads[head].iter().filter(visible).count();
                least(head).max(floor.min(seen))
            })
            .collect();
        if let HeadBudgets::Shares(shares) = heads {
            let most: Vec<usize> = self.heads.iter().map(Vec::len).collect();
            let counts = within(budget * KV_HEADS, shares, &counts, &most);
            return counts
                .iter()
                .zip(most)
                .map(|(&count, most)| count.min(most))
                .collect();
        }
        // One entry at a time to the head whose next one is the best of all.
        let ranks: Vec<Vec<usize>> = views
            .iter()
            .zip(scores)
            .map(|(view, scores)| view.best(scores, protect, &self.spans, &[], usize::MAX))
            .collect();
        while counts.iter().sum::<usize>() < budget * KV_HEADS {
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
        counts
    }
}
