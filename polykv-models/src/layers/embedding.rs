use super::Matrix;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

/// The token embedding, which tied models use as their output head too.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab, hidden]`
    pub weight: Matrix,
}

impl Embedding {
    /// Without values: load into it before use.
    pub fn new(vocab: usize, hidden: usize, device: &Device) -> Self {
        Self {
            weight: Matrix::new(vocab, hidden, device),
        }
    }

    /// `[batch, tokens]` → `[batch, tokens, hidden]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let rows = self.weight.weight().rows(ids.reshape([batch * tokens]));
        let [_, hidden] = rows.dims();
        rows.reshape([batch, tokens, hidden])
    }

    /// `[batch, tokens, hidden]` → logits `[batch, tokens, vocab]`
    pub fn as_head(&self, x: Tensor<3>) -> Tensor<3> {
        super::linear::project(x, self.weight.weight())
    }
}
