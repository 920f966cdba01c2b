//! Attention of grouped queries (GQA) over a cache, without expanding keys or values.

use super::attention_block::{AttentionBlock, Observer};
use super::kernels::{PromptOps, TokenOps, WindowOps, kernel};
use super::oracle;
use super::route::Route;
use crate::Result;
use burn::tensor::{Int, Tensor};

/// Causal attention of the last `t` tokens over `n` entries: query `i` sees the first `n − t + i + 1` entries.
///
/// `q [batch, heads, t, d]`, `k` and `v [batch, kv_heads, n, d]` with `heads` a multiple of `kv_heads` and `n ≥ t`;
/// the result is `[batch, heads, t, d]`. Logits are scaled by 1/√d. `observe` is called with the attention of each
/// block of queries, in order.
///
/// # Errors
/// Only those of `observe`.
///
/// # Panics
/// If the shapes do not fit.
pub fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    observe: Option<&mut Observer<'_>>,
) -> Result<Tensor<4>> {
    run(q, k, v, observe, false)
}

/// Causal attention of the last `t` tokens over `n` entries, with the shapes of [`attend`]. The column sums of each block are
/// computed along with the attention where that costs little, for observers that ask for them.
///
/// # Errors
/// Only those of `observe`.
///
/// # Panics
/// If the shapes do not fit.
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
    check(&q, &k, &v);
    let (device, group) = (q.device(), q.dims()[1] / k.dims()[1]);
    let route = Route::of(&q).if_alike([k.dtype(), v.dtype()]);
    let route = route.for_rounds(&device, rounds(&q, &k));
    // burn's GEMM is tuned for each GPU: where nobody asks for probabilities, blocks of them do.
    let unseen = q.dims()[2] > 1 && observe.is_none() && route == Route::Gpu;
    if route == Route::Plain || unseen {
        let Some(observe) = observe else {
            return oracle::attend(q, k, v, None);
        };
        let mut look = |rows| observe(&AttentionBlock::of_probabilities(rows, group));
        return oracle::attend(q, k, v, Some(&mut look));
    }
    let (output, block) = if q.dims()[2] == 1 {
        let entries = k.dims()[2];
        attend_first(q, k, v, entries)
    } else if summed {
        let (q2, k2) = (q.clone(), k.clone());
        let (output, log_sums, sums) = kernel!(PromptOps::attend_summed(q2, k2, v));
        (
            output,
            AttentionBlock::of_kernel(q, k, log_sums, Some(sums)),
        )
    } else {
        let (q2, k2) = (q.clone(), k.clone());
        let (output, log_sums) = kernel!(PromptOps::attend_prompt(q2, k2, v));
        (output, AttentionBlock::of_kernel(q, k, log_sums, None))
    };
    if let Some(observe) = observe {
        observe(&block)?;
    }
    Ok(output)
}

/// Attention of one query per head over the first `entries` (at least 1) of `k` and `v [batch, kv_heads, n, d]`: `q
/// [batch, heads, 1, d]` → the output `[batch, heads, 1, d]` and the attention. The other entries are not read.
///
/// # Panics
/// If the shapes do not fit, and for more entries than there are.
pub fn attend_first(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    entries: usize,
) -> (Tensor<4>, AttentionBlock) {
    check(&q, &k, &v);
    let [_, kv_heads, all, _] = k.dims();
    let group = q.dims()[1] / kv_heads;
    assert_eq!(q.dims()[2], 1, "one query per head");
    assert!((1..=all).contains(&entries), "{entries} entries of {all}");
    let (output, row) = match Route::of(&q).if_alike([k.dtype(), v.dtype()]) {
        Route::Plain => {
            let (k, v) = match entries == all {
                true => (k, v),
                false => (k.narrow(2, 0, entries), v.narrow(2, 0, entries)),
            };
            oracle::attend_token(q, k, v, None)
        }
        _ => kernel!(TokenOps::attend_token(q, k, v, entries)),
    };
    (output, AttentionBlock::of_probabilities(row, group))
}

