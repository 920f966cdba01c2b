//! Attention of grouped queries (GQA) over a cache, without expanding keys or values.

use super::attention_block::{AttentionBlock, Observer};
#[cfg(feature = "cube")]
use super::entries::Entries;
#[cfg(feature = "cube")]
use super::kernels::StepOps;
use super::kernels::{PromptOps, TokenOps, WindowOps, kernel};
use super::mask::{Mask, Places};
use super::oracle;
use super::route::Route;
use crate::Result;
use burn::tensor::{DType, Int, Tensor};

/// Causal attention of the last `t` tokens over `n` entries: query `i` sees those of the first `n − t + i + 1` entries that
/// `mask` lets it see.
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
    mask: &Mask,
    observe: Option<&mut Observer<'_>>,
) -> Result<Tensor<4>> {
    run(q, k, v, mask, observe, false)
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
    mask: &Mask,
    observe: &mut Observer<'_>,
) -> Result<Tensor<4>> {
    run(q, k, v, mask, Some(observe), true)
}

fn run(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &Mask,
    observe: Option<&mut Observer<'_>>,
    summed: bool,
) -> Result<Tensor<4>> {
    check(&q, &k, &v, mask);
    let (device, group) = (q.device(), q.dims()[1] / k.dims()[1]);
    let route = Route::of(&q).if_alike([k.dtype(), v.dtype()]);
    let route = route.for_rounds(&device, rounds(&q, &k));
    // burn's GEMM is tuned for each GPU: where nobody asks for probabilities, blocks of them do.
    let unseen = q.dims()[2] > 1 && observe.is_none() && route == Route::Gpu;
    if route == Route::Plain || unseen {
        let Some(observe) = observe else {
            return oracle::attend(q, k, v, mask, None);
        };
        let entries = k.dims()[2];
        let mut look = |rows: Tensor<4>| {
            // A block ends with the entry of its last query.
            let mask = mask.before(entries - rows.dims()[3]);
            observe(&AttentionBlock::of_probabilities(rows, group, mask))
        };
        return oracle::attend(q, k, v, mask, Some(&mut look));
    }
    let (output, block) = if q.dims()[2] == 1 {
        let entries = k.dims()[2];
        attend_first(q, k, v, entries, mask)
    } else if summed {
        let (q2, k2) = (q.clone(), k.clone());
        let (output, log_sums, sums) = kernel!(PromptOps::attend_summed(q2, k2, v, mask.kernel()));
        (
            output,
            AttentionBlock::of_kernel(q, k, log_sums, Some(sums), mask.clone()),
        )
    } else {
        let (q2, k2) = (q.clone(), k.clone());
        let (output, log_sums) = kernel!(PromptOps::attend_prompt(q2, k2, v, mask.kernel()));
        (
            output,
            AttentionBlock::of_kernel(q, k, log_sums, None, mask.clone()),
        )
    };
    if let Some(observe) = observe {
        observe(&block)?;
    }
    Ok(output)
}

/// Attention of one query per head over the first `entries` (at least 1) of `k` and `v [batch, kv_heads, n, d]`: `q
/// [batch, heads, 1, d]` → the output `[batch, heads, 1, d]` and the attention. The other entries are not read. A mask has
/// places of the first `entries` only.
///
/// # Panics
/// If the shapes do not fit, and for more entries than there are.
pub fn attend_first(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    entries: usize,
    mask: &Mask,
) -> (Tensor<4>, AttentionBlock) {
    check(&q, &k, &v, &Mask::default());
    let [batch, kv_heads, all, _] = k.dims();
    let group = q.dims()[1] / kv_heads;
    assert_eq!(q.dims()[2], 1, "one query per head");
    assert!((1..=all).contains(&entries), "{entries} entries of {all}");
    mask.check([batch, kv_heads, entries], 1);
    let (output, row) = match Route::of(&q).if_alike([k.dtype(), v.dtype()]) {
        Route::Plain => {
            let (k, v) = match entries == all {
                true => (k, v),
                false => (k.narrow(2, 0, entries), v.narrow(2, 0, entries)),
            };
            oracle::attend_token(q, k, v, None, mask)
        }
        _ => kernel!(TokenOps::attend_token(q, k, v, entries, mask.kernel())),
    };
    let block = AttentionBlock::of_probabilities(row, group, mask.clone());
    (output, block)
}

/// [`attend_first`] over all entries of `before` and then over all of `own`, each keys and values of the same heads, without a
/// window. On the CPU neither is copied.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn attend_behind(
    q: Tensor<4>,
    before: [Tensor<4>; 2],
    own: [Tensor<4>; 2],
    mask: &Mask,
) -> (Tensor<4>, AttentionBlock) {
    check(&q, &before[0], &before[1], &Mask::default());
    check(&q, &own[0], &own[1], &Mask::default());
    assert!(mask.window().is_none(), "no window");
    #[cfg(feature = "flex")]
    {
        let [k, v] = &before;
        let [more_k, more_v] = &own;
        let types = [k, v, more_k, more_v].map(Tensor::dtype);
        if Route::of(&q).if_alike(types) == Route::Cpu {
            let group = q.dims()[1] / k.dims()[1];
            let softcap = mask.softcap.map(|cap| cap as f32);
            let (output, row) = super::flex::token::attend_behind(q, before, own, softcap);
            let block = AttentionBlock::of_probabilities(row, group, mask.clone());
            return (output, block);
        }
    }
    let [k, v] = before;
    let [more_k, more_v] = own;
    let (k, v) = (
        Tensor::cat(vec![k, more_k], 2),
        Tensor::cat(vec![v, more_v], 2),
    );
    let entries = k.dims()[2];
    attend_first(q, k, v, entries, mask)
}

