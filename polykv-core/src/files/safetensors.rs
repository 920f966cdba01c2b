//! The header of a safetensors file, checked against the file's size before any tensor is read.

use crate::error::{Error, Result};
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

pub use ::safetensors::tensor::Dtype;

/// The bytes at the start of a file that tell the header's length.
pub const LENGTH_BYTES: u64 = 8;
/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Five times what a model of 1,024 layers has.
const MAX_TENSORS: usize = 1 << 16;
const MAX_NAME_CHARS: usize = 256;
const MAX_DIMS: usize = 8;
const METADATA: &str = "__metadata__";

/// What the header of a file says.
#[derive(Debug)]
pub struct Header {
    /// The text of the metadata that was asked for, if the file has it.
    pub metadata: Option<String>,
    /// The tensors, in the order of their data.
    pub tensors: Vec<Entry>,
}

/// Where a tensor lies and what it holds.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The number format.
    pub dtype: Dtype,
    /// The row-major shape.
    pub shape: Vec<usize>,
    /// The first byte, from the start of the file.
    pub offset: u64,
    /// The number of bytes.
    pub bytes: usize,
}

/// The length of the header, from the first bytes of a file of `size` bytes. `place` names the file in errors.
///
/// # Errors
/// A header above 100 MB or beyond the end of the file.
pub fn header_length(place: &str, first: [u8; LENGTH_BYTES as usize], size: u64) -> Result<u64> {
    let length = u64::from_le_bytes(first);
    if length > MAX_HEADER_BYTES {
        let allowed = format!("at most {MAX_HEADER_BYTES} bytes in a safetensors file");
        let found = format!("{length} bytes");
        return Err(Error::invalid(place, "size of the header", found, allowed));
    }
    match LENGTH_BYTES.saturating_add(length) > size {
        false => Ok(length),
        true => {
            let found = format!("{size} bytes, with a header of {length}");
            Err(unreadable(place, found))
        }
    }
}

/// Reads a header, the JSON of a file of `size` bytes. Of the metadata it keeps the text under `keep`.
///
/// # Errors
/// What is not of the format, more than 65,536 tensors, names that repeat or cannot be shown, more than 8 dimensions, and
/// data that overlap, leave gaps or do not end where the file does.
pub fn read_header(place: &str, json: &[u8], size: u64, keep: Option<&str>) -> Result<Header> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let listed = Collect { keep }.deserialize(&mut deserializer);
    let listed = listed.and_then(|listed| deserializer.end().map(|()| listed));
    let (metadata, mut tensors) = listed.map_err(|e| unreadable(place, e))?;
    check_names(place, &tensors)?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let checked = Metadata::new(None, tensors.clone()).map_err(|e| unreadable(place, e))?;
    let data = LENGTH_BYTES.saturating_add(json.len() as u64);
    let end = data.checked_add(checked.data_len() as u64);
    if end != Some(size) {
        let found = format!(
            "{size} bytes, with {} bytes of tensors from byte {data} on",
            checked.data_len()
        );
        return Err(unreadable(place, found));
    }
    let entry = |(name, info): (String, TensorInfo)| {
        let (start, end) = info.data_offsets;
        Entry {
            name,
            dtype: info.dtype,
            shape: info.shape,
            offset: data.saturating_add(start as u64),
            bytes: end.saturating_sub(start),
        }
    };
    Ok(Header {
        metadata,
        tensors: tensors.into_iter().map(entry).collect(),
    })
}

/// The error for what is no safetensors file.
pub fn unreadable(place: &str, found: impl fmt::Display) -> Error {
    Error::invalid(place, "content", found, "a safetensors file")
}

fn check_names(place: &str, tensors: &[(String, TensorInfo)]) -> Result<()> {
    let mut seen = HashSet::new();
    for (name, _) in tensors {
        // They go into error messages, which are one line.
        if name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
            let cut: String = name.chars().take(64).collect();
            let allowed = format!("up to {MAX_NAME_CHARS} printable characters");
            let found = format!("{cut:?}");
            return Err(Error::invalid(place, "name of a tensor", found, allowed));
        }
        if !seen.insert(name) {
            let field = format!("tensor {name}");
            return Err(Error::invalid(place, field, "twice in the header", "once"));
        }
    }
    Ok(())
}

/// Collects the tensors, repeated names included: a map would keep the last of them silently.
struct Collect<'a> {
    keep: Option<&'a str>,
}

type Listed = (Option<String>, Vec<(String, TensorInfo)>);

impl<'de> DeserializeSeed<'de> for Collect<'_> {
    type Value = Listed;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Listed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Listed, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                let kept = map.next_value_seed(Texts { keep: self.keep })?;
                if metadata.replace(kept).is_some() {
                    return Err(A::Error::duplicate_field(METADATA));
                }
                continue;
            }
            if tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let Info {
                dtype,
                shape: Dims(shape),
                data_offsets,
            } = map.next_value()?;
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets,
            };
            tensors.push((name, info));
        }
        Ok((metadata.flatten(), tensors))
    }
}

/// [`TensorInfo`], of which a header of 100 MB cannot make a list of 50 million numbers.
#[derive(Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Dims,
    data_offsets: (usize, usize),
}

struct Dims(Vec<usize>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Dims, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = list.next_element()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::custom(format!("more than {MAX_DIMS} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }

        deserializer.deserialize_seq(Collect)
    }
}

/// A map of texts, which is checked; only one of them is kept.
struct Texts<'a> {
    keep: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Option<String>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Option<String>, A::Error> {
        let mut kept = None;
        while let Some((name, text)) = map.next_entry::<String, String>()? {
            if self.keep == Some(name.as_str()) && kept.replace(text).is_some() {
                return Err(A::Error::custom(format!("two texts under {name}")));
            }
        }
        Ok(kept)
    }
}
