use super::{Activation, Linear, LoadedWeights, Mlp};
use crate::config::Experts;
use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use polykv_core::{Result, ops};

/// A sparse mixture of experts (Shazeer et al. 2017, arXiv 1701.06538): a router chooses few of many SwiGLU networks for each
/// token, and the output is the sum of theirs, each weighted by the softmax of the router's logits.
///
/// The choice is read by the host, and each expert runs once over the tokens that chose it.
#[derive(Module, Debug)]
pub struct SparseMlp {
    /// The router, `[experts, hidden]`.
    pub gate: Linear,
    /// The networks.
    pub experts: Vec<Mlp>,
    used: usize,
    normalize: bool,
}

/// The tokens that chose an expert, by their rows, and the weight of its output for each.
#[derive(Clone, Debug, Default, PartialEq)]
struct Chosen {
    rows: Vec<i64>,
    weights: Vec<f32>,
}

impl SparseMlp {
    /// Experts without values, to load a checkpoint into.
    pub fn new(hidden: usize, experts: &Experts, device: &Device) -> Self {
        let expert = || Mlp::new(hidden, experts.intermediate_size, Activation::Silu, device);
        Self {
            gate: Linear::new(hidden, experts.count, device),
            experts: (0..experts.count).map(|_| expert()).collect(),
            used: experts.used,
            normalize: experts.normalize,
        }
    }

    /// Runs the chosen experts: `[batch, tokens, hidden]` → `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// A device that cannot be read.
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let (dims, device) = (x.dims(), x.device());
        let [batch, tokens, hidden] = dims;
        let shares = softmax(self.gate.forward(x.clone()), 2);
        let shares: Vec<f32> = shares.try_into_vec_as().map_err(ops::read_error)?;
        let x: Tensor<2> = x.reshape([batch * tokens, hidden]);
        let mut output = x.zeros_like();
        let chosen = choose(&shares, self.experts.len(), self.used, self.normalize);
        for (expert, Chosen { rows, weights }) in self.experts.iter().zip(chosen) {
            let count = rows.len();
            if count == 0 {
                continue;
            }
            let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &device);
            let weights = Tensor::<2>::from_data(TensorData::new(weights, [count, 1]), &device);
            let part = x.clone().select(0, rows.clone()).unsqueeze::<3>();
            let part = expert.forward(part).reshape([count, hidden]) * weights;
            output = output.select_assign(0, rows, part, IndexingUpdateOp::Add);
        }
        Ok(output.reshape(dims))
    }

    /// Ends the loading of all projections; see [`Matrix::finish_loading`](super::Matrix::finish_loading).
    pub fn finish_loading(&mut self, loaded: &mut LoadedWeights) {
        self.gate.weight.finish_loading(loaded);
        for expert in &mut self.experts {
            expert.finish_loading(loaded);
        }
    }
}

/// For each expert the tokens that choose it: those of whose `shares [tokens, experts]` it has one of the `used` largest,
/// the first of equal ones.
fn choose(shares: &[f32], experts: usize, used: usize, normalize: bool) -> Vec<Chosen> {
    let mut chosen = vec![Chosen::default(); experts];
    for (row, shares) in shares.chunks_exact(experts).enumerate() {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        let best = &order[..used];
        let sum: f32 = match normalize {
            true => best.iter().map(|&expert| shares[expert]).sum(),
            false => 1.0,
        };
        for &expert in best {
            chosen[expert].rows.push(row as i64);
            chosen[expert].weights.push(shares[expert] / sum);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_takes_the_experts_with_the_largest_shares() {
        let shares = [0.5, 0.125, 0.25, 0.125, 0.0, 0.25, 0.5, 0.25];
        let chosen = |rows: &[i64], weights: &[f32]| Chosen {
            rows: rows.into(),
            weights: weights.into(),
        };
        let found = choose(&shares, 4, 2, false);
        let wanted = [
            chosen(&[0], &[0.5]),
            // The first of two equal ones.
            chosen(&[1], &[0.25]),
            chosen(&[0, 1], &[0.25, 0.5]),
            chosen(&[], &[]),
        ];
        assert_eq!(found, wanted);
        let found = choose(&shares, 4, 3, true);
        assert_eq!(found[1], chosen(&[0, 1], &[0.125 / 0.875, 0.25]));
    }
}
