//! Choosing which entries stay.

use super::kernels::{self, Entries, Guard, is_cpu};
use super::{oracle, read_error};
use crate::{Error, Result};
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor, s};
use std::ops::Range;

/// Entries that a policy never evicts, by position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// The first positions of the sequence (attention sinks).
    pub sinks: usize,
    /// The latest positions.
    pub recent: usize,
}

impl Protect {
    /// The number of protected entries in a sequence long enough for both kinds.
    pub fn count(&self) -> usize {
        self.sinks.saturating_add(self.recent)
    }
}

/// The positions that no eviction may touch in a sequence of `seen` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected<'a> {
    pub protect: Protect,
    /// Ranges of positions beside those.
    pub spans: &'a [Range<usize>],
    pub seen: usize,
}

impl Protected<'_> {
    pub(super) fn contains(&self, position: i64) -> bool {
        let in_span = |span: &Range<usize>| span.contains(&(position as usize));
        position < self.protect.sinks as i64
            || position >= self.first_recent()
            || self.spans.iter().any(in_span)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.protect.count() == 0 && self.spans.is_empty()
    }

    fn first_recent(&self) -> i64 {
        self.seen as i64 - self.protect.recent as i64
    }

    /// As kernels want it.
    fn guard(&self) -> Guard {
        let spans = self.spans.iter();
        Guard {
            sinks: self.protect.sinks as i32,
            recent: self.first_recent() as i32,
            spans: spans
                .map(|span| span.start as i32..span.end as i32)
                .collect(),
        }
    }

    /// True where an entry is protected; the shape of `positions`.
    pub fn mask(&self, positions: Tensor<3, Int>) -> Tensor<3, Bool> {
        let below = |end: usize| positions.clone().lower_elem(end as i64);
        let from = |start: i64| positions.clone().greater_equal_elem(start);
        let mut mask = from(self.first_recent());
        if self.protect.sinks > 0 {
            mask = mask.bool_or(below(self.protect.sinks));
        }
        for span in self.spans {
            mask = mask.bool_or(from(span.start as i64).bool_and(below(span.end)));
        }
        mask
    }
}

/// Whether scores were NaN.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer")]
pub enum Nans {
    Known(bool),
    /// How many, `[batch, kv_heads]`, on a device that is not to be waited for.
    OnDevice(Tensor<2>),
}

impl Nans {
    /// # Errors
    /// If there are any, and a device that cannot be read.
    pub fn check(self) -> Result<()> {
        let any = match self {
            Self::Known(any) => any,
            Self::OnDevice(counts) => {
                let counts: Vec<f32> = counts.try_into_vec_as().map_err(read_error)?;
                counts.iter().any(|&count| count > 0.0)
            }
        };
        match any {
            true => Err(Error::NotFinite("an eviction score is NaN".into())),
            false => Ok(()),
        }
    }

    /// Of NaN counted per head, `[batch, kv_heads]`, which are read at once on the CPU: nothing is waited for there.
    fn counted(counts: Tensor<2>) -> Self {
        if is_cpu(&counts.device())
            && let Ok(read) = counts.clone().try_into_vec_as::<f32>()
        {
            return Self::Known(read.iter().any(|&count| count > 0.0));
        }
        Self::OnDevice(counts)
    }
}

/// The slots of the `budget` entries that stay, per sequence and head, in ascending order of position:
/// `[batch, kv_heads, budget]`. Protected entries stay first, then the highest scores; of equal scores the later
/// position stays. Waits for the device to learn whether a score is NaN; [`choose`] does not.
///
/// # Errors
/// A NaN score, and a budget that the protected entries exceed.
pub fn select(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
    budget: usize,
) -> Result<Tensor<3, Int>> {
    let (slots, nans) = choose(scores, positions, protected, budget)?;
    nans.check()?;
    Ok(slots)
}

