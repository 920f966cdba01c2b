//! The few entries beside the codes that stay in floats.

use crate::ops::kernels::{CodeOps, kernel};
use crate::ops::route::Route;
use crate::ops::{bytes, oracle, take, write};
use burn::tensor::{Bool, IndexingUpdateOp, Int, IntDType, Tensor};

/// The first tokens of a sequence: attention goes to them from everywhere, and their keys are unlike all others.
const SINKS: usize = 1;

/// The latest entries, which the next tokens attend to most.
const RECENT: usize = Exact::RECENT;

/// Keys and values in floats of some entries of each head, which are in codes as well.
#[derive(Clone, Debug)]
pub(crate) struct Exact {
    /// `[batch, kv_heads, Exact::COUNT, head_dim]`
    pub keys: Tensor<4>,
    pub values: Tensor<4>,
    /// Where they are among the entries, `[batch, kv_heads, Exact::COUNT]`; −1 for none.
    pub slots: Tensor<3, Int>,
    /// Which of the recent ones the next entry takes the place of.
    pub next: usize,
}

impl Exact {
    /// Entries of each head that stay in floats.
    pub const COUNT: usize = SINKS + RECENT;

    /// Of these the latest.
    pub const RECENT: usize = 8;

    /// The first and the latest of entries in floats, `[batch, kv_heads, n, head_dim]`, whose `positions [batch, kv_heads,
    /// count]` are those of the first `count`.
    pub fn of([keys, values]: [&Tensor<4>; 2], positions: &Tensor<3, Int>) -> Self {
        let slots = Tensor::cat(vec![first(positions), latest(positions)], 2);
        let places = slots.clone().clamp_min(0);
        Self {
            keys: take(keys.clone(), places.clone()),
            values: take(values.clone(), places),
            slots,
            next: 0,
        }
    }

    pub fn bytes(&self) -> usize {
        bytes(&self.keys).saturating_add(bytes(&self.values))
    }

    pub fn of_head(&self, row: usize, head: usize) -> Self {
        let of = |all: &Tensor<4>| all.clone().narrow(0, row, 1).narrow(1, head, 1);
        Self {
            keys: of(&self.keys),
            values: of(&self.values),
            slots: self.slots.clone().narrow(0, row, 1).narrow(1, head, 1),
            next: self.next,
        }
    }

    /// A new entry in the same slot of all heads, `[batch, kv_heads, 1, head_dim]` each, takes the oldest one's place.
    pub fn push(&mut self, slot: usize, key: Tensor<4>, value: Tensor<4>) {
        let place = SINKS + self.next;
        self.next = (self.next + 1) % RECENT;
        let [keys, values] = [&mut self.keys, &mut self.values].map(Tensor::extract);
        // To an operator on entries these are entries, whose positions are slots.
        let rows = (keys, values, self.slots.extract());
        (self.keys, self.values, self.slots) = write(rows, place, key, value, slot);
    }

    /// The entry in slot `last` of all heads has moved into the slot of each head's victim `[batch, kv_heads, 1]`, which is gone.
    pub fn replace(&mut self, victims: Tensor<3, Int>, last: usize) {
        let slots = self.slots.extract();
        self.slots = match Route::on(&slots.device()) {
            Route::Plain => oracle::codes::move_exact(slots, victims, last),
            _ => kernel!(CodeOps::move_exact(slots, victims, last)),
        };
    }

    /// Only the entries in `kept [batch, kv_heads, count]` stay, in this order.
    pub fn keep(&mut self, kept: &Tensor<3, Int>) {
        let same = self.are(kept).int();
        let dims @ [.., count] = same.dims();
        let ranks = Tensor::<1, Int>::arange(1..count as i64 + 1, &kept.device());
        let dtype = IntDType::from(self.slots.dtype());
        let ranks = ranks
            .cast(IntDType::from(same.dtype()))
            .reshape([1, 1, 1, count]);
        let places = (same * ranks.expand(dims)).max_dim(3);
        self.slots = places.squeeze_dim::<3>(3).sub_scalar(1).cast(dtype);
    }

    /// Entries in `changed [batch, kv_heads, count]` are no longer what they were.
    pub fn forget(&mut self, changed: &Tensor<3, Int>) {
        let found = self.are(changed).any_dim(3).squeeze_dim::<3>(3);
        self.slots.inplace(|slots| slots.mask_fill(found, -1));
    }

    /// The same of the first `count` entries.
    pub fn forget_first(&mut self, count: usize) {
        self.slots
            .inplace(|slots| slots.clone().mask_fill(slots.lower_elem(count as i64), -1));
    }

    /// Takes the keys anew from all entries in floats, `[batch, kv_heads, n, head_dim]`.
    pub fn set_keys(&mut self, keys: &Tensor<4>) {
        let places = self.slots.clone().clamp_min(0);
        self.keys = take(keys.clone(), places).cast(self.keys.dtype());
    }

    /// Which of the slots are those in `others [batch, kv_heads, count]`: `[batch, kv_heads, Exact::COUNT, count]`.
    fn are(&self, others: &Tensor<3, Int>) -> Tensor<4, Bool> {
        let [batch, kv_heads, count] = others.dims();
        let dims = [batch, kv_heads, Self::COUNT, count];
        let others = others.clone().cast(IntDType::from(self.slots.dtype()));
        let others = others.unsqueeze_dim::<4>(2).expand(dims);
        let slots = self.slots.clone().unsqueeze_dim::<4>(3).expand(dims);
        slots.equal(others)
    }
}

/// The slots of the first tokens among entries at `positions [batch, kv_heads, n]`, `[batch, kv_heads, SINKS]`; −1 where they are not
/// held.
fn first(positions: &Tensor<3, Int>) -> Tensor<3, Int> {
    let [batch, kv_heads, count] = positions.dims();
    let dtype = IntDType::from(positions.dtype());
    let ranks = Tensor::<1, Int>::arange(1..count as i64 + 1, &positions.device());
    let ranks = ranks.cast(dtype).reshape([1, 1, count]);
    let ranks = ranks.expand([batch, kv_heads, count]);
    let slots = (0..SINKS).map(|sink| {
        let others = positions.clone().not_equal_elem(sink as i64);
        let place = ranks.clone().mask_fill(others, 0).max_dim(2);
        place.sub_scalar(1)
    });
    Tensor::cat(slots.collect(), 2)
}

/// The slots of the latest other tokens, `[batch, kv_heads, RECENT]`, the oldest first: it is the next to go. −1 in front where there are
/// not so many.
fn latest(positions: &Tensor<3, Int>) -> Tensor<3, Int> {
    let dtype = IntDType::from(positions.dtype());
    let sinks = positions.clone().lower_elem(SINKS as i64);
    let mut left = positions.clone().mask_fill(sinks, -1);
    let mut slots: Vec<Tensor<3, Int>> = Vec::with_capacity(RECENT);
    for _ in 0..RECENT {
        let slot = left.clone().argmax(2).cast(dtype);
        let position = left.clone().gather(2, slot.clone());
        let taken = slot.full_like(-1);
        left = left.scatter(2, slot.clone(), taken, IndexingUpdateOp::Assign);
        slots.push(slot.mask_fill(position.lower_elem(0), -1));
    }
    slots.reverse();
    Tensor::cat(slots, 2)
}
