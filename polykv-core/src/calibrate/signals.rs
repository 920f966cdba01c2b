//! The signals of a calibration as functions of tensors.

use burn::tensor::Tensor;

/// The mean over the tokens of the cosine between `a` and `b [1, tokens, hidden]`: `[1]`. Rows of zeros have cosine 0.
pub fn mean_cosine(a: Tensor<3>, b: Tensor<3>) -> Tensor<1> {
    let dot = (a.clone() * b.clone()).sum_dim(2);
    let norms = (a.powi_scalar(2).sum_dim(2) * b.powi_scalar(2).sum_dim(2)).sqrt();
    (dot / norms.clamp_min(1e-20)).mean()
}

/// The mean entropy of attention in nats: −Σ p ln p over the last axis of `attention [batch, kv_heads, group, tokens,
/// entries]`, mean over the other axes: `[1]`.
pub fn mean_entropy(attention: Tensor<5>) -> Tensor<1> {
    // 0 ln 0 is 0; the bound changes terms below 1e-28 only.
    let logarithms = attention.clone().clamp_min(1e-30).log();
    (attention * logarithms).sum_dim(4).mean().neg()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn near(found: Tensor<1>, wanted: f32) {
        let found = found.into_scalar::<f32>();
        assert!((found - wanted).abs() < 1e-6, "{found}, not {wanted}");
    }

    #[test]
    fn cosines_by_hand() {
        let device = Device::flex();
        let rows = |rows: [[f32; 2]; 2]| Tensor::<3>::from_data([rows], &device);
        let a = rows([[3.0, 0.0], [1.0, 1.0]]);
        // 0 for the first token, 1 for the second.
        near(mean_cosine(a.clone(), rows([[0.0, 2.0], [5.0, 5.0]])), 0.5);
        near(mean_cosine(a, rows([[0.0, 0.0], [-1.0, -1.0]])), -0.5);
    }

    #[test]
    fn entropies_by_hand() {
        let rows = [[0.5f32, 0.5, 0.0, 0.0], [0.25; 4]];
        let attention = Tensor::<5>::from_data([[[rows]]], &Device::flex());
        near(mean_entropy(attention), 1.5 * std::f32::consts::LN_2);
    }
}
