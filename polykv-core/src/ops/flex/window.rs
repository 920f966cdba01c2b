//! What the last queries of a prompt pay attention to: one task per query head, which never holds more than a tile of
//! queries' scores.

use super::prefill::{HIDDEN, KEYS, ROWS, Tile, pack_all, scores};
use super::simd::{Level, Vector, dispatch, exp_sum, max};
use super::view::Heads;
use rayon::prelude::*;

/// `q [batch, heads, w, dim]`, `k [batch, kv_heads, n, dim]`, `positions [batch * kv_heads * n]` → per key the sum over
/// the window and the variance over it, means over the query group, `[batch, kv_heads, n]` each.
pub fn score(
    level: Level,
    q: &Heads<'_>,
    k: &Heads<'_>,
    positions: &[i64],
    seen: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (n, window, group) = (k.tokens, q.tokens, q.heads / k.heads);
    let keys = pack_all(k);
    let first = (seen - window) as i64;
    let heads: Vec<Moments> = (0..q.batch * q.heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|i| {
            let kv = i / group;
            let positions = positions[kv * n..(kv + 1) * n].iter().enumerate();
            let at = Window {
                batch: i / q.heads,
                head: i % q.heads,
                entries: n,
                late: positions
                    .filter(|(_, position)| **position > first)
                    .map(|(slot, position)| (slot, (position - first) as usize))
                    .collect(),
            };
            let (at, keys) = (&at, &keys[kv][..]);
            dispatch!(level, fn head_moments(at: &Window, q: &Heads<'_>, keys: &[f32]) -> Moments)
        })
        .collect();
    let mut sums = vec![0.0; k.batch * k.heads * n];
    let mut variances = vec![0.0; k.batch * k.heads * n];
    let sum_share = window as f32 / group as f32;
    let variance_share = 1.0 / (group * (window.max(2) - 1)) as f32;
    for (i, head) in heads.iter().enumerate() {
        let at = i / group * n..(i / group + 1) * n;
        let of_key = head.means.iter().zip(&head.squares);
        let results = sums[at.clone()].iter_mut().zip(&mut variances[at]);
        for ((sum, variance), (mean, squares)) in results.zip(of_key) {
            *sum += mean * sum_share;
            *variance += squares * variance_share;
        }
    }
    (sums, variances)
}

/// The window's queries of one head.
struct Window {
    batch: usize,
    head: usize,
    entries: usize,
    /// Slots that not all queries see, each with how many do not.
    late: Vec<(usize, usize)>,
}

/// Of a head's probabilities, per key: the mean over the queries and the sum of squared deviations from it.
struct Moments {
    means: Vec<f32>,
    squares: Vec<f32>,
}

#[inline(always)]
fn head_moments<V: Vector>(at: &Window, q: &Heads<'_>, keys: &[f32]) -> Moments {
    let n = at.entries;
    let mut moments = Moments {
        means: vec![0.0; n],
        squares: vec![0.0; n],
    };
    let wide = keys.len() / q.dim;
    let mut rows = vec![0.0; ROWS * wide];
    for first in (0..q.tokens).step_by(ROWS) {
        let tile = Tile {
            batch: at.batch,
            head: at.head,
            first,
            rows: ROWS.min(q.tokens - first),
            // Slots need not be in order: what is hidden is hidden below.
            visible: usize::MAX / 2,
        };
        let queries = tile.pack(q);
        for (index, keys) in keys.chunks_exact(KEYS * q.dim).enumerate() {
            let scores = scores::<V>(tile, &queries, keys, index * KEYS);
            for (r, row) in scores.iter().enumerate() {
                rows[r * wide + index * KEYS..][..KEYS].copy_from_slice(row);
            }
        }
        for r in 0..tile.rows {
            let row = &mut rows[r * wide..][..n];
            for &(slot, hidden) in &at.late {
                if first + r < hidden {
                    row[slot] = HIDDEN;
                }
            }
            let most = max(row);
            let total = exp_sum::<V>(row, most);
            let (scale, weight) = (1.0 / total, 1.0 / (first + r + 1) as f32);
            let results = moments.means.iter_mut().zip(&mut moments.squares);
            // Welford's running mean.
            for ((mean, squares), x) in results.zip(row) {
                let p = *x * scale;
                let delta = p - *mean;
                *mean += delta * weight;
                *squares += delta * (p - *mean);
            }
        }
    }
    moments
}
