//! Attention of grouped queries over a cache, without expanding keys or values.

use super::{kernels, oracle};
use crate::Result;
use burn::tensor::{Int, Tensor, s};
use std::cell::OnceCell;
use std::ops::Range;

/// The attention of consecutive queries over the entries that the last of them sees. Policies ask it for what they
/// need of the probabilities; the matrix itself need not exist.
#[derive(Clone, Debug)]
pub struct AttentionBlock {
    source: Source,
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
    /// The logarithm of each query's sum of exponentials.
    log_sums: Tensor<3>,
}

/// Receives the attention of each block of queries.
pub type Observer<'a> = dyn FnMut(&AttentionBlock) -> Result<()> + 'a;

impl AttentionBlock {
    pub(super) fn of_probabilities(rows: Tensor<4>, group: usize) -> Self {
        Self {
            source: Source::Probabilities { rows, group },
            sums: OnceCell::new(),
        }
    }

    /// Attention received per entry: sum over the block's queries, mean over the query group.
    /// `[batch, kv_heads, entries]`.
    pub fn column_sums(&self) -> Tensor<3> {
        let sums = || match &self.source {
            Source::Probabilities { rows, group } => oracle::column_sums(rows.clone(), *group),
            Source::Kernel(from) => {
                kernels::column_sums(from.q.clone(), from.k.clone(), from.log_sums.clone())
            }
        };
        self.sums.get_or_init(sums).clone()
    }

    /// How many queries the block has.
    pub fn tokens(&self) -> usize {
        match &self.source {
            Source::Probabilities { rows, group } => rows.dims()[2] / group,
            Source::Kernel(from) => from.q.dims()[2],
        }
    }

    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        match &self.source {
            Source::Probabilities { group, .. } => *group,
            Source::Kernel(from) => from.q.dims()[1] / from.k.dims()[1],
        }
    }

    /// How many entries the block's last query sees.
    pub fn entries(&self) -> usize {
        match &self.source {
            Source::Probabilities { rows, .. } => rows.dims()[3],
            Source::Kernel(from) => from.k.dims()[2],
        }
    }

    /// Per entry, of some of the block's queries: how many query heads of the group gave it an even part of their
    /// attention or more, as digits of `bits` bits, the first query's lowest, all in the 24 bits that an f32 holds; and
    /// the sum of these numbers. `[batch, kv_heads, entries that the last of the queries sees]`.
    pub fn hits(&self, queries: Range<usize>, bits: usize) -> (Tensor<3>, Tensor<3>) {
        match &self.source {
            Source::Probabilities { rows, group } => {
                oracle::attention_hits(rows.clone(), *group, queries, bits)
            }
            Source::Kernel(from) => {
                let (q, k) = (from.q.clone(), from.k.clone());
                kernels::attention_hits(q, k, from.log_sums.clone(), queries, bits)
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
                let entries = from.k.dims()[2];
                kernels::attend_token(last, from.k.clone(), from.k.clone(), entries).1
            }
        }
    }
}

/// Causal attention, aligned at the end: query `i` of `t` sees the first `n − t + i + 1` entries.
///
/// `q [batch, heads, t, d]`, `k` and `v [batch, kv_heads, n, d]` with `heads` a multiple of `kv_heads` and `n ≥ t`;
/// the result is `[batch, heads, t, d]`. Scores are scaled by 1/√d. `observe` is called with the attention of each
/// block of queries, in order.
///
/// # Errors
/// Only those of `observe`.
pub fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    observe: Option<&mut Observer<'_>>,
) -> Result<Tensor<4>> {
    run(q, k, v, observe, false)
}

/// As [`attend`], for an observer that asks each block for its column sums.
///
/// # Errors
/// Only those of `observe`.
pub fn attend_summed(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    observe: &mut Observer<'_>,
) -> Result<Tensor<4>> {
    run(q, k, v, Some(observe), true)
}

fn run(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    observe: Option<&mut Observer<'_>>,
    summed: bool,
) -> Result<Tensor<4>> {
    // Stock products of many rows are tuned for each GPU: where nobody asks for probabilities, blocks of them do.
    let stock = q.dims()[2] > 1 && observe.is_none() && kernels::is_cube(&q.device());
    let kernel = kernels::has_kernels(&q) && kernels::has_rounds(&q.device(), rounds(&q, &k));
    if stock || !kernel {
        return oracle::attend(q, k, v, observe);
    }
    let (output, block) = if q.dims()[2] == 1 {
        let entries = k.dims()[2];
        attend_first(q, k, v, entries)
    } else {
        let (q2, k2) = (q.clone(), k.clone());
        let (output, log_sums, sums) = match summed {
            true => {
                let (output, log_sums, sums) = kernels::attend_summed(q2, k2, v);
                (output, log_sums, OnceCell::from(sums))
            }
            false => {
                let (output, log_sums) = kernels::attend_prompt(q2, k2, v);
                (output, log_sums, OnceCell::new())
            }
        };
        let source = Source::Kernel(Kernel { q, k, log_sums });
        (output, AttentionBlock { source, sums })
    };
    if let Some(observe) = observe {
        observe(&block)?;
    }
    Ok(output)
}

