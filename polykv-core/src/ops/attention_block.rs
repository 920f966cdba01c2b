//! Statistics of the attention that was just computed, for policies.

use super::kernels::{HitOps, PromptOps, TokenOps, kernel};
use super::mask::Mask;
use super::oracle;
#[cfg(feature = "cube")]
use super::route::Route;
use crate::Result;
use burn::tensor::{Tensor, s};
use std::cell::OnceCell;
use std::ops::Range;

/// The attention of consecutive queries over the entries that the last of them sees. Policies ask for its sums, hits or last
/// row; the whole matrix of probabilities need not exist.
#[derive(Clone, Debug)]
pub struct AttentionBlock {
    source: Source,
    mask: Mask,
    /// Computed once: plans and blends may ask for them several times.
    sums: OnceCell<Tensor<3>>,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a block lives for one call")]
enum Source {
    /// `[batch, kv_heads, group * tokens, entries]`, rows grouped by query head.
    Probabilities {
        rows: Tensor<4>,
        group: usize,
    },
    Kernel(Kernel),
}

/// What the probabilities can be computed from again.
#[derive(Clone, Debug)]
struct Kernel {
    q: Tensor<4>,
    k: Tensor<4>,
    /// The log-sum-exp of each query's scores, `[batch, heads, tokens]`.
    log_sums: Tensor<3>,
}

/// How far below the average, as a logarithm, attention still counts as a hit: the rounding of scores in f32.
const HIT_SLACK: f64 = 1e-6;

/// A function that is called with the attention of each block of queries.
pub type Observer<'a> = dyn FnMut(&AttentionBlock) -> Result<()> + 'a;

impl AttentionBlock {
    pub(super) fn of_probabilities(rows: Tensor<4>, group: usize, mask: Mask) -> Self {
        Self {
            source: Source::Probabilities { rows, group },
            mask,
            sums: OnceCell::new(),
        }
    }

    /// From queries, keys and the queries' log-sum-exp; `sums` are the column sums if they are known already.
    pub(super) fn of_kernel(
        q: Tensor<4>,
        k: Tensor<4>,
        log_sums: Tensor<3>,
        sums: Option<Tensor<3>>,
        mask: Mask,
    ) -> Self {
        Self {
            source: Source::Kernel(Kernel { q, k, log_sums }),
            mask,
            sums: sums.map_or_else(OnceCell::new, OnceCell::from),
        }
    }

    /// The attention of each entry, summed over the block's queries, mean over the query group: `[batch, kv_heads, entries]`.
    pub fn column_sums(&self) -> Tensor<3> {
        let sums = || match &self.source {
            Source::Probabilities { rows, group } => oracle::column_sums(rows.clone(), *group),
            Source::Kernel(from) => {
                let (q, k, log_sums) = (from.q.clone(), from.k.clone(), from.log_sums.clone());
                kernel!(PromptOps::column_sums(q, k, log_sums, self.mask.kernel()))
            }
        };
        self.sums.get_or_init(sums).clone()
    }

    /// The most attention that any query of the block and of the query group pays to each entry: `[batch, kv_heads, entries]`.
    pub fn column_max(&self) -> Tensor<3> {
        match &self.source {
            Source::Probabilities { rows, .. } => oracle::column_max(rows.clone()),
            Source::Kernel(from) => {
                let (q, k, log_sums) = (from.q.clone(), from.k.clone(), from.log_sums.clone());
                kernel!(PromptOps::column_max(q, k, log_sums, self.mask.kernel()))
            }
        }
    }

    /// `sums [batch, kv_heads, n]` with [`AttentionBlock::column_sums`] added to those of the first entries.
    ///
    /// # Panics
    /// If there are more entries than sums.
    pub fn add_to(&self, sums: Tensor<3>) -> Tensor<3> {
        #[cfg(feature = "cube")]
        if let Some(rows) = self.single()
            && let [batch, kv_heads, _, entries] = rows.dims()
            && sums.dims() == [batch, kv_heads, entries]
        {
            return super::add_latest(sums, rows);
        }
        let own = self.column_sums();
        let seen = own.dims()[2];
        match sums.dims()[2] == seen {
            true => sums + own,
            false => {
                let updated = sums.clone().slice(s![.., .., 0..seen]) + own;
                sums.slice_assign(s![.., .., 0..seen], updated)
            }
        }
    }

