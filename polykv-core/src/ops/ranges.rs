//! Entries of several sequences in ranges of the same slots: on GPUs a decoded token of all of them takes as many launches as one of a
//! single sequence.

#[cfg(feature = "cube")]
use super::kernels::{RangeOps, kernel};
use super::oracle;
#[cfg(feature = "cube")]
use super::route::Route;
use crate::policy::TokenRule;
use burn::tensor::{Device, Int, Tensor};
use std::ops::Range;

/// What kernels read.
#[cfg(feature = "cube")]
pub(super) mod table;

/// The range of a KV head.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// The first slot of its own.
    pub start: usize,
    /// The first slot of the entries before its own, which others share, and how many those are; they are there only where
    /// nothing is evicted or remembered.
    pub shared_start: usize,
    pub shared: usize,
    /// All entries.
    pub len: usize,
    pub seen: usize,
    /// How many entries stay after a token; `usize::MAX` if none goes.
    pub budget: usize,
    /// What scores are made of; `None` if nothing is evicted and nothing remembered.
    pub rule: Option<TokenRule>,
    pub sinks: usize,
    pub recent: usize,
    /// Where NaN scores are counted.
    pub id: usize,
    /// Whether an entry has gone.
    pub evicted: bool,
}

impl Head {
    /// Where its entries are before a token: those that others share, and its own.
    pub fn ranges(&self) -> [Range<usize>; 2] {
        let own = self.len.saturating_sub(self.shared);
        [
            self.shared_start..self.shared_start + self.shared,
            self.start..self.start + own,
        ]
    }

    /// How many it holds within a token.
    pub fn with_newest(&self) -> usize {
        self.len + 1
    }

    /// After a token.
    pub fn advance(&mut self) {
        self.evicted |= self.with_newest() > self.budget;
        self.len = self.with_newest().min(self.budget);
        self.seen += 1;
    }

    /// After so many tokens.
    fn after(&self, tokens: usize) -> Self {
        let mut head = self.clone();
        (0..tokens).for_each(|_| head.advance());
        head
    }
}

/// The ranges of all KV heads of the sequences that are given a token together, as a device has them.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    heads: Vec<Head>,
    #[cfg(feature = "cube")]
    numbers: Tensor<2, Int>,
    /// Tokens since it was made: lengths and positions grow with them.
    steps: usize,
}

impl Table {
    /// Of the KV heads of one sequence after those of the other.
    pub fn of(heads: Vec<Head>, device: &Device) -> Self {
        #[cfg(not(feature = "cube"))]
        let _ = device;
        Self {
            #[cfg(feature = "cube")]
            numbers: table::of(&heads, device),
            heads,
            steps: 0,
        }
    }
}

/// The slots.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    /// Keys and values, `[1, 1, slots, d]`.
    pub keys: Tensor<4>,
    pub values: Tensor<4>,
    /// `[1, 1, slots]`
    pub positions: Tensor<3, Int>,
    /// Sums of attention, `[slots]`.
    pub sums: Tensor<1>,
    /// The number of NaN scores of each head by its id.
    pub nans: Tensor<1>,
}

impl Slots {
    /// A token of several sequences: `q [sequences, heads, 1, d]`, `key`, `value [sequences, kv_heads, 1, d]` → `[sequences, heads, 1,
    /// d]`. The range of every head has room for it, and the longest then has `most` entries.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn decode(
        self,
        q: Tensor<4>,
        [key, value]: [Tensor<4>; 2],
        table: &mut Table,
        most: usize,
        softcap: Option<f64>,
    ) -> (Tensor<4>, Self) {
        let [sequences, heads, tokens, d] = q.dims();
        let [_, kv_heads, ..] = key.dims();
        assert_eq!(key.dims(), [sequences, kv_heads, 1, d], "a key per head");
        assert_eq!(value.dims(), key.dims(), "a value per key");
        assert_eq!(tokens, 1, "one query per head");
        assert_eq!(table.heads.len(), sequences * kv_heads, "a range per head");
        assert!(
            heads.is_multiple_of(kv_heads),
            "{heads} query heads for {kv_heads} KV heads"
        );
        let slots = self.keys.dims()[2];
        assert!((1..=slots).contains(&most), "{most} entries of {slots}");
        let steps = table.steps;
        table.steps += 1;
        #[cfg(feature = "cube")]
        if Route::of(&q).if_alike([self.keys.dtype(), self.values.dtype()]) == Route::Gpu {
            return self.launch(q, [key, value], table, steps, most, softcap);
        }
        let heads: Vec<Head> = table.heads.iter().map(|head| head.after(steps)).collect();
        oracle::ranges::decode(self, q, [key, value], &heads, softcap)
    }

    #[cfg(feature = "cube")]
    fn launch(
        self,
        q: Tensor<4>,
        [key, value]: [Tensor<4>; 2],
        table: &Table,
        steps: usize,
        most: usize,
        softcap: Option<f64>,
    ) -> (Tensor<4>, Self) {
        let Self {
            keys,
            values,
            positions,
            sums,
            nans,
        } = self;
        let kv_heads = key.dims()[1];
        let softcap = softcap.map(|cap| cap as f32);
        let numbers = table.numbers.clone();
        let (output, rows, keys, values, positions): (Tensor<4>, Tensor<4>, _, _, _) =
            kernel!(RangeOps::attend_ranges(
                q, keys, values, positions, key, value, numbers, steps, most, softcap
            ));
        let mut slots = Self {
            keys,
            values,
            positions,
            sums,
            nans,
        };
        let forgets = |head: &Head| matches!(head.rule, None | Some(TokenRule::Forgets));
        if !table.heads.iter().all(forgets) {
            let numbers = table.numbers.clone();
            let (keys, values, positions, sums, nans) = kernel!(RangeOps::evict_ranges(
                rows,
                slots.keys,
                slots.values,
                slots.positions,
                slots.sums,
                slots.nans,
                numbers,
                steps,
                kv_heads
            ));
            slots = Self {
                keys,
                values,
                positions,
                sums,
                nans,
            };
        }
        (output, slots)
    }
}
