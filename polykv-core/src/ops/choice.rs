//! Choosing which entries stay.

use super::kernels::{ChoiceOps, Counts, kernel};
use super::oracle;
use super::protect::{Guard, Protected};
use super::route::{Route, is_cpu};
use super::tensor::read_error;
use crate::{Error, Result};
use burn::backend::Dispatch;
use burn::tensor::{Bool, IndexingUpdateOp, Int, Tensor};

/// Whether scores were NaN, as far as the host knows.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer")]
pub enum Nans {
    /// The host knows: true if a score was NaN.
    Known(bool),
    /// The number of NaN scores, `[batch, kv_heads]`, on a device that has not been waited for.
    OnDevice(Tensor<2>),
}

impl Nans {
    /// Checks that no score was NaN, and waits for the device if the host does not know yet.
    ///
    /// # Errors
    /// A NaN score, and a device that cannot be read.
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

    /// Whether scores of either were.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(false), other) => other,
            (own, Self::Known(false)) => own,
            (Self::OnDevice(own), Self::OnDevice(other)) => Self::OnDevice(own.add(other)),
            _ => Self::Known(true),
        }
    }

    /// The counts on a device in the form that kernels take, and what the host knows.
    pub(super) fn kernel(self) -> (Counts<Dispatch>, Self) {
        match self {
            Self::OnDevice(counts) => {
                let counts = counts.into_dispatch();
                (Counts::Known { counts }, Self::Known(false))
            }
            known => (Counts::None, known),
        }
    }

    /// From the number of NaN scores per head, `[batch, kv_heads]`. It is read at once on the CPU, where nothing has to be
    /// waited for.
    pub(super) fn counted(counts: Tensor<2>) -> Self {
        if is_cpu(&counts.device())
            && let Ok(read) = counts.clone().try_into_vec_as::<f32>()
        {
            return Self::Known(read.iter().any(|&count| count > 0.0));
        }
        Self::OnDevice(counts)
    }
}

/// The slots of the `budget` entries that stay, per sequence and head, in ascending order of position: `scores` and
/// `positions [batch, kv_heads, n]` → `[batch, kv_heads, budget]`. Protected entries stay first, then the highest
/// scores; of equal scores the later position stays. The positions of a head must differ and be below `protected.seen`;
/// for others the result is undefined. It waits for the device to check the scores for NaN; [`choose`] does not.
///
/// # Errors
/// A NaN score, and a budget that the protected entries exceed.
///
/// # Panics
/// If the shapes differ.
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

