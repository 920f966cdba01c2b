//! Reading safetensors files through burn-store, after a check of what it takes on trust.

mod index;

use burn_store::burn_pack::Tensor as PackTensor;
use burn_store::{ModuleStore, SafetensorsStore};
use index::Entries;
use polykv_core::{Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::de::IgnoredAny;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Buffers that old checkpoints carry beside the weights and that are computed here.
const COMPUTED: &str = ".rotary_emb.inv_freq";

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_NAME_CHARS: usize = 256;

/// All tensors of a folder, and the file that errors about them should name: `model.safetensors`, or without it the
/// shards that `model.safetensors.index.json` lists.
///
/// # Errors
/// As [`read`]; an index that is malformed, names files outside the folder, or disagrees with its shards.
pub fn read_folder(folder: &Path) -> Result<(PathBuf, Vec<PackTensor>)> {
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

/// All tensors of a file, lazily, under their names in the file.
///
/// # Errors
/// A header that does not describe the file (overlaps, gaps, sizes), names that repeat, dtypes other than f32, f16
/// and bf16.
pub fn read(path: &Path) -> Result<Vec<PackTensor>> {
    Ok(without_computed(read_all(path)?))
}

fn without_computed(mut tensors: Vec<PackTensor>) -> Vec<PackTensor> {
    tensors.retain(|tensor| !tensor.name.ends_with(COMPUTED));
    tensors
}

fn read_all(path: &Path) -> Result<Vec<PackTensor>> {
    let place = path.display().to_string();
    check(path, &place)?;
    let mut store = SafetensorsStore::from_file(path);
    let tensors = store.get_all_tensors().map_err(|e| unreadable(&place, e))?;
    Ok(tensors.values().cloned().collect())
}

fn check(path: &Path, place: &str) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::invalid(place, "kind", "not a plain file", "a file"));
    }
    // SAFETY: the map is only read, and only here; a file that another process shortens meanwhile is the one hazard
    // that a memory map cannot exclude.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    check_names(&map, place)?;
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

/// The crate keeps the last of two tensors with one name, so the header is read once more. A header that is no JSON
/// object is left for the crate to refuse.
fn check_names(bytes: &[u8], place: &str) -> Result<()> {
    let Some(header) = header(bytes) else {
        return Ok(());
    };
    let Ok(entries) = serde_json::from_slice::<Entries<IgnoredAny>>(header) else {
        return Ok(());
    };
    for (name, _) in &entries.0 {
        // They go into error messages, which are one line.
        if name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
            let cut: String = name.chars().take(64).collect();
            let allowed = format!("up to {MAX_NAME_CHARS} printable characters");
            return Err(Error::invalid(
                place,
                "name of a tensor",
                format!("{cut:?}"),
                allowed,
            ));
        }
    }
    match entries.repeated() {
        Some(name) => Err(Error::invalid(
            place,
            format!("tensor {name}"),
            "twice in the header",
            "once",
        )),
        None => Ok(()),
    }
}

/// The JSON after the eight bytes that tell its length; `None` where they promise more than there is.
fn header(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

fn unreadable(place: &str, error: impl std::fmt::Display) -> Error {
    Error::invalid(place, "content", error, "a safetensors file")
}
