//! Files that llama.cpp's `gguf-split` or a converter cut into parts: `NAME-00001-of-00003.gguf` and so on, beside each
//! other. Every part is a GGUF file with tensors of its own; the first has the metadata of the whole.

use super::parse::{self, Directory, MAX_ENTRIES};
use super::value::{Value, quoted};
use super::{GgufFile, TensorInfo};
use crate::stored::WeightFile;
use polykv_core::{Error, Result};
use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Far above what files are split into, and below the number of files that a process may open.
const MAX_PARTS: u32 = 512;
/// The part's number from 0, the number of parts, and the number of tensors in all of them.
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// Each part is laid out by itself.
const ALIGNMENT: &str = "general.alignment";

/// What the name of a part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartName {
    stem: String,
    /// From 1.
    number: u32,
    count: u32,
}

impl PartName {
    /// Of `NAME-00002-of-00003.gguf`; none for other names, and for numbers beyond the limits.
    pub fn parse(file: &str) -> Option<Self> {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let all = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
            all.then(|| text.parse::<u32>().ok())?
        };
        let (number, count) = (digits(number)?, digits(count)?);
        let known = (2..=MAX_PARTS).contains(&count) && (1..=count).contains(&number);
        known.then(|| Self {
            stem: stem.to_owned(),
            number,
            count,
        })
    }

    fn of(path: &Path) -> Option<Self> {
        Self::parse(path.file_name()?.to_str()?)
    }

    /// The file names of all parts, in their order.
    pub fn all(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.count)
            .map(|number| format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

/// The file name of the first part of the set that a part belongs to; that of the file itself where it is no part.
pub(crate) fn first_name(file: &str) -> String {
    PartName::parse(file)
        .and_then(|part| part.all().next())
        .unwrap_or_else(|| file.to_owned())
}

pub(super) fn open(path: &Path) -> Result<GgufFile> {
    match PartName::of(path) {
        Some(name) => open_all(path, &name),
        None => {
            let part = Part::open(path)?;
            part.refuse_split()?;
            let mut whole = GgufFile::empty(part.file.place());
            whole.add(part)?;
            Ok(whole)
        }
    }
}

fn open_all(path: &Path, name: &PartName) -> Result<GgufFile> {
    let mut paths = name.all().map(|part| path.with_file_name(part));
    let first: PathBuf = paths.next().unwrap_or_else(|| path.to_owned());
    let mut whole = GgufFile::empty(&first.display().to_string());
    let mut announced = None;
    for (index, path) in (0u64..).zip(std::iter::once(first).chain(paths)) {
        if !path.exists() {
            let allowed = format!("present, beside the other parts of {}", name.stem);
            return Err(Error::invalid(path.display(), "file", "missing", allowed));
        }
        let part = Part::open(&path)?;
        part.expect(NUMBER, index)?;
        part.expect(COUNT, name.count.into())?;
        match announced {
            None => announced = Some(part.uint(TENSORS)?),
            Some(count) => part.expect(TENSORS, count)?,
        }
        whole.add(part)?;
    }
    let found = whole.tensors.len();
    match announced {
        Some(count) if count != found as u64 => {
            let allowed = format!("{found}, the tensors in all {} parts", name.count);
            Err(whole.refuse(TENSORS, count, &allowed))
        }
        _ => Ok(whole),
    }
}

/// One file by itself.
struct Part {
    file: WeightFile,
    directory: Directory,
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
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
        let part = Self { file, directory };
        part.check_padding()?;
        Ok(part)
    }

    /// Anything else than zero between two tensors means that a type, a shape or the alignment is not what was written.
    fn check_padding(&self) -> Result<()> {
        for (before, gap) in &self.directory.gaps {
            let bytes = self.file.bytes(gap.start as u64, gap.len())?;
            if let Some(found) = bytes.iter().find(|byte| **byte != 0) {
                let field = format!("padding after {before}");
                let allowed = "zeros up to the next multiple of the alignment";
                return Err(Error::invalid(self.file.place(), field, found, allowed));
            }
        }
        Ok(())
    }

    /// A part under a name that does not tell where the others are.
    fn refuse_split(&self) -> Result<()> {
        match self.directory.values.get(COUNT).map(Value::as_u64) {
            None | Some(Some(0 | 1)) => Ok(()),
            Some(_) => {
                let allowed = format!(
                    "NAME-00001-of-00002.gguf and the like with up to {MAX_PARTS} parts, since {COUNT} says that the file was split"
                );
                let place = self.file.place();
                Err(Error::invalid(place, "file name", "another", allowed))
            }
        }
    }

    fn uint(&self, key: &str) -> Result<u64> {
        let value = self.directory.values.get(key);
        value.and_then(Value::as_u64).ok_or_else(|| {
            let found = value.map_or("missing".to_owned(), Value::shown);
            let allowed = "a whole number, in every part of a split file";
            Error::invalid(self.file.place(), key, found, allowed)
        })
    }

    fn expect(&self, key: &str, expected: u64) -> Result<()> {
        let found = self.uint(key)?;
        if found == expected {
            return Ok(());
        }
        let allowed = match key {
            TENSORS => format!("{expected}, as in the first part"),
            NUMBER => format!("{expected}, counted from 0, as the file's name says"),
            _ => format!("{expected}, as the file's name says"),
        };
        Err(Error::invalid(self.file.place(), key, found, allowed))
    }
}