/// As [`select`], without waiting for a GPU: whether scores are NaN is told apart, and what is chosen then means
/// nothing. On the CPU NaN scores are an error at once.
///
/// # Errors
/// As [`select`].
pub fn choose(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
    budget: usize,
) -> Result<(Tensor<3, Int>, Nans)> {
    check_budget(&scores, &positions, protected, budget)?;
    if !kernels::moves_entries(&scores.device()) {
        let slots = oracle::choice::select(scores, positions, protected, budget)?;
        return Ok((slots, Nans::Known(false)));
    }
    let (guard, seen) = (protected.guard(), protected.seen);
    let (slots, nans) = kernels::select_top(scores, positions, guard, seen, budget);
    let nans = Nans::counted(nans);
    match nans {
        Nans::Known(_) => nans.check().map(|()| (slots, Nans::Known(false))),
        Nans::OnDevice(_) => Ok((slots, nans)),
    }
}

fn check_budget(
    scores: &Tensor<3>,
    positions: &Tensor<3, Int>,
    protected: Protected<'_>,
    budget: usize,
) -> Result<()> {
    let [_, _, entries] = scores.dims();
    let spans: usize = protected.spans.iter().map(Range::len).sum();
    let mut count = protected.protect.count() + spans;
    // Plans promise more room than this; only others need to know how many of the protected are still there.
    if count > budget {
        let counts = protected.mask(positions.clone()).int().sum_dim(2);
        let counts: Vec<i64> = counts.try_into_vec_as().map_err(read_error)?;
        count = counts.into_iter().max().unwrap_or(0) as usize;
    }
    if budget >= count.max(1) && budget <= entries {
        return Ok(());
    }
    let allowed = format!(
        "{} (protected entries) to {entries} (cached entries)",
        count.max(1)
    );
    Err(Error::invalid("eviction", "budget", budget, allowed))
}

/// The slots of `0..entries` that `slots [batch, kv_heads, count]` leaves out, ascending: `[batch, kv_heads, entries −
/// count]`, without waiting for a device that has kernels.
///
/// # Errors
/// A device that cannot be read.
pub fn rest(slots: &Tensor<3, Int>, entries: usize) -> Result<Tensor<3, Int>> {
    let [batch, kv_heads, count] = slots.dims();
    let device = slots.device();
    let dims = [batch, kv_heads, entries];
    let free = Tensor::<3>::ones(dims, &device);
    let taken = Tensor::zeros(slots.dims(), &device);
    let free = free.scatter(2, slots.clone(), taken, IndexingUpdateOp::Assign);
    let all = Tensor::<1, Int>::arange(0..entries as i64, &device)
        .reshape([1, 1, entries])
        .expand(dims);
    let nothing = Protected {
        protect: Protect::default(),
        spans: &[],
        seen: entries,
    };
    // Nothing is NaN here.
    Ok(choose(free, all, nothing, entries - count)?.0)
}

/// The slot of the lowest unprotected score per sequence and head, `[batch, kv_heads, 1]`, without leaving the
/// device, and whether scores are NaN; of equal scores the earlier position goes. The caller guarantees that some entry
/// is unprotected.
pub fn drop_lowest(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
) -> (Tensor<3, Int>, Nans) {
    let device = scores.device();
    if kernels::moves_entries(&device) {
        let (slots, nans) = kernels::lowest(scores, positions, protected.guard());
        return (slots, Nans::counted(nans));
    }
    let [batch, kv_heads, _] = scores.dims();
    let nans = scores.clone().is_nan().int().sum_dim(2).float();
    let slots = oracle::choice::lowest(scores, positions, protected);
    (slots, Nans::OnDevice(nans.reshape([batch, kv_heads])))
}

/// Gathers entries: `tensor [batch, kv_heads, n, d]` at `slots [batch, kv_heads, m]`.
pub fn take(tensor: Tensor<4>, slots: Tensor<3, Int>) -> Tensor<4> {
    let [batch, kv_heads, _, d] = tensor.dims();
    let count = slots.dims()[2];
    let index = slots
        .unsqueeze_dim::<4>(3)
        .expand([batch, kv_heads, count, d]);
    tensor.gather(2, index)
}

/// Overwrites entries, in place while the tensor is not shared: `tensor [batch, kv_heads, n, d]` at the different
/// `slots [batch, kv_heads, m]` becomes `entries [batch, kv_heads, m, d]`.
pub fn put(tensor: Tensor<4>, slots: Tensor<3, Int>, entries: Tensor<4>) -> Tensor<4> {
    let dims = entries.dims();
    let index = slots.unsqueeze_dim::<4>(3).expand(dims);
    tensor.scatter(2, index, entries, IndexingUpdateOp::Assign)
}

