//! What stands between the products of queries with keys and the softmax.

use super::kernels;
use crate::facts;
use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::ops::Range;

/// What a layer's attention does between the scaled products of queries with keys and the softmax. The default does nothing.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// The soft-cap `c` of logits, above 0: the softmax takes `c · tanh(logit / c)` (Gemma 2, arXiv 2408.00118).
    pub softcap: Option<f64>,
    /// Where the entries stand, if queries do not see all that came before them.
    pub places: Option<Places>,
}

/// Where entries and queries stand in their sequences.
#[derive(Clone, Debug)]
pub struct Places {
    /// The positions of the entries in any order, `[batch, kv_heads, n]`.
    pub positions: Tensor<3, Int>,
    /// The position after the last query; queries are consecutive.
    pub seen: usize,
    /// How many tokens a query sees, itself included and the latest before it, at least 1 (sliding-window attention); `None`
    /// means all.
    pub window: Option<usize>,
}

impl Places {
    /// The first position that the query at `position` sees.
    pub(super) fn first_seen(&self, position: usize) -> usize {
        facts::first_seen(self.window, position)
    }
}

impl Mask {
    /// The window with the places that it needs; `None` if queries see all that came before them.
    pub(super) fn window(&self) -> Option<(&Places, usize)> {
        let places = self.places.as_ref()?;
        places.window.map(|window| (places, window))
    }

    /// The same in the form that kernels take.
    pub(super) fn kernel(&self) -> kernels::Mask<Dispatch> {
        kernels::Mask {
            softcap: self.softcap.map(|cap| cap as f32),
            window: match self.window() {
                None => kernels::Window::None,
                Some((places, size)) => kernels::Window::Latest {
                    positions: places.positions.clone().into_dispatch(),
                    size,
                    seen: places.seen,
                },
            },
        }
    }

    /// The mask of the queries and entries without the last `count` of both.
    pub(super) fn before(&self, count: usize) -> Self {
        let places = self.places.as_ref().map(|places| Places {
            positions: places
                .positions
                .clone()
                .narrow(2, 0, places.positions.dims()[2] - count),
            seen: places.seen - count,
            window: places.window,
        });
        Self {
            places: places.filter(|places| places.window.is_some()),
            ..*self
        }
    }

    /// Panics if the mask does not fit `n` entries of each head.
    pub(super) fn check(&self, [batch, kv_heads, n]: [usize; 3], tokens: usize) {
        if let Some(cap) = self.softcap {
            assert!(cap > 0.0, "a soft-cap above 0");
        }
        if let Some(places) = &self.places {
            let dims = [batch, kv_heads, n];
            assert_eq!(places.positions.dims(), dims, "a position per key");
            assert!(
                tokens <= places.seen,
                "{tokens} queries of {} tokens",
                places.seen
            );
            assert!(places.window != Some(0), "a window of at least 1");
        }
    }

    /// How many of `n` entries each of `queries` sees, where `tokens` queries are the last of the entries: `[batch, kv_heads,
    /// queries]`, or `[1, 1, queries]` if that is the same for all heads.
    pub(super) fn counts(
        &self,
        n: usize,
        tokens: usize,
        queries: Range<usize>,
        device: &Device,
    ) -> Tensor<3> {
        let before = n - tokens;
        let Some((places, _)) = self.window() else {
            let counts: Vec<f32> = queries.map(|i| (before + i + 1) as f32).collect();
            let dims = [1, 1, counts.len()];
            return Tensor::from_data(TensorData::new(counts, dims), device);
        };
        let first = places.seen - tokens;
        let of = |i: usize| {
            let seen = places.positions.clone().narrow(2, 0, before + i + 1);
            let oldest = places.first_seen(first + i) as i64;
            seen.greater_equal_elem(oldest).float().sum_dim(2)
        };
        Tensor::cat(queries.map(of).collect::<Vec<Tensor<3>>>(), 2)
    }
}
