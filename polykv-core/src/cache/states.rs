//! The states of the policies of a layer's two phases.

use crate::Result;
use crate::ops::AttentionBlock;
use crate::phase::Phase;
use crate::plan::{Eviction, LayerEvictions};
use crate::policy::{Appended, State};
use burn::tensor::{Int, Tensor};

/// A state for the policy of each phase, or one for both if both phases evict by the same policy.
#[derive(Clone, Debug, Default)]
pub(super) struct States {
    prefill: State,
    decode: State,
    pub shared: bool,
    /// How far each entry's rotary position lies behind the position that the layer counts, `[batch, kv_heads, entries]`;
    /// nothing while that is nowhere.
    behind: State,
}

impl States {
    /// Tells the policies of entries that have been appended.
    ///
    /// # Errors
    /// Those of the policies.
    pub fn append(&mut self, rules: &LayerEvictions, appended: &Appended) -> Result<()> {
        self.with(rules)
            .try_for_each(|(rule, state)| rule.policy.append(state, appended))
    }

    /// Passes a block of attention to the policies that ask for it.
    ///
    /// # Errors
    /// Those of the policies.
    pub fn observe(&mut self, rules: &LayerEvictions, block: &AttentionBlock) -> Result<()> {
        self.with(rules)
            .filter(|(rule, _)| rule.policy.needs().attention)
            .try_for_each(|(rule, state)| rule.policy.observe(state, block))
    }

    /// Passes a block of attention of the prompt's repetition to the policies that ask for it.
    ///
    /// # Errors
    /// Those of the policies.
    pub fn observe_repetition(
        &mut self,
        rules: &LayerEvictions,
        block: &AttentionBlock,
    ) -> Result<()> {
        self.with(rules)
            .filter(|(rule, _)| rule.policy.needs().repetition)
            .try_for_each(|(rule, state)| rule.policy.observe_repetition(state, block))
    }

    /// Brings all statistics up to date.
    pub fn settle(&mut self) {
        self.prefill.settle();
        self.decode.settle();
    }

    /// The state that is kept for one phase; if both share one, it is that of the prefill.
    pub fn own(&self, phase: Phase) -> &State {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// Replaces the state that is kept for one phase.
    pub fn set(&mut self, phase: Phase, state: State) {
        match phase {
            Phase::Prefill => self.prefill = state,
            Phase::Decode => self.decode = state,
        }
    }

    /// How far entries lie behind, if any do.
    pub fn behind(&self) -> Option<Tensor<3>> {
        self.behind.entries.first().cloned()
    }

    pub fn set_behind(&mut self, behind: Tensor<3>) {
        self.behind.entries = vec![behind];
    }

    /// Appends entries that lie `shift` behind, if any do.
    pub fn append_behind(&mut self, tokens: usize, shift: usize) {
        if let Some(behind) = self.behind.entries.first() {
            let [batch, kv_heads, _] = behind.dims();
            let new = Tensor::full([batch, kv_heads, tokens], shift as f32, &behind.device());
            self.behind.extend_with(new);
        }
    }

    /// The states of one KV head of `kv_heads` in one row.
    pub fn of_head(&self, row: usize, head: usize, kv_heads: usize) -> Self {
        Self {
            prefill: self.prefill.of_head(row, head, kv_heads),
            decode: self.decode.of_head(row, head, kv_heads),
            shared: self.shared,
            behind: self.behind.of_head(row, head, kv_heads),
        }
    }

    pub fn of(&self, phase: Phase) -> &State {
        match phase {
            Phase::Decode if !self.shared => &self.decode,
            _ => &self.prefill,
        }
    }

    pub fn of_mut(&mut self, phase: Phase) -> &mut State {
        match phase {
            Phase::Decode if !self.shared => &mut self.decode,
            _ => &mut self.prefill,
        }
    }

    /// Follows a compaction to `slots [batch, kv_heads, count]`.
    pub fn keep(&mut self, slots: &Tensor<3, Int>) {
        self.prefill.keep(slots);
        self.decode.keep(slots);
        self.behind.keep(slots);
    }

    /// Follows the move of the last entry into the slot `victim [batch, kv_heads, 1]`.
    pub fn replace(&mut self, victim: &Tensor<3, Int>) {
        self.prefill.replace(victim);
        self.decode.replace(victim);
        self.behind.replace(victim);
    }

    /// Whether all statistics per entry are the sums of one phase's policy, or need not follow any eviction.
    pub fn fit(&self, sums_of: Option<Phase>, evicts: bool) -> bool {
        let sums = sums_of.map(|phase| self.of(phase));
        Phase::BOTH.map(|phase| self.own(phase)).iter().all(|own| {
            let more = !own.rows.is_empty() || !own.members.is_empty();
            match sums.is_some_and(|sums| std::ptr::eq(sums, *own)) {
                true => own.entries.len() == 1 && !more,
                false => !evicts || own.entries.is_empty() && !more,
            }
        })
    }

    /// Appends zeros for entries that a policy was not told of.
    pub fn extend_to(&mut self, entries: usize) {
        self.prefill.extend_to(entries);
        self.decode.extend_to(entries);
    }

    pub fn bytes(&self) -> usize {
        let own = self.prefill.bytes().saturating_add(self.decode.bytes());
        own.saturating_add(self.behind.bytes())
    }

    /// The policies that evict, each with its state.
    fn with<'a>(
        &'a mut self,
        rules: &'a LayerEvictions,
    ) -> impl Iterator<Item = (&'a Eviction, &'a mut State)> {
        let prefill = rules
            .prefill
            .as_ref()
            .map(|eviction| (eviction, &mut self.prefill));
        let decode = match self.shared {
            true => None,
            false => rules
                .decode
                .as_ref()
                .map(|eviction| (eviction, &mut self.decode)),
        };
        prefill.into_iter().chain(decode)
    }
}
