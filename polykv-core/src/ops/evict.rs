//! The eviction of one entry of every head while decoding.

use super::choice::{Nans, drop_lowest_after};
use super::entries::{self, Entries};
use super::hit_note::StepHits;
#[cfg(feature = "cube")]
use super::kernels::{ScoresOf, StepOps, kernel};
use super::protect::Protected;
#[cfg(feature = "cube")]
use super::route::Route;
use super::step_scores::StepScores;
use super::sums::StepSums;
use burn::tensor::{Int, Tensor};

/// Statistics of entries, `[batch, kv_heads, entries]` and, if there are such, `[batch, kv_heads, entries, width]`.
pub(crate) type Statistics = (Tensor<3>, Option<Tensor<4>>);

/// What an eviction of one entry leaves.
pub(crate) struct Evicted {
    pub entries: Entries,
    /// The slot that the newest entry took, `[batch, kv_heads, 1]`.
    pub victim: Tensor<3, Int>,
    pub nans: Nans,
    /// The statistics of the entries that stay, where the scores were made of them and of a row that had not been added yet.
    pub statistics: Option<Statistics>,
}

/// [`drop_lowest_after`] of the first `count` entries, which have these scores, and [`replace`](super::replace) in its slot by
/// the new key and value at `position`. On GPUs it is one kernel.
///
/// # Panics
/// If the shapes do not fit, and without scores.
pub(crate) fn evict(
    scores: StepScores,
    count: usize,
    protected: Protected<'_>,
    before: Nans,
    entries: Entries,
    [key, value]: [Tensor<4>; 2],
    position: usize,
) -> Evicted {
    let held = entries::check(&entries);
    assert!(
        fits(&scores, count, held) && (1..=held[2]).contains(&count),
        "{count} scores of {held:?}"
    );
    entries::check_entry(&entries, &key, &value);
    #[cfg(feature = "cube")]
    if route(&scores, &key).if_alike([entries.0.dtype(), entries.1.dtype()]) == Route::Gpu {
        return in_one(
            scores,
            count,
            protected,
            before,
            entries,
            [key, value],
            position,
        );
    }
    let positions = match held[2] > count {
        true => entries.2.clone().narrow(2, 0, count),
        false => entries.2.clone(),
    };
    let scores = scores.tensor(&positions);
    let (victim, nans) = drop_lowest_after(scores, positions, protected, before);
    let entries = super::replace(entries, victim.clone(), key, value, position);
    Evicted {
        entries,
        victim,
        nans,
        statistics: None,
    }
}

/// Whether scores are those of `count` entries of every head that the cache holds.
fn fits(scores: &StepScores, count: usize, [batch, kv_heads, _]: [usize; 3]) -> bool {
    let row = |rows: &Tensor<4>| {
        let [sequences, heads, group, entries] = rows.dims();
        group > 0 && [sequences, heads, entries] == [batch, kv_heads, count]
    };
    let known = |known: &Tensor<3>, latest: &Tensor<4>| {
        known.dims() == [batch, kv_heads, count.saturating_sub(1)] && row(latest)
    };
    match scores {
        StepScores::Positions => true,
        StepScores::Given(scores) => scores.dims() == [batch, kv_heads, count],
        StepScores::MeanOfGroup(rows) | StepScores::MeanOfHeads(rows) => row(rows),
        StepScores::Sums(StepSums { sums, latest, .. }) => known(sums, latest),
        StepScores::Hits(StepHits { counts, latest, .. }) => known(counts, latest),
    }
}

#[cfg(feature = "cube")]
fn route(scores: &StepScores, key: &Tensor<4>) -> Route {
    match scores {
        StepScores::Positions => Route::on(&key.device()),
        StepScores::Given(scores) => Route::of(scores),
        StepScores::MeanOfGroup(rows) | StepScores::MeanOfHeads(rows) => Route::of(rows),
        StepScores::Sums(StepSums { latest, .. }) | StepScores::Hits(StepHits { latest, .. }) => {
            Route::of(latest)
        }
    }
}

#[cfg(feature = "cube")]
fn in_one(
    scores: StepScores,
    count: usize,
    protected: Protected<'_>,
    before: Nans,
    (keys, values, positions): Entries,
    [key, value]: [Tensor<4>; 2],
    position: usize,
) -> Evicted {
    let (counts, before) = before.kernel();
    let guard = protected.guard();
    let (keys, values, positions, victim, nans, statistics) = match scores {
        StepScores::Sums(StepSums { sums, latest, seen }) => {
            let (rows, seen) = (Tensor::clone(&latest), seen.unwrap_or(0));
            let (keys, values, positions, victim, nans, sums) = kernel!(StepOps::evict_summed(
                sums, rows, seen, keys, values, positions, guard, counts, key, value, position
            ));
            let statistics: Statistics = (sums, None);
            (keys, values, positions, victim, nans, Some(statistics))
        }
        StepScores::Hits(hits) => {
            let (rows, note) = (Tensor::clone(&hits.latest), hits.note);
            let (hits, words) = (hits.counts, hits.words);
            let (keys, values, positions, victim, nans, hits, words) =
                kernel!(StepOps::evict_noted(
                    hits, words, rows, note, keys, values, positions, guard, counts, key, value,
                    position
                ));
            let statistics: Statistics = (hits, Some(words));
            (keys, values, positions, victim, nans, Some(statistics))
        }
        scores => {
            let (scores, of) = match scores {
                StepScores::MeanOfGroup(rows) => (rows, ScoresOf::Group),
                StepScores::MeanOfHeads(rows) => (rows, ScoresOf::Heads),
                // The first tensor is not read.
                StepScores::Positions => (key.clone(), ScoresOf::Positions),
                other => {
                    let scores = other.tensor(&positions);
                    (scores.unsqueeze_dim::<4>(2), ScoresOf::Group)
                }
            };
            let (keys, values, positions, victim, nans) = kernel!(StepOps::evict(
                scores, of, count, keys, values, positions, guard, counts, key, value, position
            ));
            (keys, values, positions, victim, nans, None)
        }
    };
    Evicted {
        entries: (keys, values, positions),
        victim,
        nans: before.and(Nans::counted(nans)),
        statistics,
    }
}