/// Shapes of queries, keys and values that fit each other.
fn check(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>) {
    let ([batch, heads, tokens, d], [_, kv_heads, entries, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), [batch, kv_heads, entries, d], "keys for queries");
    assert_eq!(v.dims(), k.dims(), "a value per key");
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{heads} query heads for {kv_heads} KV heads"
    );
    assert!(
        tokens > 0 && tokens <= entries,
        "{tokens} queries for {entries} entries"
    );
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

/// Attention of one query per head over the first `lengths [batch, kv_heads]` entries of each KV head: `q [batch, heads,
/// 1, d]`, `k`, `v [batch, kv_heads, n, d]` → the output `[batch, heads, 1, d]` and the probabilities `[batch, kv_heads,
/// group, n]`, which are 0 from the length on. Lengths below 1 count as 1, those above n as n. What entries behind the
/// length hold does not matter, but it must be finite.
///
/// # Panics
/// If the shapes do not fit.
pub fn attend_lengths(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    lengths: Tensor<2, Int>,
) -> (Tensor<4>, Tensor<4>) {
    check(&q, &k, &v);
    let [batch, kv_heads, ..] = k.dims();
    assert_eq!(q.dims()[2], 1, "one query per head");
    assert_eq!(lengths.dims(), [batch, kv_heads], "a length per KV head");
    match Route::of(&q).if_alike([k.dtype(), v.dtype()]) {
        Route::Plain => oracle::attend_token(q, k, v, Some(lengths)),
        _ => kernel!(TokenOps::attend_lengths(q, k, v, lengths)),
    }
}

/// Causal attention of the last `w` queries over entries in any slot order: a query sees the entries up to its own position.
/// `seen` is the position after the last query.
///
/// `q [batch, heads, w, d]`, `k [batch, kv_heads, n, d]`, `positions [batch, kv_heads, n]` →
/// `[batch, kv_heads, group, w, n]`.
///
/// # Panics
/// If the shapes do not fit, and for more queries than `seen` tokens.
pub fn window_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    positions: Tensor<3, Int>,
    seen: usize,
) -> Tensor<5> {
    check_window(&q, &k, &positions, seen);
    oracle::window_attention(q, k, positions, seen)
}

/// The sum and the variance of each entry's attention over the last `w` queries, each the mean over the query group: `[batch,
/// kv_heads, n]`. The sum of squares is divided by w − 1; with one query the variance is 0. Arguments are those of
/// [`window_attention`].
///
/// # Panics
/// If the shapes do not fit, and for more queries than `seen` tokens.
pub fn window_score(
    q: Tensor<4>,
    k: Tensor<4>,
    positions: Tensor<3, Int>,
    seen: usize,
) -> (Tensor<3>, Tensor<3>) {
    check_window(&q, &k, &positions, seen);
    match Route::of(&q) {
        Route::Plain => oracle::window_score(q, k, positions, seen),
        _ => kernel!(WindowOps::window_score(q, k, positions, seen)),
    }
}

fn check_window(q: &Tensor<4>, k: &Tensor<4>, positions: &Tensor<3, Int>, seen: usize) {
    let ([batch, heads, window, d], [_, kv_heads, entries, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), [batch, kv_heads, entries, d], "keys for queries");
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{heads} query heads for {kv_heads} KV heads"
    );
    let dims = [batch, kv_heads, entries];
    assert_eq!(positions.dims(), dims, "a position per key");
    assert!(
        (1..=seen).contains(&window),
        "{window} queries of {seen} tokens"
    );
}

/// Attention of one query per head over all entries: `q [batch, heads, 1, d]`, `k [batch, kv_heads, n, d]` →
/// `[batch, kv_heads, group, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention_row(q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
    check(&q, &k, &k);
    let [batch, heads, tokens, _] = q.dims();
    let [_, kv_heads, entries, _] = k.dims();
    assert_eq!(tokens, 1, "one query per head");
    if Route::of(&q) != Route::Plain {
        let (_, row): (Tensor<4>, _) = kernel!(TokenOps::attend_token(q, k.clone(), k, entries));
        return row;
    }
    // All entries are visible, whatever their positions.
    let positions = Tensor::zeros([batch, kv_heads, entries], &k.device());
    let row = oracle::window_attention(q, k, positions, entries);
    row.reshape([batch, kv_heads, heads / kv_heads, entries])
}