/// Attention of one query per head over the first `entries` of `k` and `v [batch, kv_heads, n, d]`: `q [batch, heads, 1,
/// d]` → the output like `q`, and the attention. What the others hold does not matter.
pub fn attend_first(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    entries: usize,
) -> (Tensor<4>, AttentionBlock) {
    let [batch, kv_heads, all, _] = k.dims();
    let group = q.dims()[1] / kv_heads;
    let (output, row) = match kernels::has_kernels(&q) {
        true => kernels::attend_token(q, k, v, entries),
        false => {
            let (k, v) = match entries == all {
                true => (k, v),
                false => (k.narrow(2, 0, entries), v.narrow(2, 0, entries)),
            };
            let lengths = Tensor::full([batch, kv_heads], entries as i64, &q.device());
            oracle::attend_lengths(q, k, v, lengths)
        }
    };
    (output, AttentionBlock::of_probabilities(row, group))
}

/// How many rounds a unit of the GPU kernels takes at most: per key its products and sums by four elements, or per query
/// of a group.
fn rounds(q: &Tensor<4>, k: &Tensor<4>) -> usize {
    let [_, heads, tokens, d] = q.dims();
    let [_, kv_heads, entries, _] = k.dims();
    let words = match d.is_multiple_of(4) {
        true => d / 4,
        false => d,
    };
    match tokens {
        // Long caches are split over cubes.
        1 => 0,
        _ => (entries * (2 * words + 3)).max(heads / kv_heads * tokens * (words + 1)),
    }
}

/// Attention of one query per head over the first `lengths [batch, kv_heads]` entries of each KV head, from 1 to n of
/// them: `q [batch, heads, 1, d]`, `k`, `v [batch, kv_heads, n, d]` → the output `[batch, heads, 1, d]` and the
/// probabilities `[batch, kv_heads, group, n]`, which are 0 from the length on. What entries there hold does not matter,
/// but it must be finite.
pub fn attend_lengths(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    lengths: Tensor<2, Int>,
) -> (Tensor<4>, Tensor<4>) {
    match kernels::has_kernels(&q) {
        true => kernels::attend_lengths(q, k, v, lengths),
        false => oracle::attend_lengths(q, k, v, lengths),
    }
}

/// Attention of the last `w` queries over cached entries in any slot order; an entry is visible to a query of its own
/// or a later position. `seen` is the position after the last query.
///
/// `q [batch, heads, w, d]`, `k [batch, kv_heads, n, d]`, `positions [batch, kv_heads, n]` →
/// `[batch, kv_heads, group, w, n]`.
pub fn window_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    positions: Tensor<3, Int>,
    seen: usize,
) -> Tensor<5> {
    oracle::window_attention(q, k, positions, seen)
}

/// What the last `w` queries pay attention to, as [`window_attention`]: per entry the sum over them and the variance
/// over them (divided by w − 1; of one query 0), each a mean over the query group: `[batch, kv_heads, n]`.
pub fn window_score(
    q: Tensor<4>,
    k: Tensor<4>,
    positions: Tensor<3, Int>,
    seen: usize,
) -> (Tensor<3>, Tensor<3>) {
    match kernels::has_kernels(&q) {
        true => kernels::window_score(q, k, positions, seen),
        false => oracle::window_score(q, k, positions, seen),
    }
}

/// Attention of one query per head over all entries: `q [batch, heads, 1, d]`, `k [batch, kv_heads, n, d]` →
/// `[batch, kv_heads, group, n]`.
pub fn attention_row(q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
    let [batch, heads, _, _] = q.dims();
    let [_, kv_heads, entries, _] = k.dims();
    if kernels::has_kernels(&q) {
        return kernels::attend_token(q, k.clone(), k, entries).1;
    }
    // All entries are visible, whatever their positions.
    let positions = Tensor::zeros([batch, kv_heads, entries], &k.device());
    let row = oracle::window_attention(q, k, positions, entries);
    row.reshape([batch, kv_heads, heads / kv_heads, entries])
}