/// The slots of the `budget` entries that stay, with the arguments and the order of [`select`], without waiting for a GPU.
/// Whether a score is NaN is the second result; if one is, the slots are undefined. On the CPU NaN scores are an error at
/// once.
///
/// # Errors
/// A budget that the protected entries exceed; on the CPU also a NaN score.
///
/// # Panics
/// If the shapes differ.
pub fn choose(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
    budget: usize,
) -> Result<(Tensor<3, Int>, Nans)> {
    check_budget(&scores, &positions, protected, budget)?;
    if Route::of(&scores) == Route::Plain {
        let slots = oracle::choice::select(scores, positions, protected, budget)?;
        return Ok((slots, Nans::Known(false)));
    }
    let (guard, seen) = (protected.guard(), protected.seen);
    let (slots, nans) = kernel!(ChoiceOps::select_top(
        scores, positions, guard, seen, budget
    ));
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
    let dims @ [_, _, entries] = scores.dims();
    assert_eq!(positions.dims(), dims, "a position per score");
    let mut count = protected.count();
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

/// The slots below `entries` that `slots [batch, kv_heads, count]` leaves out, ascending: `[batch, kv_heads, entries −
/// count]`. Does not wait for a device that has kernels.
///
/// # Errors
/// A device that cannot be read.
pub(crate) fn rest(slots: &Tensor<3, Int>, entries: usize) -> Result<Tensor<3, Int>> {
    let [batch, kv_heads, count] = slots.dims();
    let device = slots.device();
    let dims = [batch, kv_heads, entries];
    let free = Tensor::<3>::ones(dims, &device);
    let taken = Tensor::zeros(slots.dims(), &device);
    let free = free.scatter(2, slots.clone(), taken, IndexingUpdateOp::Assign);
    let all = Tensor::<1, Int>::arange(0..entries as i64, &device)
        .reshape([1, 1, entries])
        .expand(dims);
    let nothing = Protected::nothing(entries);
    // Nothing is NaN here.
    Ok(choose(free, all, nothing, entries - count)?.0)
}

/// The slot of the lowest unprotected score per sequence and head, and whether a score is NaN: `scores` and `positions
/// [batch, kv_heads, n]` → `[batch, kv_heads, 1]`. Of equal scores the earlier position is chosen. If all entries are
/// protected, the slot is undefined. It does not wait for the device.
///
/// # Panics
/// If the shapes differ, and without entries.
pub fn drop_lowest(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
) -> (Tensor<3, Int>, Nans) {
    let dims @ [_, _, entries] = scores.dims();
    assert_eq!(positions.dims(), dims, "a position per score");
    assert!(entries > 0, "at least one entry");
    drop_lowest_after(scores, positions, protected, Nans::Known(false))
}

/// [`drop_lowest`] whose second result tells of scores `before`, too.
pub(crate) fn drop_lowest_after(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    protected: Protected<'_>,
    before: Nans,
) -> (Tensor<3, Int>, Nans) {
    let [batch, kv_heads, _] = scores.dims();
    if Route::of(&scores) == Route::Plain {
        let nans = scores.clone().is_nan().int().sum_dim(2).float();
        let nans = Nans::OnDevice(nans.reshape([batch, kv_heads]));
        let slots = oracle::choice::lowest(scores, positions, protected);
        return (slots, before.and(nans));
    }
    let guard = protected.guard();
    let (counts, before) = before.kernel();
    let (slots, nans) = kernel!(ChoiceOps::lowest(scores, positions, guard, counts));
    (slots, before.and(Nans::counted(nans)))
}

/// True for the `count` highest scores per sequence and head, for policies that choose in stages: `scores` and `positions
/// [batch, kv_heads, n]` → `[batch, kv_heads, n]`. Of equal scores the later positions are chosen. The positions of a head
/// must differ and be below `seen`; for others the result is undefined. It does not wait for the device.
///
/// # Panics
/// If the shapes differ.
pub fn top(
    scores: Tensor<3>,
    positions: Tensor<3, Int>,
    seen: usize,
    count: usize,
) -> Tensor<3, Bool> {
    let dims @ [_, _, entries] = scores.dims();
    assert_eq!(positions.dims(), dims, "a position per score");
    if Route::of(&scores) == Route::Plain || count == 0 || count >= entries {
        return oracle::choice::top(scores, positions, count);
    }
    let (all, guard) = (scores.clone(), Guard::none());
    let (slots, _): (_, Tensor<2>) =
        kernel!(ChoiceOps::select_top(all, positions, guard, seen, count));
    let slots: Tensor<3, Int> = slots;
    let ones = Tensor::ones(slots.dims(), &scores.device());
    scores
        .zeros_like()
        .scatter(2, slots, ones, IndexingUpdateOp::Assign)
        .greater_elem(0.5)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn both_ways_choose_the_same_entries() {
        let device = Device::flex();
        for (entries, count) in [(1, 1), (9, 4), (300, 257), (300, 0), (5, 5)] {
            // Few different scores, so that ties are common, and positions in descending order.
            let scores = Tensor::<3>::random([2, 2, entries], Distribution::Default, &device);
            let scores = scores.mul_scalar(6.0).floor();
            let positions = Tensor::<1, Int>::arange(0..entries as i64, &device)
                .flip([0])
                .reshape([1, 1, entries])
                .expand([2, 2, entries]);
            let found = top(scores.clone(), positions.clone(), entries, count);
            let wanted = oracle::choice::top(scores, positions, count);
            let per_head = found.clone().int().sum_dim(2);
            let per_head: Vec<i64> = per_head.try_into_vec_as().unwrap();
            assert_eq!(per_head, vec![count as i64; 4]);
            let apart = found.not_equal(wanted).any();
            assert!(!apart.into_scalar::<bool>(), "{count} of {entries}");
        }
    }

    #[test]
    fn of_equal_scores_the_later_positions_are_taken() {
        let device = Device::flex();
        let scores = Tensor::<3>::from_data([[[1.0, 3.0, 1.0, 1.0]]], &device);
        let positions = Tensor::<3, Int>::from_data([[[8, 2, 9, 5]]], &device);
        let taken: Vec<i64> = top(scores, positions, 10, 3)
            .int()
            .try_into_vec_as()
            .unwrap();
        assert_eq!(taken, [1, 1, 1, 0]);
    }

    #[test]
    fn the_rest_is_what_the_slots_leave_out() {
        let device = Device::flex();
        let slots = Tensor::<3, Int>::from_data([[[4, 0], [1, 2]]], &device);
        let others: Vec<i64> = rest(&slots, 5).unwrap().try_into_vec_as().unwrap();
        assert_eq!(others, [1, 2, 3, 0, 3, 4]);
    }
}
