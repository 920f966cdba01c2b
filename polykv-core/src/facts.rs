//! What a model states about itself, beside the queries, keys and values of every token.

use crate::ops::{self, Weight};
use burn::tensor::{Device, Tensor, TensorData};
use std::sync::Arc;

/// What a model states about itself for its cache, beside queries, keys and values. Everything is optional; a policy that
/// needs what is not stated is refused when a prompt begins.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelFacts {
    /// The factor of the products of queries and keys before the softmax, finite and above 0; `None` means 1/√head_dim.
    pub scale: Option<f64>,
    /// The soft-cap `c` of attention logits, finite and above 0: the softmax takes `c · tanh(logit / c)` (Gemma 2, arXiv
    /// 2408.00118). `None` means that logits are taken as they are.
    pub softcap: Option<f64>,
    /// What each layer is like, from the first to the last; nothing is stated about layers beyond the list's end.
    pub layers: Vec<LayerFacts>,
}

/// A rotary embedding (RoPE, arXiv 2104.09864) in the rotate-half layout: with `n` pairs, element `i` of a vector is rotated
/// with element `i + n`. Elements from `2 n` on stay as they are; `n` is half of head_dim in most models, and 0 in layers
/// without positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFacts {
    /// The angle in radians per position for each pair of elements, at most `head_dim / 2` of them.
    pub frequencies: Arc<[f64]>,
    /// The factor that rotated elements are multiplied by, 1 for most models.
    pub magnitude: f64,
}

/// What a model states about one of its layers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LayerFacts {
    /// The rotary embedding of queries and keys; `None` if the model does not state one.
    pub rope: Option<RopeFacts>,
    /// The weight of the output projection, which follows attention, `[hidden, heads * head_dim]`; `None` if the model does
    /// not state it.
    pub output: Option<Weight>,
    /// How many tokens a query attends to, itself included and the latest before it, at least 1 (sliding-window attention);
    /// `None` means all. The layer's cache never holds more: after each token the entries that the next one sees, which are
    /// one fewer.
    pub window: Option<usize>,
}

/// The most entries per KV head that a layer with this window holds between two tokens: those that the next token sees
/// beside itself. A window of one token keeps its entry, which nothing sees.
pub(crate) fn most_entries(window: Option<usize>) -> usize {
    window.map_or(usize::MAX, |window| window.saturating_sub(1).max(1))
}

