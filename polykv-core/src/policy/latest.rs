//! The row of attention of a decoded token on a GPU, which waits for the kernel that evicts: there it is added to statistics at no
//! launch of its own.

use super::{Appended, State};
use crate::ops::{self, AttentionBlock, HitNote, Statistics, StepHits, StepSums};
use burn::tensor::Tensor;
use std::sync::{Arc, OnceLock};

/// What the first statistic per entry lacks within a token.
#[derive(Clone, Debug, Default)]
pub struct Latest {
    /// Whether the newest entry has no statistics yet.
    new: bool,
    /// The attention of the latest query, `[batch, kv_heads, group, entries]`.
    row: Option<Arc<Tensor<4>>>,
    /// Where its hits go, if statistics are made of hits; else it is added to sums.
    note: Option<HitNote>,
    /// The statistics with both, once somebody has asked for them.
    all: OnceLock<Statistics>,
}

impl State {
    /// Appends zeros for new entries to statistics to which rows are added: to the sums of attention, which are the first of
    /// [`State::entries`], or to the counts of hits there and their words in [`State::rows`].
    pub(super) fn append_lazily(&mut self, appended: &Appended) {
        self.settle();
        let decoded = appended.positions.len() == 1 && self.entries.len() == 1;
        match decoded && ops::is_cube(&appended.device) {
            true => self.latest.new = true,
            false => self.append_zeros(appended),
        }
    }

    /// Whether the row of a decoded token's block waits from now on.
    fn waits(&mut self, block: &AttentionBlock, note: Option<HitNote>) -> bool {
        #[cfg(feature = "cube")]
        if self.latest.new
            && self.latest.row.is_none()
            // An even share is one of the entries that a window shows.
            && (note.is_none() || block.is_without_window())
            && let Some(row) = block.single()
        {
            self.latest.row = Some(Arc::new(row.clone()));
            self.latest.note = note;
            return true;
        }
        let _ = (block, note);
        self.settle();
        false
    }

    /// Adds the attention that a block of queries pays to each entry to the sums of it.
    pub(super) fn observe_sums(&mut self, block: &AttentionBlock) {
        if !self.waits(block, None) {
            self.entries[0].inplace(|sums| block.add_to(sums));
        }
    }

    /// Notes the hits of a block of one query, if they can wait.
    pub(super) fn note_hits(&mut self, block: &AttentionBlock, note: HitNote) -> bool {
        self.waits(block, Some(note))
    }

    /// Sums of attention or counts of hits, `[batch, kv_heads, entries]`.
    pub(super) fn sums(&self) -> Tensor<3> {
        match self.latest.new {
            true => self.latest.all.get_or_init(|| self.with_latest()).0.clone(),
            false => self.entries[0].clone(),
        }
    }

    fn with_latest(&self) -> Statistics {
        let known = self.entries[0].clone();
        match (&self.latest.row, self.step_hits()) {
            (None, _) => {
                let words = self.rows.first();
                let words = words.map(|words| ops::extend(words.clone(), 1));
                (ops::extend(known, 1), words)
            }
            (Some(_), Some(hits)) => {
                let (counts, words) = hits.noted();
                (counts, Some(words))
            }
            (Some(row), None) => (ops::add_latest(known, row), None),
        }
    }

    /// The sums in the form in which an eviction adds the latest attention itself, divided by the number of queries that could
    /// see an entry if `seen` tells how many there were; nothing if it has been added.
    pub(super) fn step_sums(&self, seen: Option<usize>) -> Option<StepSums> {
        let latest = self.latest.row.clone()?;
        let sums = self.entries[0].clone();
        Some(StepSums { sums, latest, seen })
    }

    /// The counts in the form in which an eviction adds the latest hits itself; nothing if they have been added.
    pub(super) fn step_hits(&self) -> Option<StepHits> {
        Some(StepHits {
            counts: self.entries[0].clone(),
            words: self.rows.first()?.clone(),
            latest: self.latest.row.clone()?,
            note: self.latest.note?,
        })
    }

    /// Brings the statistics up to date.
    pub(crate) fn settle(&mut self) {
        if self.latest.new {
            let latest = std::mem::take(&mut self.latest.all).into_inner();
            let statistics = latest.unwrap_or_else(|| self.with_latest());
            self.clear_latest();
            self.put_statistics(statistics);
        }
        self.members.iter_mut().for_each(Self::settle);
    }

    /// Takes the statistics out to which `latest` was to be added, if it is theirs: an eviction has made new ones.
    pub(crate) fn take_statistics(&mut self, latest: &Arc<Tensor<4>>) -> bool {
        let own = self.latest.row.as_ref();
        let same = own.is_some_and(|own| Arc::ptr_eq(own, latest));
        if same {
            self.clear_latest();
        }
        same
    }

    fn clear_latest(&mut self) {
        self.latest = Latest::default();
        self.entries.clear();
        self.rows.clear();
    }

    /// Puts in what was taken out, brought up to date.
    pub(crate) fn put_statistics(&mut self, (sums, words): Statistics) {
        self.entries.push(sums);
        self.rows.extend(words);
    }
}
