//! Weights that are no tensors of burn: read, checked and handed to the matrices of a model by their names.

use crate::layers::{LoadedWeights, Matrices};
use crate::stored::Stored;
use burn::module::Module;
use burn::tensor::Device;
use polykv_core::ops::{self, SharedBytes, Weight};
use polykv_core::{Error, Result, Storage, machine};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Weights by the names of their tensors.
pub(super) type Named = HashMap<String, Weight>;

/// Takes the tensors that a model stores in blocks out of the list and reads them.
///
/// # Errors
/// A file that cannot be read or has changed; numbers that are not finite; rows that are no whole number of blocks.
pub(super) fn read(
    tensors: Vec<Stored>,
    storage: Storage,
    device: &Device,
) -> Result<(Named, Vec<Stored>)> {
    let (own, rest): (Vec<_>, Vec<_>) = tensors
        .into_iter()
        .partition(|tensor| tensor.is_in_blocks(storage));
    let weights = match storage {
        Storage::Native if ops::is_cpu(device) => as_they_are(&own, device)?,
        // The host holds one tensor at a time, that of a file or one in f32.
        Storage::Native => own
            .iter()
            .map(|tensor| copied(tensor, device))
            .collect::<Result<_>>()?,
        _ => own
            .iter()
            .map(|tensor| tensor.rounded(storage, device))
            .collect::<Result<_>>()?,
    };
    let names = own.into_iter().map(|tensor| tensor.name);
    Ok((names.zip(weights).collect(), rest))
}

/// All in one region, so that even small tensors lie on huge pages: a processor reads all of it for every token.
fn as_they_are(tensors: &[Stored], device: &Device) -> Result<Vec<Weight>> {
    let total: u64 = tensors.iter().map(Stored::own_bytes).sum();
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(usize::try_from(total).unwrap_or(usize::MAX))
        .map_err(|e| Error::Failed(format!("{total} bytes of weights: {e}")))?;
    machine::prefer_huge_pages(bytes.spare_capacity_mut());
    let mut ranges = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let start = bytes.len();
        tensor.append_blocks(&mut bytes)?;
        ranges.push(start..bytes.len());
    }
    machine::use_huge_pages(&bytes);
    let owner = Arc::new(bytes);
    let tensors = tensors.par_iter().zip(ranges);
    tensors
        .map(|(tensor, range)| tensor.in_blocks(SharedBytes::new(owner.clone(), range)?, device))
        .collect()
}

/// On a device with memory of its own.
fn copied(tensor: &Stored, device: &Device) -> Result<Weight> {
    let mut bytes = Vec::new();
    tensor.append_blocks(&mut bytes)?;
    tensor.in_blocks(bytes.into(), device)
}

/// The weights by the parameters of the model whose place they take.
///
/// # Errors
/// A tensor that the model does not have, or has in another shape.
pub(super) fn assign<M: Module>(model: &M, named: Named, place: &str) -> Result<LoadedWeights> {
    let mut matrices = Matrices::of(model);
    let mut loaded = LoadedWeights::default();
    for (name, weight) in named {
        let Some((id, shape)) = matrices.remove(&name) else {
            let field = format!("tensor {name}");
            return Err(Error::invalid(
                place,
                field,
                "unknown",
                "a tensor of the model",
            ));
        };
        if weight.shape() != shape {
            let field = format!("shape of tensor {name}");
            let (found, allowed) = (format!("{:?}", weight.shape()), format!("{shape:?}"));
            return Err(Error::invalid(place, field, found, allowed));
        }
        loaded.insert(id, name, weight);
    }
    Ok(loaded)
}
