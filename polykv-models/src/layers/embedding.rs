use super::Matrix;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

/// The token embedding, which tied models use as their output head too.
#[derive(Module, Debug)]
pub struct Embedding {
    /// The table, `[vocab, hidden]`.
    pub weight: Matrix,
}

impl Embedding {
    /// An embedding without values, to load a checkpoint into.
    pub fn new(vocab: usize, hidden: usize, device: &Device) -> Self {
        Self {
            weight: Matrix::new(vocab, hidden, device),
        }
    }

    /// The rows of token ids: `[batch, tokens]` → `[batch, tokens, hidden]`.
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let rows = self.weight.weight().rows(ids.reshape([batch * tokens]));
        let [_, hidden] = rows.dims();
        rows.reshape([batch, tokens, hidden])
    }

    /// The table as output head: hidden states `[batch, tokens, hidden]` → logits `[batch, tokens, vocab]`.
    pub fn as_head(&self, x: Tensor<3>) -> Tensor<3> {
        super::linear::project(x, self.weight.weight())
    }
}
