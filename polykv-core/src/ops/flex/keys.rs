//! Norms and cosines of keys.

use super::bridge::{elements, existing, inner_dense, integer_tensor, integers, tensor, widened};
use super::simd::{LANES, Level, Vector, dispatch, dot, larger};
use super::tiles::{KEYS, ROWS, Tile, pack, scores};
use super::view::Heads;
use crate::ops::kernels::KeyOps;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

impl KeyOps for Flex {
    fn key_norms(keys: FlexTensor) -> FlexTensor {
        let keys = widened(keys);
        let keys = Heads::of(&keys);
        let found = norms(Level::best(), &keys);
        tensor(found, [keys.batch, keys.heads, keys.tokens])
    }

    fn key_cosines(keys: FlexTensor, norms: FlexTensor, anchor: FlexTensor) -> FlexTensor {
        let (keys, anchor, norms) = (widened(keys), inner_dense(anchor), norms.to_contiguous());
        let (keys, anchor) = (Heads::of(&keys), Heads::of(&anchor));
        let found = cosines(Level::best(), &keys, elements(&norms), &anchor);
        tensor(found, [keys.batch, keys.heads, keys.tokens])
    }

    fn closest(
        keys: FlexTensor,
        norms: FlexTensor,
        evicted: FlexTensor,
        kept: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (keys, norms) = (widened(keys), norms.to_contiguous());
        let [evicted, kept] = [evicted, kept].map(|slots| slots.to_contiguous());
        let dims = evicted.layout().shape().dims::<3>();
        let (all, norms) = (Heads::of(&keys), elements(&norms));
        let (slots, others) = (integers(&evicted), integers(&kept));
        let (cosines, places) = closest(Level::best(), &all, norms, &slots, &others);
        let places = integer_tensor(places, dims, kept.dtype());
        (tensor(cosines, dims), places)
    }
}

/// Norms count as this at least.
const LEAST: f32 = 1e-12;

/// The norm of each key, `[batch * heads * tokens]`.
pub fn norms(level: Level, keys: &Heads<'_>) -> Vec<f32> {
    let mut found = vec![0.0; keys.batch * keys.heads * keys.tokens];
    of_heads(keys, &mut found, |batch, head, norms| {
        dispatch!(level, fn norms_of(
            keys: &Heads<'_>, batch: usize, head: usize, norms: &mut [f32],
        ));
    });
    found
}

/// The cosine of each key with its head's `anchor [batch, heads, 1, dim]`.
pub fn cosines(level: Level, keys: &Heads<'_>, norms: &[f32], anchor: &Heads<'_>) -> Vec<f32> {
    let mut found = norms.to_vec();
    of_heads(keys, &mut found, |batch, head, cosines| {
        let anchor = anchor.row(batch, head, 0);
        dispatch!(level, fn cosines_of(
            keys: &Heads<'_>, batch: usize, head: usize, anchor: &[f32], cosines: &mut [f32],
        ));
    });
    found
}

/// Per evicted key the largest cosine with a kept one, and that one's place: `evicted [batch * heads * e]`, `kept [batch *
/// heads * m]` → `[batch * heads * e]` each.
pub fn closest(
    level: Level,
    keys: &Heads<'_>,
    norms: &[f32],
    evicted: &[i64],
    kept: &[i64],
) -> (Vec<f32>, Vec<i64>) {
    let heads = keys.batch * keys.heads;
    let (going, staying) = (evicted.len() / heads, kept.len() / heads);
    let candidates: Vec<Candidates> = (0..heads)
        .into_par_iter()
        .map(|head| {
            let slots = &kept[head * staying..(head + 1) * staying];
            let norms = &norms[head * keys.tokens..(head + 1) * keys.tokens];
            Candidates::new(keys, head, slots, norms, going)
        })
        .collect();
    let of_heads = candidates.par_iter().zip(evicted.par_chunks(going));
    let found: Vec<Match> = of_heads
        .flat_map(|(candidates, evicted)| {
            evicted.par_chunks(ROWS).flat_map_iter(move |some| {
                let found = dispatch!(level, fn closest_of(
                    candidates: &Candidates<'_>, some: &[i64],
                ) -> [Match; ROWS]);
                found.into_iter().take(some.len())
            })
        })
        .collect();
    let pairs = found.into_iter().map(|best| (best.cosine, best.place));
    pairs.unzip()
}

/// Fills each head's part of `results [batch * heads * tokens]`.
fn of_heads(keys: &Heads<'_>, results: &mut [f32], work: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let heads = results.par_chunks_mut(keys.tokens.max(1)).enumerate();
    heads.for_each(|(i, results)| work(i / keys.heads, i % keys.heads, results));
}

#[inline(always)]
fn norms_of<V: Vector>(keys: &Heads<'_>, batch: usize, head: usize, norms: &mut [f32]) {
    for (token, norm) in norms.iter_mut().enumerate() {
        let key = keys.row(batch, head, token);
        *norm = dot::<V, f32>(key, key).sqrt();
    }
}

