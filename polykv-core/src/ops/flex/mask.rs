//! What stands between scaled products and the softmax, as kernels read it.

use super::bridge::integers;
use super::simd::{LANES, Vector, tanh};
use super::tiles::{HIDDEN, KEYS};
use crate::ops::kernels;
use burn::backend::Flex;

/// See [`kernels::Mask`].
#[derive(Default)]
pub struct Mask {
    pub softcap: Option<f32>,
    pub window: Option<Window>,
}

/// A sliding window over the keys of all heads.
pub struct Window {
    /// `[heads][n]`
    positions: Vec<i64>,
    n: usize,
    size: i64,
    /// The first query's position.
    first: i64,
    /// The lowest and the highest position in each tile of `KEYS` keys, `[heads][tiles]`.
    bounds: Vec<[i64; 2]>,
}

impl Mask {
    /// For `tokens` queries.
    pub fn of(mask: kernels::Mask<Flex>, tokens: usize) -> Self {
        Self {
            softcap: mask.softcap,
            window: match mask.window {
                kernels::Window::None => None,
                kernels::Window::Latest {
                    positions,
                    size,
                    seen,
                } => {
                    let [.., n] = positions.layout().shape().dims::<3>();
                    let positions = integers(&positions.to_contiguous()).into_owned();
                    Some(Window::new(positions, n, size, seen - tokens))
                }
            },
        }
    }

    /// Of one KV head, where `query` is the first.
    pub fn sight(&self, kv: usize, query: usize) -> Option<Sight<'_>> {
        let window = self.window.as_ref()?;
        let tiles = window.n.div_ceil(KEYS);
        Some(Sight {
            positions: &window.positions[kv * window.n..(kv + 1) * window.n],
            bounds: &window.bounds[kv * tiles..(kv + 1) * tiles],
            oldest: window.oldest(query),
        })
    }
}

impl Window {
    /// `positions [heads][n]`, and the position of the first query.
    pub fn new(positions: Vec<i64>, n: usize, size: usize, first: usize) -> Self {
        let bounds = |tile: &[i64]| {
            let ends = |ends: [i64; 2], &p: &i64| [ends[0].min(p), ends[1].max(p)];
            tile.iter().fold([i64::MAX, i64::MIN], ends)
        };
        let heads = positions.chunks_exact(n);
        Self {
            bounds: heads
                .flat_map(|head| head.chunks(KEYS).map(bounds))
                .collect(),
            positions,
            n,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            first: first as i64,
        }
    }

    /// The first position that a query sees.
    fn oldest(&self, query: usize) -> i64 {
        (self.first + query as i64 + 1).saturating_sub(self.size)
    }
}

/// The keys of one KV head and a query; each one after it sees from one position later on.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    positions: &'a [i64],
    bounds: &'a [[i64; 2]],
    oldest: i64,
}

impl Sight<'_> {
    /// Whether no query sees a key of the tile.
    #[inline(always)]
    pub fn is_past(&self, tile: usize) -> bool {
        self.bounds[tile][1] < self.oldest
    }

    /// How many of `queries` in a row see some key of the tile.
    pub fn queries(&self, tile: usize, queries: usize) -> usize {
        self.visible(self.bounds[tile][1], queries)
    }

    /// How many of `queries` in a row see the key.
    pub fn queries_of_key(&self, key: usize, queries: usize) -> usize {
        self.visible(self.positions[key], queries)
    }

    fn visible(&self, position: i64, queries: usize) -> usize {
        (position - self.oldest + 1).clamp(0, queries as i64) as usize
    }

    /// Hides the keys of a tile that the queries in `scores`, one row each, do not see.
    #[inline(always)]
    pub fn hide(&self, tile: usize, scores: &mut [[f32; KEYS]]) {
        if self.bounds[tile][0] >= self.oldest + scores.len() as i64 {
            return;
        }
        let positions = &self.positions[tile * KEYS..];
        for (r, row) in scores.iter_mut().enumerate() {
            let oldest = self.oldest + r as i64;
            for (score, &position) in row.iter_mut().zip(positions) {
                if position < oldest {
                    *score = HIDDEN;
                }
            }
        }
    }

    /// Hides those of the keys from `first` on, a score each, that the query does not see.
    #[inline(always)]
    pub fn hide_keys(&self, first: usize, scores: &mut [f32]) {
        for (score, &position) in scores.iter_mut().zip(&self.positions[first..]) {
            if position < self.oldest {
                *score = HIDDEN;
            }
        }
    }
}

/// Replaces every score by `softcap · tanh(score / softcap)`.
#[inline(always)]
pub fn cap<V: Vector>(scores: &mut [f32], softcap: f32) {
    let inverse = 1.0 / softcap;
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for score in chunk {
            *score = softcap * tanh::<V>(*score * inverse);
        }
    }
    for score in rest {
        *score = softcap * tanh::<V>(*score * inverse);
    }
}
