use super::Appended;
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
    /// Statistics of whole sequences, of any shape. Evictions do not change them.
    pub sequence: Vec<Tensor<4>>,
    /// Numbers that the policy keeps on the host, such as the number of queries so far.
    pub counts: Vec<usize>,
    /// The memories of the policies that this policy is made of.
    pub members: Vec<State>,
}

impl State {
    /// Extends every statistic per entry by zeros for the appended entries.
    pub fn extend_with_zeros(&mut self, appended: &Appended) {
        let tokens = appended.positions.len();
        for tensor in &mut self.entries {
            let [batch, kv_heads, _] = tensor.dims();
            let like = (&appended.device, tensor.dtype());
            let zeros = Tensor::zeros([batch, kv_heads, tokens], like);
            tensor.inplace(|old| Tensor::cat(vec![old, zeros], 2));
        }
        for tensor in &mut self.rows {
            let [batch, kv_heads, _, width] = tensor.dims();
            let like = (&appended.device, tensor.dtype());
            let zeros = Tensor::zeros([batch, kv_heads, tokens, width], like);
            tensor.inplace(|old| Tensor::cat(vec![old, zeros], 2));
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

    /// Follows a compaction to `slots [batch, kv_heads, count]`.
    pub(crate) fn keep(&mut self, slots: &Tensor<3, Int>) {
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

    /// Bytes of all statistics on the device.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(ops::bytes).sum::<usize>()
            + self.rows.iter().map(ops::bytes).sum::<usize>()
            + self.sequence.iter().map(ops::bytes).sum::<usize>()
            + self.members.iter().map(Self::bytes).sum::<usize>()
    }
}