/// Replaces the keys' norms by their cosines.
#[inline(always)]
fn cosines_of<V: Vector>(
    keys: &Heads<'_>,
    batch: usize,
    head: usize,
    anchor: &[f32],
    cosines: &mut [f32],
) {
    let length = larger(dot::<V, f32>(anchor, anchor).sqrt(), LEAST);
    for (token, cosine) in cosines.iter_mut().enumerate() {
        let product = dot::<V, f32>(anchor, keys.row(batch, head, token));
        *cosine = product / (larger(*cosine, LEAST) * length);
    }
}

#[derive(Clone, Copy)]
struct Match {
    cosine: f32,
    place: i64,
}

/// One head's keys that stay.
struct Candidates<'a> {
    keys: &'a Heads<'a>,
    head: usize,
    slots: &'a [i64],
    norms: &'a [f32],
    /// In tiles, see [`pack`]; empty where few keys go and reading them once is all that is done.
    packed: Vec<f32>,
    /// 1 over the norms of those that stay, zeros up to a whole tile.
    shares: Vec<f32>,
}

impl<'a> Candidates<'a> {
    fn new(
        keys: &'a Heads<'a>,
        head: usize,
        slots: &'a [i64],
        norms: &'a [f32],
        going: usize,
    ) -> Self {
        let mut found = Self {
            keys,
            head,
            slots,
            norms,
            packed: Vec::new(),
            shares: Vec::new(),
        };
        if going >= ROWS {
            let rows = slots.iter().map(|&slot| found.row(slot));
            found.packed = pack(rows, slots.len(), keys.dim);
        }
        let shares = slots.iter().map(|&slot| 1.0 / found.norm(slot));
        found.shares = shares.collect();
        let whole = slots.len().next_multiple_of(KEYS);
        found.shares.resize(whole, 0.0);
        found
    }

    fn row(&self, slot: i64) -> &'a [f32] {
        let (batch, head) = (self.head / self.keys.heads, self.head % self.keys.heads);
        self.keys.row(batch, head, existing(slot, self.keys.tokens))
    }

    fn norm(&self, slot: i64) -> f32 {
        larger(self.norms[existing(slot, self.keys.tokens)], LEAST)
    }
}

/// Below every cosine.
const NONE: f32 = -2.0;

/// The matches of at most `ROWS` keys that go.
#[inline(always)]
fn closest_of<V: Vector>(candidates: &Candidates<'_>, going: &[i64]) -> [Match; ROWS] {
    let mut found = [Match {
        cosine: NONE,
        place: 0,
    }; ROWS];
    if candidates.packed.is_empty() {
        for (found, &slot) in found.iter_mut().zip(going) {
            let key = candidates.row(slot);
            let share = 1.0 / candidates.norm(slot);
            for (place, &other) in candidates.slots.iter().enumerate() {
                let product = dot::<V, f32>(key, candidates.row(other));
                let cosine = product * share * candidates.shares[place];
                if cosine > found.cosine {
                    *found = Match {
                        cosine,
                        place: place as i64,
                    };
                }
            }
        }
        return found;
    }
    let dim = candidates.keys.dim;
    let mut rows = vec![[0.0; ROWS]; dim];
    for r in 0..ROWS {
        let slot = going[r.min(going.len() - 1)];
        let share = 1.0 / candidates.norm(slot);
        for (row, x) in rows.iter_mut().zip(candidates.row(slot)) {
            row[r] = x * share;
        }
    }
    let tile = Tile::of_all();
    let mut best = [[NONE; LANES]; ROWS];
    let mut places = [[0i32; LANES]; ROWS];
    let tiles = candidates.packed.chunks_exact(KEYS * dim);
    for (index, (keys, shares)) in tiles.zip(candidates.shares.chunks_exact(KEYS)).enumerate() {
        let start = index * KEYS;
        let mut products = scores::<V>(tile, &rows, keys, start);
        let count = KEYS.min(candidates.slots.len() - start);
        for r in 0..ROWS {
            for i in 0..KEYS {
                products[r][i] *= shares[i];
            }
            products[r][count..].fill(NONE);
            for part in 0..KEYS / LANES {
                for i in 0..LANES {
                    let x = products[r][part * LANES + i];
                    let place = (start + part * LANES + i) as i32;
                    let higher = x > best[r][i];
                    places[r][i] = if higher { place } else { places[r][i] };
                    best[r][i] = if higher { x } else { best[r][i] };
                }
            }
        }
    }
    for r in 0..ROWS {
        for i in 0..LANES {
            let (x, place) = (best[r][i], i64::from(places[r][i]));
            let best = &mut found[r];
            if x > best.cosine || x == best.cosine && place < best.place {
                *best = Match { cosine: x, place };
            }
        }
    }
    found
}