/// The entries at `slots [batch, kv_heads, m]`, in that order, in tensors with room for `capacity` of them; what follows
/// is zero.
pub fn compact(entries: Entries, slots: Tensor<3, Int>, capacity: usize) -> Entries {
    let (keys, values, positions) = entries;
    if kernels::moves_entries(&keys.device()) {
        return kernels::compact(keys, values, positions, slots, capacity);
    }
    let kept = (
        take(keys, slots.clone()),
        take(values, slots.clone()),
        positions.gather(2, slots),
    );
    grow(kept, capacity)
}

/// The entries in tensors with room for `capacity` of them; what follows is zero.
pub fn grow((keys, values, positions): Entries, capacity: usize) -> Entries {
    let grown = |old: Tensor<4>| {
        let [batch, kv_heads, count, d] = old.dims();
        Tensor::zeros([batch, kv_heads, capacity, d], (&old.device(), old.dtype()))
            .slice_assign(s![.., .., 0..count, ..], old)
    };
    let [batch, kv_heads, count] = positions.dims();
    let room = Tensor::zeros([batch, kv_heads, capacity], &positions.device());
    let positions = room.slice_assign(s![.., .., 0..count], positions);
    (grown(keys), grown(values), positions)
}

/// Overwrites the entry in slot `victim [batch, kv_heads, 1]` by `key` and `value [batch, kv_heads, 1, head_dim]`, in the
/// type that is stored or f32, at `position`, in place while the tensors are not shared.
pub fn replace(
    entries: Entries,
    victim: Tensor<3, Int>,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    if kernels::moves_entries(&victim.device()) {
        return kernels::replace_entry(entries, victim, key, value, position);
    }
    let (keys, values, positions) = entries;
    let moved = victim.full_like(position as i64);
    let (key, value) = (key.cast(keys.dtype()), value.cast(values.dtype()));
    (
        put(keys, victim.clone(), key),
        put(values, victim.clone(), value),
        positions.scatter(2, victim, moved, IndexingUpdateOp::Assign),
    )
}

/// As [`replace`] in the same slot of all heads.
pub fn write(
    entries: Entries,
    slot: usize,
    key: Tensor<4>,
    value: Tensor<4>,
    position: usize,
) -> Entries {
    let device = entries.2.device();
    if kernels::moves_entries(&device) {
        return kernels::write_entry(entries, slot, key, value, position);
    }
    let [batch, kv_heads, _] = entries.2.dims();
    let slots = Tensor::full([batch, kv_heads, 1], slot as i64, &device);
    replace(entries, slots, key, value, position)
}

/// What is remembered of each entry, `[batch, kv_heads, n, ..]`, after the last entry has moved into the slot `victim
/// [batch, kv_heads, 1]`: `n − 1` entries.
pub fn move_last<const D: usize>(statistics: Tensor<D>, victim: Tensor<3, Int>) -> Tensor<D> {
    match kernels::moves_entries(&victim.device()) {
        true => kernels::move_last(statistics, victim),
        false => oracle::choice::move_last(statistics, victim),
    }
}

/// The slots in order of position, `order [batch, kv_heads, n]`, without that of `victim [batch, kv_heads, 1]`: `[batch,
/// kv_heads, n − 1]`; if `moved`, for entries the last of which has moved there.
pub fn drop_from_order(
    order: Tensor<3, Int>,
    victim: Tensor<3, Int>,
    moved: bool,
) -> Tensor<3, Int> {
    match kernels::moves_entries(&victim.device()) {
        true => kernels::drop_from_order(order, victim, moved),
        false => oracle::choice::drop_from_order(order, victim, moved),
    }
}

/// The slots in order of position, `order [batch, kv_heads, n]`, with `count` new ones, which have the latest positions,
/// behind them: `[batch, kv_heads, n + count]`.
pub fn extend_order(order: Tensor<3, Int>, count: usize) -> Tensor<3, Int> {
    match kernels::moves_entries(&order.device()) {
        true => kernels::extend_order(order, count),
        false => oracle::choice::extend_order(order, count),
    }
}
