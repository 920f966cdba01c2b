//! What matrices become when loading ends.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use polykv_core::ops::Weight;
use std::collections::{HashMap, HashSet};

/// Weights that are no tensors of burn, by the parameters whose place they take. It counts the bytes of all weights as
/// matrices take them.
#[derive(Debug, Default)]
pub struct LoadedWeights {
    weights: HashMap<ParamId, Weight>,
    names: HashSet<String>,
    bytes: u64,
}

impl LoadedWeights {
    /// A weight for the parameter `id`, under its tensor's name.
    pub fn insert(&mut self, id: ParamId, name: String, weight: Weight) {
        self.weights.insert(id, weight);
        self.names.insert(name);
    }

    /// Whether the tensor of this name is among them.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Whether there is a weight in the place of a parameter.
    pub fn takes(&self, id: &ParamId) -> bool {
        self.weights.contains_key(id)
    }

    /// Bytes of the weights that matrices have taken so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The weight in place of a parameter, or else that of its tensor.
    pub(super) fn take(&mut self, parameter: Param<Tensor<2>>) -> Weight {
        let weight = match self.weights.remove(&parameter.id) {
            Some(weight) => weight,
            None => Weight::new(parameter.into_value()),
        };
        self.bytes += weight.bytes() as u64;
        weight
    }
}

/// The matrices of a model by the names of their tensors, with the parameters that they are before loading ends.
#[derive(Default)]
pub struct Matrices {
    path: Vec<String>,
    found: HashMap<String, (ParamId, [usize; 2])>,
}

impl Matrices {
    /// Parameters and shapes of all matrices of a model.
    pub fn of<M: Module>(model: &M) -> HashMap<String, (ParamId, [usize; 2])> {
        let mut visitor = Self::default();
        model.visit(&mut visitor);
        visitor.found
    }
}

impl ModuleVisitor for Matrices {
    fn enter_module(&mut self, name: &str, container: &str) {
        // Matrices are enums while they are loaded, whose variants have no place in a tensor's name.
        if !container.starts_with("Enum:") {
            self.path.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
        if let [rows, columns] = *parameter.lazy_shape().as_slice() {
            let place = (parameter.id, [rows, columns]);
            self.found.insert(self.path.join("."), place);
        }
    }
}
