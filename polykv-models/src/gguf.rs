//! GGUF files, versions 2 and 3: metadata, tensor directory and conversion of tensors to f32.
//!
//! Opening reads and checks the header; tensors are read and converted when asked for.

mod config;
mod dequant;
mod k_quants;
mod layers;
mod layout;
mod parse;
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
use parse::Directory;
use polykv_core::{Error, Result};
use std::fmt;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

/// About how many bytes of a tensor are converted at once.
const PIECE_BYTES: usize = 4 << 20;

/// An open GGUF file.
pub struct GgufFile {
    file: WeightFile,
    directory: Directory,
}

// Derived, it would print the whole vocabulary.
impl fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufFile")
            .field("place", &self.place())
            .field("tensors", &self.directory.tensors.len())
            .finish_non_exhaustive()
    }
}

impl GgufFile {
    /// Opens a file and checks its header: counts, lengths, types, alignment, offsets against each other and against
    /// the file's size, and that the padding between tensors is zero.
    ///
    /// # Errors
    /// What is malformed, by name; one part of a file that was split; a Git LFS pointer.
    pub fn open(path: &Path) -> Result<Self> {
        let file = WeightFile::open(path)?;
        if file.size() == 0 {
            return Err(Error::invalid(
                file.place(),
                "size",
                "0 bytes",
                "a GGUF file",
            ));
        }
        let directory = parse::parse(file.place(), BufReader::new(file.reader()), file.size())?;
        let file = Self { file, directory };
        file.refuse_part()?;
        file.check_padding()?;
        Ok(file)
    }

    /// Files that llama.cpp split hold a part of the tensors each.
    fn refuse_part(&self) -> Result<()> {
        let count = self.uint("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(());
        }
        let part = self.uint("split.no")?.unwrap_or(0).saturating_add(1);
        let reason = format!(
            "{}: join the parts with `llama-gguf-split --merge FIRST-PART WHOLE.gguf`",
            self.place()
        );
        let what = format!("part {part} of a GGUF file split in {count}");
        Err(Error::unsupported(what, reason))
    }

    /// Anything else than zero between two tensors means that a type, a shape or the alignment is not what was written.
    fn check_padding(&self) -> Result<()> {
        for (before, gap) in &self.directory.gaps {
            let bytes = self.file.bytes(gap.start as u64, gap.len())?;
            if let Some(found) = bytes.iter().find(|byte| **byte != 0) {
                let field = format!("padding after {before}");
                return Err(self.refuse(
                    &field,
                    found,
                    "zeros up to the next multiple of the alignment",
                ));
            }
        }
        Ok(())
    }

    /// The file's path, as errors name it.
    pub fn place(&self) -> &str {
        self.file.place()
    }

    /// The metadata value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.directory.values.get(key)
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
        self.directory.tensors.keys().map(String::as_str)
    }

    /// The directory entry of a tensor: shape, number format and bytes.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.directory.tensors.get(name)
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
        let kind = info.ggml_type;
        let bytes = kind.bytes(elements.start).zip(kind.bytes(elements.end));
        let inside = elements.start <= elements.end && elements.end <= info.elements();
        let Some((start, end)) = bytes.filter(|_| inside) else {
            let allowed = format!("whole rows of its {} elements", info.elements());
            let field = format!("part of tensor {name}");
            return Err(self.refuse(&field, format!("{elements:?}"), &allowed));
        };
        let (start, end) = (info.range.start + start, info.range.start + end);
        let piece = (PIECE_BYTES / kind.block_bytes()).max(1) * kind.block_bytes();
        let mut values = Vec::new();
        for start in (start..end).step_by(piece) {
            let bytes = self.file.bytes(start as u64, piece.min(end - start))?;
            let part = dequant::to_f32(kind, &bytes).ok_or_else(|| {
                let what = format!("type {} of tensor {name}", kind.name());
                let reason = format!("{}: allowed are {}", self.place(), dequant::CONVERTIBLE);
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

    fn existing(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name)
            .ok_or_else(|| self.refuse(&format!("tensor {name}"), "missing", "present"))
    }
}
