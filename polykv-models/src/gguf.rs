//! GGUF files, versions 2 and 3, whole or split into parts: metadata, tensor directory and conversion of tensors to f32.
//!
//! Opening reads and checks the headers; tensors are read and converted when asked for.

#![cfg_attr(
    not(test),
    warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)
)]

mod config;
#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "inner loops over blocks, which have the size that their type says"
)]
mod dequant;
mod layers;
mod layout;
mod parse;
pub(crate) mod parts;
mod rope;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod value;

pub use dequant::GgmlType;
pub use tensors::{hf_name, tensors, unpermute_rope_rows};
pub use value::{TensorInfo, Value};

use crate::stored::WeightFile;
use polykv_core::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// About how many bytes of a tensor are converted at once.
const PIECE_BYTES: usize = 4 << 20;

/// An open GGUF file, or all parts of one that was split.
pub struct GgufFile {
    /// In their order; one unless the file was split.
    parts: Vec<WeightFile>,
    place: String,
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

// Derived, it would print the whole vocabulary.
impl fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufFile")
            .field("place", &self.place())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl GgufFile {
    /// Opens a file and checks its header: counts, lengths, types, alignment, offsets against each other and against
    /// the file's size, and that the padding between tensors is zero.
    ///
    /// A path that ends in `-00002-of-00003.gguf` stands for all three parts of a split file, which must lie beside
    /// each other. Metadata are those of the first part.
    ///
    /// # Errors
    /// What is malformed, by name; a part that is missing, is not the one that its name says, has other metadata than
    /// the first, or holds a tensor of another part; a number of tensors that is not the one announced; a Git LFS
    /// pointer.
    pub fn open(path: &Path) -> Result<Self> {
        parts::open(path)
    }

    /// The path of the file, or of its first part, as errors name it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The path of the part that holds a tensor, as errors name it.
    pub fn place_of(&self, tensor: &TensorInfo) -> &str {
        self.parts
            .get(tensor.part)
            .map_or(self.place(), WeightFile::place)
    }

    /// Drops the metadata of the tokenizer: tens of megabytes of short texts.
    pub(crate) fn forget_vocabulary(&mut self) {
        self.values.retain(|key, _| !key.starts_with("tokenizer."));
    }

    /// The keys of all metadata values, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The metadata value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The value of a key as an integer that is not negative; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", Value::as_u64)
    }

    /// The value of a key as a number; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// The value of a key as a text; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// The value of a key as true or false; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// The value of a key as a list of texts; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "an array of texts", |v| {
            v.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// The value of a key as a list of integers that are not negative; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn uints(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.typed(key, "an array of whole numbers", |v| {
            v.as_array()?.iter().map(Value::as_u64).collect()
        })
    }

    /// The value of a key as a list of numbers; `None` without the key.
    ///
    /// # Errors
    /// A value of another type.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "an array of numbers", |v| {
            v.as_array()?.iter().map(Value::as_f64).collect()
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.value(key)
            .map(|v| read(v).ok_or_else(|| self.refuse(key, v.shown(), allowed)))
            .transpose()
    }

    fn refuse(&self, field: &str, found: impl fmt::Display, allowed: &str) -> Error {
        Error::invalid(self.place(), field, found, allowed)
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The directory entry of a tensor: shape, number format and bytes.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// A tensor converted to f32, in row-major order of [`TensorInfo::shape`].
    ///
    /// # Errors
    /// A tensor that is missing, a type without a conversion (such as Q2_K or IQ4_XS), a file that cannot be read or
    /// has changed.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let elements = self.existing(name)?.elements();
        self.read_f32_part(name, 0..elements)
    }

    /// Some consecutive elements of a tensor, whole rows of it, converted to f32.
    ///
    /// # Errors
    /// As [`GgufFile::read_f32`]; a range beyond the tensor, or one that cuts a block of its type.
    pub fn read_f32_part(&self, name: &str, elements: Range<usize>) -> Result<Vec<f32>> {
        let info = self.existing(name)?;
        let (kind, file) = (info.ggml_type, self.part_of(info)?);
        let Range { start, end } = self.bytes_of(info, name, &elements)?;
        // Whole blocks.
        let piece = PIECE_BYTES.next_multiple_of(kind.block_bytes().max(1));
        let mut values = Vec::new();
        for start in (start..end).step_by(piece) {
            let bytes = file.bytes(start as u64, piece.min(end.saturating_sub(start)))?;
            let part = dequant::to_f32(kind, &bytes).ok_or_else(|| {
                let what = format!("type {} of tensor {name}", kind.name());
                let reason = format!("{}: allowed are {}", file.place(), dequant::CONVERTIBLE);
                Error::unsupported(what, reason)
            })?;
            match values.is_empty() {
                true => values = part,
                false => values.extend_from_slice(&part),
            }
            values.reserve_exact(elements.len().saturating_sub(values.len()));
        }
        Ok(values)
    }

    /// Appends the bytes of some consecutive elements of a tensor, whole rows of it, as the file holds them.
    ///
    /// # Errors
    /// A tensor that is missing; a range beyond the tensor, or one that cuts a block of its type; a file that cannot be read
    /// or has changed.
    pub fn append_part(
        &self,
        name: &str,
        elements: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let info = self.existing(name)?;
        let range = self.bytes_of(info, name, &elements)?;
        let file = self.part_of(info)?;
        file.append(range.start as u64, range.len(), bytes)
    }

    /// Where some consecutive elements of a tensor lie in its file.
    fn bytes_of(
        &self,
        info: &TensorInfo,
        name: &str,
        elements: &Range<usize>,
    ) -> Result<Range<usize>> {
        let kind = info.ggml_type;
        let bytes = kind.bytes(elements.start).zip(kind.bytes(elements.end));
        let inside = elements.start <= elements.end && elements.end <= info.elements();
        let Some((start, end)) = bytes.filter(|_| inside) else {
            let allowed = format!("whole rows of its {} elements", info.elements());
            let field = format!("part of tensor {name}");
            return Err(self.refuse(&field, format!("{elements:?}"), &allowed));
        };
        let first = info.range.start;
        Ok(first.saturating_add(start)..first.saturating_add(end))
    }

    fn part_of(&self, info: &TensorInfo) -> Result<&WeightFile> {
        let missing = || self.refuse("part of a split file", "missing", "present");
        self.parts.get(info.part).ok_or_else(missing)
    }

    fn existing(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name)
            .ok_or_else(|| self.refuse(&format!("tensor {name}"), "missing", "present"))
    }
}
