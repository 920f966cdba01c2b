//! The latest queries of a layer.

use crate::ops;
use burn::tensor::{Tensor, s};

/// Queries in a buffer with free room at its end. New queries are written there in place; when it is full, the latest ones
/// move to its start. On GPUs, where each step of that is a launch, a decoded token makes a new buffer in one.
#[derive(Clone, Debug, Default)]
pub(super) struct Queries {
    /// `[batch, heads, capacity, head_dim]`
    buffer: Option<Tensor<4>>,
    len: usize,
}

impl Queries {
    /// A buffer that holds exactly `queries [batch, heads, tokens, head_dim]`.
    pub fn of(queries: Tensor<4>) -> Self {
        let len = queries.dims()[2];
        Self {
            buffer: Some(queries),
            len,
        }
    }

    /// The queries of the heads of one KV head of `kv_heads`, in one row.
    pub fn of_head(&self, row: usize, head: usize, kv_heads: usize) -> Self {
        self.latest(self.len).map_or_else(Self::default, |queries| {
            let group = queries.dims()[1].checked_div(kv_heads).unwrap_or(0);
            let row = queries.narrow(0, row, 1);
            Self::of(row.narrow(1, head.saturating_mul(group), group))
        })
    }

    /// Appends `new [batch, heads, tokens, head_dim]` and keeps at least the latest `count` of all queries.
    pub fn remember(&mut self, new: &Tensor<4>, count: usize) {
        let [batch, heads, tokens, d] = new.dims();
        if tokens == count {
            *self = Self::of(new.clone());
            return;
        }
        if tokens == 1
            && let Some(latest) = self.latest(count).filter(|held| held.dims()[2] == count)
            && let Some(pushed) = ops::push(&latest, new)
        {
            *self = Self::of(pushed);
            return;
        }
        let kept = count.saturating_sub(tokens).min(self.len);
        let added = tokens.min(count);
        // A part of `new` would hold all of it in memory.
        let added_queries = match added == tokens {
            true => new.clone(),
            false => new.clone().narrow(2, tokens.saturating_sub(added), added),
        };
        let fits = |buffer: &Tensor<4>| self.len.saturating_add(tokens) <= buffer.dims()[2];
        if kept > 0 && self.buffer.as_ref().is_some_and(fits) {
            let slots = self.len..self.len.saturating_add(added);
            self.len = slots.end;
            if let Some(buffer) = &mut self.buffer {
                buffer.inplace(|t| t.slice_assign(s![.., .., slots, ..], added_queries));
            }
            return;
        }
        // Room grows with what has arrived: `count` may be far more than a sequence will ever hold.
        let len = kept.saturating_add(added);
        let most = count.saturating_add((count / 4).max(1));
        let capacity = len.saturating_mul(2).max(16).min(most);
        let room = Tensor::zeros([batch, heads, capacity, d], &new.device());
        let mut room = room.slice_assign(s![.., .., kept..len, ..], added_queries);
        if let Some(old) = self.latest(kept) {
            room = room.slice_assign(s![.., .., 0..kept, ..], old);
        }
        self.buffer = Some(room);
        self.len = len;
    }

    /// The last `count` queries, or all if there are fewer; `None` if there are none.
    pub fn latest(&self, count: usize) -> Option<Tensor<4>> {
        let count = count.min(self.len);
        match &self.buffer {
            Some(buffer) if count > 0 => {
                let start = self.len.saturating_sub(count);
                Some(buffer.clone().narrow(2, start, count))
            }
            _ => None,
        }
    }

    pub fn bytes(&self) -> usize {
        self.buffer.as_ref().map_or(0, ops::bytes)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    #[test]
    fn the_latest_stay_whatever_arrives_at_a_time() {
        let device = Device::flex();
        for count in [1, 2, 5, 9] {
            let mut queries = Queries::default();
            let mut seen = 0i64;
            for tokens in [3, 1, 1, 9, 1, 1, 1, 1, 1, 5, 2, 1, 20, 1, 1] {
                let new = Tensor::<1, Int>::arange(seen..seen + tokens, &device)
                    .float()
                    .reshape([1, 1, tokens as usize, 1]);
                seen += tokens;
                queries.remember(&new, count);
                let held = count.min(seen as usize);
                let latest = queries.latest(count).unwrap();
                assert_eq!(latest.dims(), [1, 1, held, 1]);
                let latest: Vec<f32> = latest.try_into_vec_as().unwrap();
                let wanted = seen - held as i64..seen;
                assert_eq!(latest, wanted.map(|x| x as f32).collect::<Vec<_>>());
                assert!(queries.bytes() <= 4 * (count + (count / 4).max(1)));
            }
        }
        assert!(Queries::default().latest(3).is_none());
    }
}
