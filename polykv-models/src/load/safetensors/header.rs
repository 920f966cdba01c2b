//! The header of a safetensors file, checked against the file before any tensor is read.

use crate::stored::WeightFile;
use polykv_core::{Error, Result};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Five times what a model of 1,024 layers has.
const MAX_TENSORS: usize = 1 << 16;
const MAX_NAME_CHARS: usize = 256;
const MAX_DIMS: usize = 8;
/// The bytes that tell the header's length.
const LENGTH_BYTES: u64 = 8;
const METADATA: &str = "__metadata__";

/// Where a tensor lies and what it holds.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: usize,
}

/// The tensors of a file, in the order of their data.
///
/// # Errors
/// A header above 100 MB (before it is read) or not of the format, more than 65,536 tensors, names that repeat or cannot
/// be shown, more than 8 dimensions, dtypes other than f32, f16 and bf16, data that overlap, leave gaps or do not end where the file does.
pub fn read(file: &WeightFile) -> Result<Vec<Entry>> {
    let place = file.place();
    let unreadable =
        |found: &dyn fmt::Display| Error::invalid(place, "content", found, "a safetensors file");
    if file.size() < LENGTH_BYTES {
        return Err(unreadable(&format!("{} bytes", file.size())));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    length.copy_from_slice(&file.bytes(0, LENGTH_BYTES as usize)?);
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        let allowed = format!("at most {MAX_HEADER_BYTES} bytes in a safetensors file");
        let found = format!("{length} bytes");
        return Err(Error::invalid(place, "size of the header", found, allowed));
    }
    let data = LENGTH_BYTES.saturating_add(length);
    if data > file.size() {
        let found = format!("{} bytes, with a header of {length}", file.size());
        return Err(unreadable(&found));
    }
    let header: Header = serde_json::from_slice(&file.bytes(LENGTH_BYTES, length as usize)?)
        .map_err(|e| unreadable(&e))?;
    check_names(place, &header)?;
    let mut tensors = header.0;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let metadata = Metadata::new(None, tensors.clone()).map_err(|e| unreadable(&e))?;
    let end = data.checked_add(metadata.data_len() as u64);
    if end != Some(file.size()) {
        let found = format!(
            "{} bytes, with {} bytes of tensors from byte {data} on",
            file.size(),
            metadata.data_len()
        );
        return Err(unreadable(&found));
    }
    let entry = |(name, info): (String, TensorInfo)| {
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::invalid(
                place,
                format!("dtype of tensor {name}"),
                format!("{:?}", info.dtype),
                "F32, F16, BF16",
            ));
        }
        let (start, end) = info.data_offsets;
        Ok(Entry {
            name,
            dtype: info.dtype,
            shape: info.shape,
            offset: data.saturating_add(start as u64),
            bytes: end.saturating_sub(start),
        })
    };
    tensors.into_iter().map(entry).collect()
}

fn check_names(place: &str, header: &Header) -> Result<()> {
    let mut seen = HashSet::new();
    for (name, _) in &header.0 {
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

/// The tensors, repeated names included: a map would keep the last of them silently.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Header, A::Error> {
                let mut tensors = Vec::new();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        if metadata.replace(map.next_value::<Texts>()?).is_some() {
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
                Ok(Header(tensors))
            }
        }

        deserializer.deserialize_map(Collect)
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

/// A map of texts, which is checked and not kept.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Skip;

        impl<'de> Visitor<'de> for Skip {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of texts")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Texts, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(Texts)
            }
        }

        deserializer.deserialize_map(Skip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tensors of a file with this header and so many bytes of data.
    fn read_header(header: &str, data: usize) -> Result<Vec<Entry>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let length = (header.len() as u64).to_le_bytes();
        let content = [&length[..], header.as_bytes(), &vec![0; data]].concat();
        std::fs::write(&path, content).unwrap();
        read(&WeightFile::open(&path)?)
    }

    #[test]
    fn entries_come_in_the_order_of_their_data() {
        let header = r#"{"__metadata__": {"format": "pt"},
            "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
        let entries = read_header(header, 16).unwrap();
        let start = 8 + header.len() as u64;
        let found: Vec<_> = entries
            .iter()
            .map(|e| (e.name.as_str(), e.offset - start, e.bytes))
            .collect();
        assert_eq!(found, [("a", 0, 4), ("b", 4, 12)]);
        for data in [15, 17] {
            assert!(read_header(header, data).unwrap_err().is_refusal());
        }
    }

    #[test]
    fn counts_and_metadata_are_bounded() {
        let entry = r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#;
        let entries: Vec<String> = (0..=MAX_TENSORS)
            .map(|i| format!("\"{i}\": {entry}"))
            .collect();
        let many = format!("{{{}}}", entries.join(","));
        let few = format!("{{{}}}", entries[..9].join(","));
        assert_eq!(read_header(&few, 0).unwrap().len(), 9);
        let cases = [
            (many.as_str(), "more than 65536 tensors"),
            (r#"{"__metadata__": {"a": 1}}"#, "a string"),
            (r#"{"__metadata__": {}, "__metadata__": {}}"#, "duplicate"),
            (r#"{"0": {}}"#, "dtype"),
            (
                r#"{"0": {"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}}"#,
                "more than 8 dimensions",
            ),
            (
                r#"{"a\n": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}"#,
                "name of a tensor",
            ),
        ];
        for (header, named) in cases {
            let message = read_header(header, 0).unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }
}
