//! Tensors of a file, read and checked when they are asked for.

use super::finite::first_lost;
use burn::tensor::{DType, Shape, TensorData};
use burn_store::bridge;
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use polykv_core::{Error, Result, Storage};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor of a file under its name in Hugging Face checkpoints.
pub struct Stored {
    pub name: String,
    pub dtype: DType,
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
pub(super) struct Fault(Arc<Mutex<Option<Error>>>);

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
    /// `place` names the file in errors; `read` must give data of this type and shape.
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

    /// The file it lies in.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The data as they are in the file.
    ///
    /// # Errors
    /// A file that cannot be read or has changed.
    pub fn data(&self) -> Result<TensorData> {
        (self.read)()
    }

    /// How the tensor is stored once loaded: only matrices take fewer bits.
    pub(super) fn target(&self, storage: Storage) -> DType {
        match self.shape.num_dims() {
            2 => storage.weights(),
            _ => DType::F32,
        }
    }

    /// As the store takes it: read and checked when its data are drawn. What goes wrong then is noted in `fault`.
    pub(super) fn deferred(self, storage: Storage, fault: &Fault) -> PackTensor {
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
    pub(super) fn equals(&self, other: &Self) -> Result<bool> {
        if self.shape != other.shape {
            return Ok(false);
        }
        let (own, others) = (self.data()?, other.data()?);
        let wide = |data: TensorData| data.convert_dtype(DType::F32);
        Ok(match self.dtype == other.dtype {
            true => own.bytes() == others.bytes(),
            false => wide(own).bytes() == wide(others).bytes(),
        })
    }
}

/// `[row, column]` of a place in row-major order.
fn index(shape: &Shape, mut at: usize) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&dim| {
            let place = at % dim.max(1);
            at /= dim.max(1);
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
