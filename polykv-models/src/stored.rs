//! Tensors of a file, read and checked when they are asked for.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod file;
mod finite;

pub(crate) use file::{WeightFile, refuse_pointer};

use crate::parts::Part;
use burn::tensor::{Bytes, DType, Device, Shape, TensorData};
use burn_store::bridge;
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use finite::first_lost;
use polykv_core::ops::{BlockType, SharedBytes, Weight, read_error};
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
    own: Own,
}

/// How a file holds a tensor, which [`Storage::Native`] keeps.
pub enum Own {
    /// As numbers of a type.
    Numbers(DType),
    /// In blocks.
    Blocks(OwnBlocks),
}

/// Appends blocks to what was read so far.
type ReadBlocks = Box<dyn Fn(&mut Vec<u8>) -> Result<()> + Send + Sync>;

/// A tensor in blocks.
pub struct OwnBlocks {
    /// The type of the blocks.
    pub kind: BlockType,
    /// What row i of the tensor is in the file, if they are in another order.
    pub order: Option<Vec<u32>>,
    /// Appends the blocks.
    pub read: ReadBlocks,
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
            own: Own::Numbers(dtype),
        }
    }

    /// The same tensor, which its file holds in another way than `data` gives it.
    pub(crate) fn with_own(mut self, own: Own) -> Self {
        self.own = own;
        self
    }

    /// A tensor that is a part of another one, which is read as a whole whenever one of its parts is.
    pub(crate) fn part(whole: &Arc<Self>, part: Part) -> Self {
        let (source, shape) = (whole.clone(), Shape::from(part.shape));
        let (declared, elements) = (shape.clone(), part.elements);
        let read = move || {
            let size = source.dtype.size();
            let data = source.data()?;
            let ends = [elements.start, elements.end].map(|element| element.saturating_mul(size));
            let bytes = data.bytes();
            let bytes = bytes.get(ends[0]..ends[1]).unwrap_or_default();
            let bytes = Bytes::from_bytes_vec(bytes.to_vec());
            TensorData::try_from_bytes(bytes, shape.clone(), source.dtype)
                .map_err(|e| Error::invalid(&source.place, "data", e, "as the shape says"))
        };
        Self::new(part.name, whole.dtype, declared, &whole.place, read)
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

    /// How the tensor is stored once loaded: only matrices take fewer bits. Those in blocks come from f32.
    pub(crate) fn target(&self, storage: Storage, device: &Device) -> DType {
        match (self.shape.num_dims(), &self.own) {
            (2, Own::Numbers(own)) if storage == Storage::Native => Storage::or_f32(*own, device),
            (2, _) => storage.weights().unwrap_or(DType::F32),
            _ => DType::F32,
        }
    }

    /// Whether the tensor is stored in blocks once loaded.
    pub(crate) fn is_in_blocks(&self, storage: Storage) -> bool {
        let own = matches!(self.own, Own::Blocks(_));
        self.shape.num_dims() == 2
            && match storage {
                Storage::Native => own,
                Storage::Q4K => true,
                _ => false,
            }
    }

    /// Bytes of the tensor as its file holds it.
    pub(crate) fn own_bytes(&self) -> u64 {
        let elements = self.shape.num_elements();
        let bytes = match &self.own {
            Own::Numbers(dtype) => elements.saturating_mul(dtype.size()),
            Own::Blocks(own) => {
                let blocks = elements.checked_div(own.kind.elements()).unwrap_or(0);
                blocks.saturating_mul(own.kind.bytes())
            }
        };
        bytes as u64
    }

    /// Appends the blocks of the file to `bytes`, of a tensor that is in some.
    ///
    /// # Errors
    /// A file that cannot be read or has changed.
    pub(crate) fn append_blocks(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match &self.own {
            Own::Blocks(own) => (own.read)(bytes),
            Own::Numbers(_) => Ok(()),
        }
    }

    /// The weight in the blocks of the file. Only their scales are looked at.
    ///
    /// # Errors
    /// Scales that are not finite; rows that are no whole number of blocks.
    pub(crate) fn in_blocks(&self, bytes: SharedBytes, device: &Device) -> Result<Weight> {
        let [rows, columns] = self.shape.dims();
        let Own::Blocks(own) = &self.own else {
            return Err(self.refuse_blocks());
        };
        if let Some((block, value)) = own.kind.first_not_finite(bytes.get()) {
            let in_row = columns.checked_div(own.kind.elements());
            let row = in_row.and_then(|in_row| block.checked_div(in_row));
            let row = row.unwrap_or_default();
            let field = format!("scale in row {row} of tensor {}", self.name);
            return Err(Error::invalid(&self.place, field, value, "finite numbers"));
        }
        let order = own.order.clone();
        let weight = Weight::in_blocks(own.kind, [rows, columns], bytes, order, device);
        weight.map_err(|e| self.named(e))
    }

    /// The weight rounded to blocks of four bits.
    ///
    /// # Errors
    /// A file that cannot be read or has changed; numbers that are not finite; rows that are no whole number of blocks.
    pub(crate) fn rounded(&self, storage: Storage, device: &Device) -> Result<Weight> {
        let values = self.checked(storage, device)?.convert_dtype(DType::F32);
        let values = values.as_slice().map_err(read_error)?;
        Weight::q4k(self.shape.dims(), values, device).map_err(|e| self.named(e))
    }

    fn refuse_blocks(&self) -> Error {
        let allowed = "blocks of a GGUF file";
        Error::invalid(
            &self.place,
            format!("tensor {}", self.name),
            "no blocks",
            allowed,
        )
    }

    fn named(&self, error: Error) -> Error {
        error.at(format!("{}: tensor {}", self.place, self.name))
    }

    /// The tensor in the form of burn's store, read and checked when its data are drawn. An error at that time is noted
    /// in `fault`.
    pub(crate) fn deferred(self, storage: Storage, device: &Device, fault: &Fault) -> PackTensor {
        let (name, shape, fault) = (self.name.clone(), self.shape.clone(), fault.clone());
        let device = device.clone();
        bridge::deferred(name, self.dtype, shape, None, move || {
            self.checked(storage, &device).map_err(|e| fault.note(e))
        })
    }

    fn checked(&self, storage: Storage, device: &Device) -> Result<TensorData> {
        let data = self.data()?;
        let Some((at, value)) = first_lost(&data, self.target(storage, device)) else {
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