    /// The probabilities of a block of one query, `[batch, kv_heads, group, entries]`, where kernels add them to sums.
    #[cfg(feature = "cube")]
    pub(crate) fn single(&self) -> Option<&Tensor<4>> {
        match &self.source {
            Source::Probabilities { rows, group } if rows.dims()[2] == *group => {
                Some(rows).filter(|rows| Route::of(rows) == Route::Gpu)
            }
            _ => None,
        }
    }

    /// Whether no window hides entries from the block's queries.
    #[cfg(feature = "cube")]
    pub(crate) fn is_without_window(&self) -> bool {
        self.mask.window().is_none()
    }

    /// The number of queries in the block.
    pub fn tokens(&self) -> usize {
        match &self.source {
            Source::Probabilities { rows, group } => rows.dims()[2] / group,
            Source::Kernel(from) => from.q.dims()[2],
        }
    }

    /// The number of query heads per KV head.
    pub fn group(&self) -> usize {
        match &self.source {
            Source::Probabilities { group, .. } => *group,
            Source::Kernel(from) => from.q.dims()[1] / from.k.dims()[1],
        }
    }

    /// The number of entries that the block's last query sees.
    pub fn entries(&self) -> usize {
        match &self.source {
            Source::Probabilities { rows, .. } => rows.dims()[3],
            Source::Kernel(from) => from.k.dims()[2],
        }
    }

    /// For each entry and each of `queries`, the number of query heads of the group that pay it at least the average of their
    /// attention, which is 1 over the number of entries that the query sees. The first tensor holds the numbers of an entry
    /// packed into an f32 as digits of `bits` bits, the first query's digit lowest; they must fit its 24 bits. The second
    /// tensor is their sum. Both are `[batch, kv_heads, entries that the last of the queries sees]`.
    ///
    /// # Panics
    /// If the block has no such queries.
    pub fn hits(&self, queries: Range<usize>, bits: usize) -> (Tensor<3>, Tensor<3>) {
        let tokens = self.tokens();
        assert!(
            queries.start < queries.end && queries.end <= tokens,
            "queries {queries:?} of {tokens}"
        );
        let (entries, first, count) = (self.entries(), queries.start, queries.len());
        match &self.source {
            Source::Probabilities { rows, group } => {
                let device = rows.device();
                let counts = self.mask.counts(entries, tokens, queries.clone(), &device);
                oracle::attention_hits(rows.clone(), *group, queries, bits, counts)
            }
            Source::Kernel(from) => {
                let (q, k) = (from.q.clone(), from.k.clone());
                let ([batch, heads, ..], [_, kv_heads, ..]) = (q.dims(), k.dims());
                let counts = self.mask.counts(entries, tokens, queries, &q.device());
                let averages = counts.log().add_scalar(HIT_SLACK).unsqueeze_dim::<4>(2);
                let least = from.log_sums.clone().narrow(2, first, count);
                let least = least.reshape([batch, kv_heads, heads / kv_heads, count]);
                let least = (least - averages).reshape([batch, heads, count]);
                let mask = self.mask.kernel();
                kernel!(HitOps::attention_hits(
                    q, k, least, first, count, bits, mask
                ))
            }
        }
    }

    /// The attention of the block's last query: `[batch, kv_heads, group, entries]`.
    pub fn last_row(&self) -> Tensor<4> {
        match &self.source {
            Source::Probabilities { rows, group } => {
                let [batch, kv_heads, count, entries] = rows.dims();
                let tokens = count / group;
                if tokens == 1 {
                    return rows.clone();
                }
                rows.clone()
                    .reshape([batch, kv_heads, *group, tokens, entries])
                    .slice(s![.., .., .., tokens - 1..tokens, ..])
                    .reshape([batch, kv_heads, *group, entries])
            }
            Source::Kernel(from) => {
                let last = from.q.clone().narrow(2, from.q.dims()[2] - 1, 1);
                let (k, v, entries) = (from.k.clone(), from.k.clone(), from.k.dims()[2]);
                let mask = self.mask.kernel();
                let (_, row): (Tensor<4>, _) =
                    kernel!(TokenOps::attend_token(last, k, v, entries, mask));
                row
            }
        }
    }
}
