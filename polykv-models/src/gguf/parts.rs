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
mod tests;
