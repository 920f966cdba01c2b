//! model.safetensors.index.json: which shard holds which tensor.

use crate::stored::refuse_pointer;
use polykv_core::files::read_capped;
use polykv_core::{Error, Result};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::Path;

/// Some hundred bytes per tensor; the largest published indexes stay below this.
const MAX_INDEX_BYTES: u64 = 8 << 20;
const MAX_SHARDS: usize = 1024;

/// The entries of a JSON object, repeated names included: serde's own maps keep the last of them silently.
struct Entries(Vec<(String, String)>);

impl Entries {
    /// A name that occurs more than once.
    fn repeated(&self) -> Option<&str> {
        let mut seen = HashSet::new();
        let mut names = self.0.iter().map(|(name, _)| name.as_str());
        names.find(|name| !seen.insert(*name))
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

#[derive(Deserialize)]
struct Index {
    /// Tensor to file.
    weight_map: Entries,
}

/// The tensors that each shard must hold, by file name.
///
/// # Errors
/// A file above 8 MiB or not of the format, tensors listed twice, file names that are paths, more than 1024 files.
pub fn read(path: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let place = path.display().to_string();
    let text = read_capped(path, MAX_INDEX_BYTES)?;
    refuse_pointer(&place, &text)?;
    parse(&place, &text)
}

fn parse(place: &str, text: &[u8]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let index: Index = serde_json::from_slice(text).map_err(|e| {
        let allowed = "an object with weight_map, from tensor names to file names";
        Error::invalid(place, "content", e, allowed)
    })?;
    if let Some(name) = index.weight_map.repeated() {
        let field = format!("weight_map {name:?}");
        return Err(Error::invalid(place, field, "listed twice", "once"));
    }
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in index.weight_map.0 {
        if !is_plain(&file) {
            let cut: String = file.chars().take(64).collect();
            return Err(Error::invalid(
                place,
                "weight_map file",
                format!("{cut:?}"),
                "the plain name of a .safetensors file beside the index",
            ));
        }
        shards.entry(file).or_default().insert(tensor);
    }
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        let found = format!("{} files", shards.len());
        let allowed = format!("1 to {MAX_SHARDS}");
        return Err(Error::invalid(place, "weight_map", found, allowed));
    }
    Ok(shards)
}

/// Neither a path nor a hidden file: nothing that could lead out of the folder.
fn is_plain(file: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    file.len() <= 255
        && file.ends_with(".safetensors")
        && !file.starts_with('.')
        && file.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_grouped_by_file() {
        let text = r#"{"metadata": {"total_size": 8}, "weight_map":
            {"b": "2.safetensors", "a": "1.safetensors", "c": "1.safetensors"}}"#;
        let shards = parse("index.json", text.as_bytes()).unwrap();
        let names = |file: &str| shards[file].iter().cloned().collect::<Vec<_>>();
        assert_eq!(shards.len(), 2);
        assert_eq!(names("1.safetensors"), ["a", "c"]);
        assert_eq!(names("2.safetensors"), ["b"]);
    }

    #[test]
    fn refusals() {
        let files = [
            "../1.safetensors",
            "/tmp/1.safetensors",
            "a\\\\1.safetensors",
            "..",
            ".safetensors",
            "1.bin",
            "1\\n.safetensors",
            "",
        ];
        let map = |file: &str| format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#);
        let mut cases: Vec<(String, &str)> = files
            .iter()
            .map(|file| (map(file), "weight_map file"))
            .collect();
        let many: Vec<String> = (0..=MAX_SHARDS)
            .map(|i| format!(r#""t{i}": "{i}.safetensors""#))
            .collect();
        cases.extend([
            (format!(r#"{{"weight_map": {{{}}}}}"#, many.join(",")), "1025 files"),
            (r#"{"weight_map": {}}"#.into(), "0 files"),
            (r#"{"weight_map": {"a": 1}}"#.into(), "content"),
            (r#"{"weight_map": []}"#.into(), "an object"),
            ("{}".into(), "weight_map"),
            ("[".into(), "content"),
            (
                r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "\u0061": "2.safetensors"}}"#.into(),
                "weight_map \"a\" is listed twice",
            ),
        ]);
        for (text, named) in cases {
            let message = parse("index.json", text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(
                message.starts_with("index.json: ") && message.contains(named),
                "{named}: {message}"
            );
            assert_eq!(message.lines().count(), 1);
        }
    }
}
