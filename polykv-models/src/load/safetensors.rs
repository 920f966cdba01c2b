//! Reading safetensors files: one, or the shards that an index lists.

mod header;
mod index;

use crate::stored::Stored;
use crate::stored::WeightFile;
use burn::tensor::{Bytes, DType, Shape, TensorData};
use polykv_core::files::safetensors::{Dtype, Entry};
use polykv_core::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Buffers that old checkpoints carry beside the weights and that are computed here.
const COMPUTED: &str = ".rotary_emb.inv_freq";

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a folder holds safetensors weights under their usual names.
pub(super) fn has_weights(folder: &Path) -> bool {
    folder.join(WEIGHTS).exists() || folder.join(INDEX).exists()
}

/// All tensors of a folder, and the file that errors about them should name: `model.safetensors`, or without it the
/// shards that `model.safetensors.index.json` lists.
///
/// # Errors
/// An index that is malformed, names files outside the folder, or disagrees with its shards; a Git LFS pointer; a
/// header that does not describe its file (overlaps, gaps, sizes), names that repeat, dtypes other than f32, f16 and
/// bf16.
pub fn read_folder(folder: &Path) -> Result<(PathBuf, Vec<Stored>)> {
    let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    if single.exists() || !index.exists() {
        let tensors = read(&single)?;
        return Ok((single, tensors));
    }
    let mut tensors = Vec::new();
    for (file, listed) in index::read(&index)? {
        let path = folder.join(file);
        let found = read_all(&path)?;
        let place = path.display().to_string();
        for tensor in &found {
            if !listed.contains(&tensor.name) {
                let allowed = format!("a tensor that {INDEX} lists for this file");
                return Err(Error::invalid(
                    place,
                    format!("tensor {}", tensor.name),
                    "not listed",
                    allowed,
                ));
            }
        }
        // Names are unique in both, so as many found as listed are the same ones.
        if found.len() < listed.len() {
            let has = |name: &&String| found.iter().any(|tensor| tensor.name == **name);
            let name = listed.iter().find(|name| !has(name));
            let field = format!("tensor {}", name.map_or("", String::as_str));
            let allowed = format!("present, since {INDEX} lists it");
            return Err(Error::invalid(place, field, "missing", allowed));
        }
        tensors.extend(found);
    }
    Ok((index, without_computed(tensors)))
}

/// The tensors of a safetensors file under their names in the file. Data are read when they are asked for. Buffers of
/// rotary frequencies that old checkpoints carry are left out.
///
/// # Errors
/// A Git LFS pointer; a header that does not describe the file (overlaps, gaps, sizes), names that repeat, dtypes other
/// than f32, f16 and bf16.
pub fn read(path: &Path) -> Result<Vec<Stored>> {
    Ok(without_computed(read_all(path)?))
}

fn without_computed(mut tensors: Vec<Stored>) -> Vec<Stored> {
    tensors.retain(|tensor| !tensor.name.ends_with(COMPUTED));
    tensors
}

fn read_all(path: &Path) -> Result<Vec<Stored>> {
    let file = Arc::new(WeightFile::open(path)?);
    let entries = header::read(&file)?;
    Ok(entries.into_iter().map(|e| stored(&file, e)).collect())
}

fn stored(file: &Arc<WeightFile>, entry: Entry) -> Stored {
    let dtype = match entry.dtype {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        // The header has no others.
        _ => DType::F32,
    };
    let (source, shape) = (file.clone(), Shape::from(entry.shape));
    let declared = shape.clone();
    let (offset, count) = (entry.offset, entry.bytes);
    Stored::new(entry.name, dtype, declared, file.place(), move || {
        let bytes = Bytes::from_bytes_vec(source.bytes(offset, count)?);
        TensorData::try_from_bytes(bytes, shape.clone(), dtype)
            .map_err(|e| Error::invalid(source.place(), "data", e, "as the header says"))
    })
}