/// The first position that the token at `position` sees.
pub(crate) fn first_seen(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl ModelFacts {
    pub(crate) fn layer(&self, layer: usize) -> LayerFacts {
        self.layers.get(layer).cloned().unwrap_or_default()
    }

    /// The window of each of `layers` layers.
    pub(crate) fn windows(&self, layers: usize) -> Vec<Option<usize>> {
        let window = |layer: usize| self.layers.get(layer).and_then(|facts| facts.window);
        (0..layers).map(window).collect()
    }
}

impl RopeFacts {
    /// Undoes the rotation of `x [batch, heads, tokens, head_dim]`, whose tokens are at the positions from `first` on, and the
    /// multiplication by the magnitude.
    #[must_use]
    pub fn unrotate(&self, x: Tensor<4>, first: usize) -> Tensor<4> {
        let [_, _, tokens, _] = x.dims();
        let angles = (first..first + tokens).flat_map(|p| self.angles(p as f64));
        let scale = 1.0 / self.magnitude;
        let (cos, sin) = angles.map(|a| (a.cos() * scale, -a.sin() * scale)).unzip();
        turn(x, tokens, cos, sin)
    }

    /// Multiplies every vector of `x [batch, heads, tokens, head_dim]` by the transpose of the mean rotation over the `count`
    /// positions from `first` on. The product of the result with an unrotated query is the mean of the products of `x` with
    /// that query rotated for each of these positions.
    #[must_use]
    pub fn unrotate_mean(&self, x: Tensor<4>, first: usize, count: usize) -> Tensor<4> {
        let middle = first as f64 + (count as f64 - 1.0) / 2.0;
        let shrink = self.frequencies.iter().map(|&w| {
            // A geometric sum of turns: |Σ exp(iwp)| / count.
            let half = (w / 2.0).sin();
            match half.abs() < 1e-12 {
                true => self.magnitude,
                false => self.magnitude * (w / 2.0 * count as f64).sin() / (half * count as f64),
            }
        });
        let pairs = self.angles(middle).zip(shrink);
        let (cos, sin) = pairs.map(|(a, r)| (a.cos() * r, -a.sin() * r)).unzip();
        turn(x, 1, cos, sin)
    }

    fn angles(&self, position: f64) -> impl Iterator<Item = f64> {
        self.frequencies.iter().map(move |w| position * w)
    }
}

/// Turns pairs of elements by `cos` and `sin`, `[rows, pairs]` each, one row per token or one for all. Elements beyond the
/// pairs stay.
fn turn(x: Tensor<4>, rows: usize, cos: Vec<f64>, sin: Vec<f64>) -> Tensor<4> {
    let [_, _, _, head_dim] = x.dims();
    let pairs = cos.len() / rows.max(1);
    if pairs == 0 {
        return x;
    }
    let device: Device = x.device();
    let table = |values: Vec<f64>| {
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        Tensor::<4>::from_data(TensorData::new(values, [1, 1, rows, pairs]), &device)
    };
    let rotated = 2 * pairs;
    let turned = ops::oracle::rotate(x.clone().narrow(3, 0, rotated), table(cos), table(sin));
    match rotated < head_dim {
        true => {
            let rest = x.narrow(3, rotated, head_dim - rotated);
            Tensor::cat(vec![turned, rest], 3)
        }
        false => turned,
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn rope() -> RopeFacts {
        RopeFacts {
            frequencies: [1.0, 0.01, 0.0].into(),
            magnitude: 1.5,
        }
    }

    fn worst(a: Tensor<4>, b: Tensor<4>) -> f32 {
        (a - b).abs().max().into_scalar::<f32>()
    }

    #[test]
    fn rotating_back_undoes_a_rotation() {
        let device = Device::flex();
        let x = Tensor::<4>::random([2, 3, 5, 6], Distribution::Default, &device);
        // Rotating forth is rotating back at minus the position, where the factor divides instead.
        let angles: Vec<f64> = (7..12)
            .flat_map(|p| rope().angles(f64::from(p)).collect::<Vec<_>>())
            .collect();
        let cos = angles.iter().map(|a| a.cos() * 1.5).collect();
        let sin = angles.iter().map(|a| a.sin() * 1.5).collect();
        let rotated = turn(x.clone(), 5, cos, sin);
        assert!(worst(rotated.clone(), x.clone()) > 0.1);
        assert!(worst(rope().unrotate(rotated, 7), x) < 1e-5);
    }

    #[test]
    fn elements_beyond_the_pairs_stay() {
        let device = Device::flex();
        let x = Tensor::<4>::random([1, 2, 3, 10], Distribution::Default, &device);
        let [turned, rest] = [(0, 6), (6, 4)].map(|(first, count)| {
            let part = |x: &Tensor<4>| x.clone().narrow(3, first, count);
            (part(&x), part(&rope().unrotate(x.clone(), 7)))
        });
        assert!(worst(rope().unrotate(turned.0, 7), turned.1) == 0.0);
        assert!(worst(rest.0, rest.1) == 0.0);
        let none = RopeFacts {
            frequencies: [].into(),
            magnitude: 1.0,
        };
        for found in [
            none.unrotate(x.clone(), 7),
            none.unrotate_mean(x.clone(), 7, 9),
        ] {
            assert!(worst(found, x.clone()) == 0.0);
        }
    }

    #[test]
    fn the_mean_rotation_is_the_mean_of_rotations() {
        let device = Device::flex();
        let x = Tensor::<4>::random([1, 2, 4, 6], Distribution::Default, &device);
        let (first, count) = (20, 9);
        let one = |p: usize| rope().unrotate_mean(x.clone(), p, 1);
        let sum = (first + 1..first + count)
            .map(one)
            .fold(one(first), |a, b| a + b);
        let mean = sum.div_scalar(count as f32);
        assert!(worst(rope().unrotate_mean(x, first, count), mean) < 1e-5);
    }
}
