//! The attention that each entry has been paid by all queries so far, mean over the query group: the first statistic per entry of
//! several policies.

use super::{Appended, State};
use crate::ops::{self, AttentionBlock, StepSums};
use burn::tensor::Tensor;
use std::sync::{Arc, OnceLock};

/// What the sums lack while a token is decoded on a GPU: an eviction adds it in the kernel that evicts.
#[derive(Clone, Debug, Default)]
pub struct Latest {
    /// Whether the newest entry has no sum yet.
    new: bool,
    /// The attention of the latest query, `[batch, kv_heads, group, entries]`.
    row: Option<Arc<Tensor<4>>>,
    /// The sums with both, once somebody has asked for them.
    all: OnceLock<Tensor<3>>,
}

impl State {
    /// Appends zeros for new entries to the sums of attention, which are the first of [`State::entries`].
    pub(super) fn append_sums(&mut self, appended: &Appended) {
        self.settle();
        let decoded = appended.positions.len() == 1 && self.entries.len() == 1;
        match decoded && ops::is_cube(&appended.device) {
            true => self.latest.new = true,
            false => self.append_zeros(appended),
        }
    }

    /// Adds the attention that a block of queries pays to each entry.
    pub(super) fn observe_sums(&mut self, block: &AttentionBlock) {
        #[cfg(feature = "cube")]
        if self.latest.new
            && let Some(row) = block.single()
            && self.latest.row.is_none()
        {
            self.latest.row = Some(Arc::new(row.clone()));
            return;
        }
        self.settle();
        self.entries[0].inplace(|sums| block.add_to(sums));
    }

    /// The sums of attention, `[batch, kv_heads, entries]`.
    pub(super) fn sums(&self) -> Tensor<3> {
        let Latest { new, row, all } = &self.latest;
        let known = &self.entries[0];
        match (row, new) {
            (Some(row), _) => all
                .get_or_init(|| ops::add_latest(known.clone(), row))
                .clone(),
            (None, true) => all.get_or_init(|| ops::extend(known.clone(), 1)).clone(),
            (None, false) => known.clone(),
        }
    }

    /// The sums in the form in which an eviction adds the latest attention itself, divided by the number of queries that could
    /// see an entry if `seen` tells how many there were; nothing if it has been added.
    pub(super) fn step_sums(&self, seen: Option<usize>) -> Option<StepSums> {
        let latest = self.latest.row.clone()?;
        let sums = self.entries[0].clone();
        Some(StepSums { sums, latest, seen })
    }

    /// Brings the sums up to date.
    pub(crate) fn settle(&mut self) {
        if self.latest.new || self.latest.row.is_some() {
            self.entries[0] = self.sums();
            self.latest = Latest::default();
        }
        self.members.iter_mut().for_each(Self::settle);
    }

    /// Takes out the sums if `latest` is what they lack: an eviction has made new ones.
    pub(crate) fn take_sums(&mut self, latest: &Arc<Tensor<4>>) -> bool {
        let own = self.latest.row.as_ref();
        let same = own.is_some_and(|own| Arc::ptr_eq(own, latest));
        if same {
            self.entries.remove(0);
            self.latest = Latest::default();
        }
        same
    }
}
