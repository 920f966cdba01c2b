//! The header of a safetensors file, checked against the file before any tensor is read.

use crate::stored::WeightFile;
use polykv_core::files::safetensors::{self, Dtype, Entry, LENGTH_BYTES};
use polykv_core::{Error, Result};

/// The tensors of a file, in the order of their data.
///
/// # Errors
/// A header above 100 MB (before it is read) or not of the format, more than 65,536 tensors, names that repeat or cannot
/// be shown, more than 8 dimensions, dtypes other than f32, f16 and bf16, data that overlap, leave gaps or do not end where the file does.
pub fn read(file: &WeightFile) -> Result<Vec<Entry>> {
    let place = file.place();
    if file.size() < LENGTH_BYTES {
        let found = format!("{} bytes", file.size());
        return Err(safetensors::unreadable(place, found));
    }
    let mut first = [0; LENGTH_BYTES as usize];
    first.copy_from_slice(&file.bytes(0, LENGTH_BYTES as usize)?);
    let length = safetensors::header_length(place, first, file.size())?;
    let json = file.bytes(LENGTH_BYTES, length as usize)?;
    let header = safetensors::read_header(place, &json, file.size(), None)?;
    let other = |entry: &&Entry| !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    match header.tensors.iter().find(other) {
        None => Ok(header.tensors),
        Some(Entry { name, dtype, .. }) => Err(Error::invalid(
            place,
            format!("dtype of tensor {name}"),
            format!("{dtype:?}"),
            "F32, F16, BF16",
        )),
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
        let entries: Vec<String> = (0..=1 << 16).map(|i| format!("\"{i}\": {entry}")).collect();
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