/// Whether [`attend_new`] is one kernel with what follows it.
pub(crate) fn attends_new(q: &Tensor<4>, types: [DType; 2]) -> bool {
    Route::of(q).if_alike(types) == Route::Gpu
}

/// Writes an entry, `key` and `value [batch, kv_heads, 1, d]` in the type that is stored or in f32, at `position` into slot `n − 1` of
/// all heads, then [`attend_first`] over the first `n` of the entries, which no window leaves any of out.
///
/// # Panics
/// If the shapes do not fit.
#[cfg(feature = "cube")]
pub(crate) fn attend_new(
    q: Tensor<4>,
    entries: Entries,
    [key, value]: [Tensor<4>; 2],
    n: usize,
    position: usize,
    mask: &Mask,
) -> (Tensor<4>, AttentionBlock, Entries) {
    check(&q, &entries.0, &entries.1, &Mask::default());
    let [_, kv_heads, all] = super::entries::check(&entries);
    super::entries::check_entry(&entries, &key, &value);
    let group = q.dims()[1] / kv_heads;
    assert_eq!(q.dims()[2], 1, "one query per head");
    assert!((1..=all).contains(&n), "{n} entries of {all}");
    let (keys, values, positions) = entries;
    let softcap = mask.softcap.map(|cap| cap as f32);
    let (output, row, keys, values, positions) = kernel!(StepOps::attend_new(
        q, keys, values, positions, key, value, n, position, softcap
    ));
    let block = AttentionBlock::of_probabilities(row, group, mask.clone());
    (output, block, (keys, values, positions))
}

/// Shapes of queries, keys, values and places that fit each other.
fn check(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, mask: &Mask) {
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
    mask.check([batch, kv_heads, entries], tokens);
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
    check(&q, &k, &v, &Mask::default());
    let [batch, kv_heads, ..] = k.dims();
    assert_eq!(q.dims()[2], 1, "one query per head");
    assert_eq!(lengths.dims(), [batch, kv_heads], "a length per KV head");
    match Route::of(&q).if_alike([k.dtype(), v.dtype()]) {
        Route::Plain => oracle::attend_token(q, k, v, Some(lengths), &Mask::default()),
        _ => kernel!(TokenOps::attend_lengths(q, k, v, lengths)),
    }
}

/// Causal attention of the last `w` queries over entries in any slot order: a query sees the entries up to its own position,
/// of these the latest if there is a window. `softcap` is [`Mask::softcap`].
///
/// `q [batch, heads, w, d]`, `k [batch, kv_heads, n, d]` → `[batch, kv_heads, group, w, n]`.
///
/// # Panics
/// If the shapes do not fit, and for more queries than tokens that were seen.
pub fn window_attention(
    q: Tensor<4>,
    k: Tensor<4>,
    places: &Places,
    softcap: Option<f64>,
) -> Tensor<5> {
    check_places(&q, &k, places, softcap);
    oracle::window_attention(q, k, places, softcap)
}

/// The sum and the variance of each entry's attention over the last `w` queries, each the mean over the query group: `[batch,
/// kv_heads, n]`. The sum of squares is divided by w − 1; with one query the variance is 0. Arguments are those of
/// [`window_attention`].
///
/// # Panics
/// If the shapes do not fit, and for more queries than tokens that were seen.
pub fn window_score(
    q: Tensor<4>,
    k: Tensor<4>,
    places: &Places,
    softcap: Option<f64>,
) -> (Tensor<3>, Tensor<3>) {
    check_places(&q, &k, places, softcap);
    if Route::of(&q) == Route::Plain {
        return oracle::window_score(q, k, places, softcap);
    }
    let Places {
        positions,
        seen,
        window,
    } = places.clone();
    let softcap = softcap.map(|cap| cap as f32);
    kernel!(WindowOps::window_score(
        q, k, positions, seen, window, softcap
    ))
}

fn check_places(q: &Tensor<4>, k: &Tensor<4>, places: &Places, softcap: Option<f64>) {
    let ([batch, heads, window, d], [_, kv_heads, entries, _]) = (q.dims(), k.dims());
    assert_eq!(k.dims(), [batch, kv_heads, entries, d], "keys for queries");
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "{heads} query heads for {kv_heads} KV heads"
    );
    assert!(window > 0, "at least one query");
    let mask = Mask {
        softcap,
        places: Some(places.clone()),
    };
    mask.check([batch, kv_heads, entries], window);
}

/// Attention of one query per head, the latest, over the entries that the mask lets it see: `q [batch, heads, 1, d]`, `k
/// [batch, kv_heads, n, d]` → `[batch, kv_heads, group, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn attention_row(q: Tensor<4>, k: Tensor<4>, mask: &Mask) -> Tensor<4> {
    check(&q, &k, &k, mask);
    assert_eq!(q.dims()[2], 1, "one query per head");
    let entries = k.dims()[2];
    match Route::of(&q) {
        Route::Plain => oracle::attention_row(q, k, None, mask),
        _ => {
            let (_, row): (Tensor<4>, _) = kernel!(TokenOps::attend_token(
                q,
                k.clone(),
                k,
                entries,
                mask.kernel()
            ));
            row
        }
    }
}