impl GgufFile {
    fn empty(place: &str) -> Self {
        Self {
            parts: Vec::new(),
            place: place.to_owned(),
            values: BTreeMap::new(),
            tensors: BTreeMap::new(),
        }
    }

    fn add(&mut self, part: Part) -> Result<()> {
        let Part { file, directory } = part;
        let place = file.place();
        if self.parts.is_empty() {
            self.values = directory.values;
        } else {
            self.check_values(place, &directory.values)?;
        }
        let count = self.tensors.len().saturating_add(directory.tensors.len());
        if count > MAX_ENTRIES {
            let allowed = format!("up to {MAX_ENTRIES}");
            return Err(Error::invalid(
                place,
                "tensors with those of the parts before",
                count,
                allowed,
            ));
        }
        let index = self.parts.len();
        for (name, info) in directory.tensors {
            if let Some(other) = self.tensor(&name) {
                let field = format!("tensor {}", quoted(&name));
                let found = format!("also in {}", self.place_of(other));
                return Err(Error::invalid(place, field, found, "in one part only"));
            }
            let info = TensorInfo {
                part: index,
                ..info
            };
            self.tensors.insert(name, info);
        }
        self.parts.push(file);
        Ok(())
    }

    /// Later parts say nothing of the model; where one does, it must say the same.
    fn check_values(&self, place: &str, values: &BTreeMap<String, Value>) -> Result<()> {
        let own = |key: &str| [NUMBER, COUNT, TENSORS, ALIGNMENT].contains(&key);
        for (key, value) in values.iter().filter(|(key, _)| !own(key)) {
            let first = self.value(key);
            if first != Some(value) {
                let allowed = match first {
                    Some(first) => format!("{}, as in the first part", first.shown()),
                    None => "absent, as in the first part".to_owned(),
                };
                return Err(Error::invalid(place, quoted(key), value.shown(), allowed));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Gguf, tiny_llama};
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    const NAMES: [&str; 3] = [
        "x-00001-of-00003.gguf",
        "x-00002-of-00003.gguf",
        "x-00003-of-00003.gguf",
    ];

    /// A part with the keys that `gguf-split` writes.
    fn part(base: Gguf, number: u64, count: u64, tensors: i64) -> Gguf {
        base.value(NUMBER, &Value::Uint(number))
            .value(COUNT, &Value::Uint(count))
            .value(TENSORS, &Value::Int(tensors))
    }

    /// Metadata and one tensor, a part without tensors, and two tensors.
    fn parts() -> [Gguf; 3] {
        let first = tiny_llama().f32_tensor("a", &[9], &[1.0; 9]);
        let last = Gguf::new()
            .f32_tensor("b", &[2], &[2.0, 3.0])
            .f32_tensor("c", &[1], &[4.0]);
        let all = 5;
        [
            part(first, 0, 3, all),
            part(Gguf::new(), 1, 3, all),
            part(last, 2, 3, all),
        ]
    }

    fn written(parts: &[Gguf; 3]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, part) in NAMES.iter().zip(parts) {
            fs::write(dir.path().join(name), part.bytes()).unwrap();
        }
        dir
    }

    /// The refusal is the same whichever part is given.
    fn refusal(dir: &TempDir) -> String {
        let mut messages: Vec<String> = NAMES
            .iter()
            .map(|name| GgufFile::open(&dir.path().join(name)).unwrap_err())
            .inspect(|error| assert!(error.is_refusal()))
            .map(|error| error.to_string())
            .collect();
        messages.dedup();
        assert_eq!(messages.len(), 1, "{messages:?}");
        messages.remove(0)
    }

    #[test]
    fn any_part_stands_for_the_whole() {
        let dir = written(&parts());
        for name in NAMES {
            let file = GgufFile::open(&dir.path().join(name)).unwrap();
            assert!(file.place().ends_with(NAMES[0]));
            assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
            assert_eq!(file.tensor_names().count(), 5);
            assert_eq!(file.read_f32("a").unwrap(), [1.0; 9]);
            assert_eq!(file.read_f32("b").unwrap(), [2.0, 3.0]);
            assert_eq!(file.read_f32("c").unwrap(), [4.0]);
            let info = file.tensor("c").unwrap();
            assert_eq!(info.part, 2);
            assert!(file.place_of(info).ends_with(NAMES[2]));
        }
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        for name in NAMES {
            let dir = written(&parts());
            fs::remove_file(dir.path().join(name)).unwrap();
            let message = NAMES
                .iter()
                .filter(|given| **given != name)
                .map(|given| GgufFile::open(&dir.path().join(given)).unwrap_err());
            for error in message {
                let message = error.to_string();
                assert!(error.is_refusal(), "{message}");
                assert!(
                    message.contains(&format!("{name}: file is missing")),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        type Change = fn(Gguf) -> Gguf;
        let with = |index: usize, change: Change| {
            let mut parts = parts();
            parts[index] = change(parts[index].clone());
            refusal(&written(&parts))
        };
        let cases: [(usize, Change, [&str; 2]); 9] = [
            // In another order, of another set, without its keys.
            (
                1,
                |p| p.replace(NUMBER, &Value::Uint(2)),
                [NAMES[1], "split.no is 2; allowed: 1"],
            ),
            (
                2,
                |p| p.replace(COUNT, &Value::Uint(4)),
                [NAMES[2], "split.count is 4; allowed: 3"],
            ),
            (
                2,
                |p| p.replace(TENSORS, &Value::Int(6)),
                [NAMES[2], "split.tensors.count is 6; allowed: 5"],
            ),
            (0, |p| p.without(NUMBER), [NAMES[0], "split.no is missing"]),
            (
                1,
                |p| p.without(COUNT),
                [NAMES[1], "split.count is missing"],
            ),
            (
                0,
                |p| p.replace(TENSORS, &Value::Int(-1)),
                [NAMES[0], "split.tensors.count is -1"],
            ),
            // Of another model.
            (
                1,
                |p| p.value("general.architecture", &Value::String("qwen3".into())),
                [
                    NAMES[1],
                    "\"general.architecture\" is \"qwen3\"; allowed: \"llama\"",
                ],
            ),
            (
                2,
                |p| p.value("qwen3.block_count", &Value::Uint(1)),
                [NAMES[2], "absent, as in the first part"],
            ),
            (
                2,
                |p| p.f32_tensor("a", &[1], &[0.0]),
                [NAMES[2], "tensor \"a\" is also in "],
            ),
        ];
        for (index, change, named) in cases {
            let message = with(index, change);
            for part in named {
                assert!(message.contains(part), "no {part} in {message}");
            }
        }
        // What the parts share may be said in all of them, and each may have an alignment of its own.
        let mut same = parts();
        same[2] = same[2]
            .clone()
            .value("general.architecture", &Value::String("llama".into()))
            .value(ALIGNMENT, &Value::Uint(32));
        GgufFile::open(&written(&same).path().join(NAMES[0])).unwrap();
    }

    #[test]
    fn a_wrong_number_of_tensors_is_refused() {
        let parts = parts().map(|part| part.replace(TENSORS, &Value::Int(4)));
        let message = refusal(&written(&parts));
        for part in [NAMES[0], "split.tensors.count is 4; allowed: 5"] {
            assert!(message.contains(part), "no {part} in {message}");
        }
    }

    #[test]
    fn every_part_is_checked_like_a_whole_file() {
        for name in NAMES {
            let dir = written(&parts());
            let path = dir.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            bytes.extend([0; 64]);
            fs::write(&path, &bytes).unwrap();
            let message = refusal(&dir);
            assert!(
                message.contains(name) && message.contains("size is"),
                "{message}"
            );
            fs::write(&path, b"").unwrap();
            let message = refusal(&dir);
            assert!(
                message.contains(name) && message.contains("0 bytes"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_part_under_another_name_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let [first, ..] = parts();
        for name in ["x.gguf", "x-1-of-3.gguf", "x-00001-of-00513.gguf"] {
            let path = dir.path().join(name);
            fs::write(&path, first.bytes()).unwrap();
            let error = GgufFile::open(&path).unwrap_err();
            let message = error.to_string();
            assert!(error.is_refusal(), "{message}");
            for part in [name, "NAME-00001-of-00002.gguf", "split.count"] {
                assert!(message.contains(part), "no {part} in {message}");
            }
        }
        let one = part(tiny_llama(), 0, 1, 2);
        let path = dir.path().join("x-00001-of-00001.gguf");
        fs::write(&path, one.bytes()).unwrap();
        GgufFile::open(&path).unwrap();
    }

    #[test]
    fn names_of_parts() {
        let part = PartName::parse("a-of-b-00002-of-00003.gguf").unwrap();
        assert_eq!(
            (part.stem.as_str(), part.number, part.count),
            ("a-of-b", 2, 3)
        );
        let all: Vec<String> = part.all().collect();
        assert_eq!(all[2], "a-of-b-00003-of-00003.gguf");
        assert_eq!(first_name("a-of-b-00002-of-00003.gguf"), all[0]);
        assert_eq!(first_name("a.gguf"), "a.gguf");
        for other in [
            "x.gguf",
            "x-00001-of-00003",
            "x-0001-of-0003.gguf",
            "x-00000-of-00003.gguf",
            "x-00004-of-00003.gguf",
            "x-00001-of-00001.gguf",
            "x-00001-of-00513.gguf",
            "x-+0001-of-00003.gguf",
            "00001-of-00003.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }
}
