//! Tensors of a file, read and checked when they are asked for.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod file;
mod finite;

pub(crate) use file::{WeightFile, refuse_pointer};

use burn::tensor::{DType, Shape, TensorData};
use burn_store::bridge;
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use finite::first_lost;
use polykv_core::{Error, Result, Storage};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor of a weight file, under its name in Hugging Face checkpoints. Its data are read when they are asked for.
pub struct Stored {
    /// The name in Hugging Face checkpoints.
    pub name: String,
    /// The number format of the data.
    pub dtype: DType,
    /// The row-major shape, `[out, in]` for matrices.
    pub shape: Shape,
    place: String,
    read: Box<dyn Fn() -> Result<TensorData> + Send + Sync>,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// The error behind a tensor that could not be read. The store that asks for tensors passes on texts only.
#[derive(Clone, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    fn note(&self, error: Error) -> PackError {
        let text = error.to_string();
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
        PackError::ValidationError(text)
    }

    /// The first error, if there was one.
    pub fn take(&self) -> Option<Error> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }
}

impl Stored {
    /// A tensor whose data come from `read`, which must give data of this number format and shape. `place` names the
    /// file in errors.
    pub fn new(
        name: String,
        dtype: DType,
        shape: Shape,
        place: &str,
        read: impl Fn() -> Result<TensorData> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            dtype,
            shape,
            place: place.to_owned(),
            read: Box::new(read),
        }
    }

    /// The file that holds it, as errors name it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Reads the data, in the number format of the file.
    ///
    /// # Errors
    /// A file that cannot be read or has changed.
    pub fn data(&self) -> Result<TensorData> {
        (self.read)()
    }

    /// How the tensor is stored once loaded: only matrices take fewer bits.
    pub(crate) fn target(&self, storage: Storage) -> DType {
        match self.shape.num_dims() {
            2 => storage.weights(),
            _ => DType::F32,
        }
    }

    /// The tensor in the form of burn's store, read and checked when its data are drawn. An error at that time is noted
    /// in `fault`.
    pub(crate) fn deferred(self, storage: Storage, fault: &Fault) -> PackTensor {
        let (name, shape, fault) = (self.name.clone(), self.shape.clone(), fault.clone());
        bridge::deferred(name, self.dtype, shape, None, move || {
            self.checked(storage).map_err(|e| fault.note(e))
        })
    }

    fn checked(&self, storage: Storage) -> Result<TensorData> {
        let data = self.data()?;
        let Some((at, value)) = first_lost(&data, self.target(storage)) else {
            return Ok(data);
        };
        let allowed = match value.is_finite() {
            true => format!("what {storage} can hold; --dtype bf16 and f32 hold more"),
            false => "finite numbers".to_owned(),
        };
        let field = format!("tensor {} at {:?}", self.name, index(&self.shape, at));
        Err(Error::invalid(&self.place, field, value, allowed))
    }

    /// Whether both hold the same values, whatever format each is stored in.
    ///
    /// # Errors
    /// A file that cannot be read or has changed.
    pub(crate) fn equals(&self, other: &Self) -> Result<bool> {
        if self.shape != other.shape {
            return Ok(false);
        }
        let (these, others) = (self.data()?, other.data()?);
        let wide = |data: TensorData| data.convert_dtype(DType::F32);
        Ok(match self.dtype == other.dtype {
            true => these.bytes() == others.bytes(),
            false => wide(these).bytes() == wide(others).bytes(),
        })
    }
}

/// `[row, column]` of a place in row-major order.
fn index(shape: &Shape, mut at: usize) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&dim| {
            let place = at.checked_rem(dim).unwrap_or(0);
            at = at.checked_div(dim).unwrap_or(0);
            place
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_a_tensor() {
        assert_eq!(index(&Shape::from(vec![3, 4]), 6), [1, 2]);
        assert_eq!(index(&Shape::from(vec![5]), 4), [4]);
    }
}
