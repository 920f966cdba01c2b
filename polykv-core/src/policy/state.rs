use super::Appended;
use super::latest::Latest;
use crate::ops;
use burn::tensor::{Int, Tensor};

/// What a policy remembers of the sequences of a batch in one layer.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct State {
    /// Statistics per entry, each `[batch, kv_heads, entries]` in slot order. The cache moves and drops them together with
    /// the entries.
    pub entries: Vec<Tensor<3>>,
    /// Statistics of `width` numbers per entry, each `[batch, kv_heads, entries, width]` in slot order. The cache moves and
    /// drops them together with the entries.
    pub rows: Vec<Tensor<4>>,
    /// Statistics of whole sequences, `[batch, heads or kv_heads, ..]`. Evictions do not change them.
    pub sequence: Vec<Tensor<4>>,
    /// Numbers that the policy keeps on the host, such as the number of queries so far.
    pub counts: Vec<usize>,
    /// The memories of the policies that this policy is made of.
    pub members: Vec<State>,
    /// What the first statistic per entry lacks, within a decoded token.
    pub(super) latest: Latest,
}

impl State {
    /// Extends every statistic per entry by zeros for the appended entries; without any, one of zeros becomes the first.
    pub(super) fn append_zeros(&mut self, appended: &Appended) {
        if !self.entries.is_empty() {
            return self.extend_with_zeros(appended);
        }
        let [batch, kv_heads] = [appended.shape.batch, appended.shape.kv_heads];
        let entries = appended.before + appended.positions.len();
        let zeros = Tensor::zeros([batch, kv_heads, entries], &appended.device);
        self.entries.push(zeros);
    }

    /// Extends every statistic per entry by zeros for the appended entries.
    pub fn extend_with_zeros(&mut self, appended: &Appended) {
        let tokens = appended.positions.len();
        self.extend_each(|_| tokens);
    }

    /// Extends every statistic per entry by zeros to so many entries.
    pub(crate) fn extend_to(&mut self, entries: usize) {
        self.extend_each(|held| entries.saturating_sub(held));
        let members = self.members.iter_mut();
        members.for_each(|member| member.extend_to(entries));
    }

    /// Extends every statistic per entry by as many zeros as `new` says for one of so many entries.
    fn extend_each(&mut self, new: impl Fn(usize) -> usize) {
        for tensor in &mut self.entries {
            let new = new(tensor.dims()[2]);
            tensor.inplace(|old| ops::extend(old, new));
        }
        for tensor in &mut self.rows {
            let new = new(tensor.dims()[2]);
            tensor.inplace(|old| ops::extend(old, new));
        }
    }

    /// Extends the last tensor of [`State::entries`] by the values of the appended entries, `new [batch, kv_heads, tokens]`.
    /// Without any tensor, `new` becomes the first.
    pub fn extend_with(&mut self, new: Tensor<3>) {
        let all = match self.entries.pop() {
            Some(old) => Tensor::cat(vec![old, new], 2),
            None => new,
        };
        self.entries.push(all);
    }

    /// What is remembered of one KV head of `kv_heads` in one row.
    pub(crate) fn of_head(&self, row: usize, head: usize, kv_heads: usize) -> Self {
        let sequence = self.sequence.iter().map(|tensor| {
            let count = (tensor.dims()[1] / kv_heads).max(1);
            tensor
                .clone()
                .narrow(0, row, 1)
                .narrow(1, head * count, count)
        });
        let entries = self.entries.iter().cloned();
        let rows = self.rows.iter().cloned();
        let members = self.members.iter();
        Self {
            entries: entries
                .map(|t| t.narrow(0, row, 1).narrow(1, head, 1))
                .collect(),
            rows: rows
                .map(|t| t.narrow(0, row, 1).narrow(1, head, 1))
                .collect(),
            sequence: sequence.collect(),
            counts: self.counts.clone(),
            members: members
                .map(|member| member.of_head(row, head, kv_heads))
                .collect(),
            latest: Latest::default(),
        }
    }

    /// Follows a compaction to `slots [batch, kv_heads, count]`.
    pub(crate) fn keep(&mut self, slots: &Tensor<3, Int>) {
        self.settle();
        for tensor in &mut self.entries {
            tensor.inplace(|t| t.gather(2, slots.clone()));
        }
        for tensor in &mut self.rows {
            tensor.inplace(|t| ops::take(t, slots.clone()));
        }
        self.members
            .iter_mut()
            .for_each(|member| member.keep(slots));
    }

    /// Follows the move of the last entry into the slot `victim [batch, kv_heads, 1]`.
    pub(crate) fn replace(&mut self, victim: &Tensor<3, Int>) {
        self.settle();
        for tensor in &mut self.entries {
            tensor.inplace(|t| ops::move_last(t, victim.clone()));
        }
        for tensor in &mut self.rows {
            tensor.inplace(|t| ops::move_last(t, victim.clone()));
        }
        self.members
            .iter_mut()
            .for_each(|member| member.replace(victim));
    }

    /// Checks that there are the tensors of `like`, of the same types and shapes but for the number of entries, and as many
    /// counts, each at most `most`.
    ///
    /// # Errors
    /// What differs, in words.
    pub fn check_like(&self, like: &Self, most: usize) -> std::result::Result<(), String> {
        let entries = |state: &Self| {
            let shape = |tensor: &Tensor<3>| {
                let [batch, kv_heads, _] = tensor.dims();
                format!("{:?} {:?}", tensor.dtype(), [batch, kv_heads])
            };
            state.entries.iter().map(shape).collect::<Vec<_>>()
        };
        let rows = |state: &Self| {
            let shape = |tensor: &Tensor<4>| {
                let [batch, kv_heads, _, width] = tensor.dims();
                format!("{:?} {:?}", tensor.dtype(), [batch, kv_heads, width])
            };
            state.rows.iter().map(shape).collect::<Vec<_>>()
        };
        let sequence = |state: &Self| {
            let shape = |tensor: &Tensor<4>| format!("{:?} {:?}", tensor.dtype(), tensor.dims());
            state.sequence.iter().map(shape).collect::<Vec<_>>()
        };
        for (what, found, wanted) in [
            ("statistics", entries(self), entries(like)),
            ("rows", rows(self), rows(like)),
            ("statistics of the sequence", sequence(self), sequence(like)),
        ] {
            if found != wanted {
                return Err(format!("{what} {found:?} instead of {wanted:?}"));
            }
        }
        if self.counts.len() != like.counts.len() {
            let (found, wanted) = (self.counts.len(), like.counts.len());
            return Err(format!("{found} counts instead of {wanted}"));
        }
        if let Some(count) = self.counts.iter().find(|&&count| count > most) {
            return Err(format!("a count of {count} instead of at most {most}"));
        }
        if self.members.len() != like.members.len() {
            let (found, wanted) = (self.members.len(), like.members.len());
            return Err(format!("{found} members instead of {wanted}"));
        }
        let mut members = self.members.iter().zip(&like.members);
        members.try_for_each(|(member, like)| member.check_like(like, most))
    }

    /// Bytes of all statistics on the device.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(ops::bytes).sum::<usize>()
            + self.rows.iter().map(ops::bytes).sum::<usize>()
            + self.sequence.iter().map(ops::bytes).sum::<usize>()
            + self.members.iter().map(Self::bytes).sum::<usize>()
    }
}
