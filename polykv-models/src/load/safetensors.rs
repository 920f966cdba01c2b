//! Reading safetensors files through burn-store, after a check of what it takes on trust.

use burn_store::burn_pack::Tensor as PackTensor;
use burn_store::{ModuleStore, SafetensorsStore};
use polykv_core::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::fs::File;
use std::path::Path;

/// Buffers that old checkpoints carry beside the weights and that are computed here.
const COMPUTED: &str = ".rotary_emb.inv_freq";

/// All tensors of a file, lazily, under their names in the file.
///
/// # Errors
/// A header that does not describe the file (overlaps, gaps, sizes), names that repeat, dtypes other than f32, f16
/// and bf16.
pub fn read(path: &Path) -> Result<Vec<PackTensor>> {
    let place = path.display().to_string();
    check(path, &place)?;
    let mut store = SafetensorsStore::from_file(path);
    let tensors = store.get_all_tensors().map_err(|e| unreadable(&place, e))?;
    Ok(tensors
        .values()
        .filter(|tensor| !tensor.name.ends_with(COMPUTED))
        .cloned()
        .collect())
}

fn check(path: &Path, place: &str) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: the map is only read, and only here; a file that another process shortens meanwhile is the one hazard
    // that a memory map cannot exclude.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let tensors = SafeTensors::deserialize(&map).map_err(|e| unreadable(place, e))?;
    for (name, tensor) in tensors.iter() {
        if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::invalid(
                place,
                format!("dtype of tensor {name}"),
                format!("{:?}", tensor.dtype()),
                "F32, F16, BF16",
            ));
        }
    }
    Ok(())
}

fn unreadable(place: &str, error: impl std::fmt::Display) -> Error {
    Error::invalid(place, "content", error, "a safetensors file")
}
