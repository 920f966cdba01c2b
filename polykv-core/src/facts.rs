//! What a model tells its cache once, beside the queries, keys and values of every token.

use crate::ops::{self, Weight};
use burn::tensor::{Device, Tensor, TensorData};
use std::sync::Arc;

/// Facts of a model that a cache needs beside queries, keys and values. Those that are not given are only missed by policies
/// that need them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelFacts {
    /// What products of queries and keys are multiplied by before the softmax, 1/√head_dim if it is not given.
    pub scale: Option<f64>,
    /// The rotary embedding of queries and keys.
    pub rope: Option<RopeFacts>,
    /// Per layer the weight of the projection after attention, `[hidden, heads * head_dim]`.
    pub output: Vec<Weight>,
}

/// A rotary embedding in the rotate-half layout: element `i` turns with element `i + head_dim / 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFacts {
    /// Radians per position, one per pair of elements: `head_dim / 2` of them.
    pub frequencies: Arc<[f64]>,
    /// What rotated vectors are multiplied by.
    pub magnitude: f64,
}

/// The facts of one layer.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LayerFacts {
    /// The rotary embedding of queries and keys.
    pub rope: Option<RopeFacts>,
    /// The weight of the projection after attention, `[hidden, heads * head_dim]`.
    pub output: Option<Weight>,
}

impl ModelFacts {
    pub(crate) fn layer(&self, layer: usize) -> LayerFacts {
        LayerFacts {
            rope: self.rope.clone(),
            output: self.output.get(layer).cloned(),
        }
    }
}

impl RopeFacts {
    /// Undoes the rotation of `x [batch, heads, tokens, head_dim]` at the positions from `first` on.
    pub fn unrotate(&self, x: Tensor<4>, first: usize) -> Tensor<4> {
        let [_, _, tokens, _] = x.dims();
        let angles = (first..first + tokens).flat_map(|p| self.angles(p as f64));
        let scale = 1.0 / self.magnitude;
        let (cos, sin) = angles.map(|a| (a.cos() * scale, -a.sin() * scale)).unzip();
        turn(x, tokens, cos, sin)
    }

    /// The transpose of the mean rotation over `count` positions from `first` on, applied to every vector of `x
    /// [batch, heads, tokens, head_dim]`: the product with a query that is not rotated is then the mean over the
    /// positions it may come to lie at.
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

/// Turns pairs of elements by `cos` and `sin`, `[rows, head_dim / 2]` each, one row per token or one for all.
fn turn(x: Tensor<4>, rows: usize, cos: Vec<f64>, sin: Vec<f64>) -> Tensor<4> {
    let [_, _, _, head_dim] = x.dims();
    let half = head_dim / 2;
    let device: Device = x.device();
    let table = |values: Vec<f64>| {
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        Tensor::<4>::from_data(TensorData::new(values, [1, 1, rows, half]), &device)
    };
    ops::oracle::rotate(x, table(cos), table(sin))
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
