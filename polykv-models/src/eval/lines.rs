//! Files of one JSON object per line.

use polykv_core::{Error, Result, files};
use serde_json::{Map, Value};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A line with more bytes is refused before it is parsed.
const MAX_LINE_BYTES: usize = 64 << 20;
const MAX_LINES: usize = 1_000_000;
/// References or classes of a line, and bytes of one: every answer is compared with each.
const MAX_TEXTS: usize = 1024;
const MAX_TEXT_BYTES: usize = 64 << 10;

/// One object and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// File and line number, from 1.
    pub place: String,
    /// The name of the file and the line number, which do not depend on where the file is.
    pub id: String,
    fields: Map<String, Value>,
}

/// The lines that are not empty.
///
/// # Errors
/// A file that cannot be read, is no regular file, has no line, too many or too long ones; a line that is no JSON object, by
/// file and line.
pub(super) fn read(path: &Path) -> Result<Vec<Line>> {
    let file = files::open_regular(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    for number in 1.. {
        let place = format!("{}:{number}", path.display());
        if number > MAX_LINES {
            return Err(Error::invalid(place, "line", number, MAX_LINES));
        }
        let mut bytes = Vec::new();
        let limit = (MAX_LINE_BYTES as u64).saturating_add(1);
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut bytes);
        if read.map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        if bytes.len() > MAX_LINE_BYTES {
            let found = format!("longer than {MAX_LINE_BYTES} bytes");
            return Err(Error::invalid(place, "line", found, "shorter lines"));
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let object = if number == 1 {
            files::without_mark(&bytes)
        } else {
            &bytes
        };
        let fields = serde_json::from_slice(object).map_err(|e| {
            let found = format!("not one ({e})");
            Error::invalid(&place, "line", found, "a JSON object")
        })?;
        let id = format!("{name}:{number}");
        lines.push(Line { place, id, fields });
    }
    match lines.is_empty() {
        true => {
            let place = path.display();
            Err(Error::invalid(place, "samples", 0, "at least one line"))
        }
        false => Ok(lines),
    }
}

/// The files of a folder whose name ends in `.jsonl`, by name; the file itself if it is one.
///
/// # Errors
/// A path that cannot be read, a folder without such files.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)
        .map_err(|e| Error::io(path, e))?
        .is_dir()
    {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let file = entry.map_err(|e| Error::io(path, e))?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == "jsonl")
        {
            found.push(file);
        }
    }
    found.sort();
    match found.is_empty() {
        true => {
            let place = path.display();
            Err(Error::invalid(place, "files", "none", "files *.jsonl"))
        }
        false => Ok(found),
    }
}

impl Line {
    /// # Errors
    /// A field that is missing or no text.
    pub fn text(&self, field: &str) -> Result<&str> {
        match self.fields.get(field) {
            Some(Value::String(text)) => Ok(text),
            other => Err(self.wrong(field, other, "a text")),
        }
    }

    /// A text, or none if the field is missing or null.
    ///
    /// # Errors
    /// A field of another kind.
    pub fn optional(&self, field: &str) -> Result<Option<&str>> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            _ => self.text(field).map(Some),
        }
    }

    /// Texts; one text alone counts as a list, and a number as the text that it is.
    ///
    /// # Errors
    /// A field that is missing, empty or of another kind; too many or too long texts.
    pub fn texts(&self, field: &str) -> Result<Vec<String>> {
        let found = self.fields.get(field);
        let wrong = || self.wrong(field, found, "a text or a list of texts, at least one");
        let list = match found {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(one @ (Value::String(_) | Value::Number(_))) => vec![one],
            _ => return Err(wrong()),
        };
        if list.is_empty() {
            return Err(wrong());
        }
        let at_most = |found: usize, most: usize, unit: &str| match found > most {
            true => {
                let found = format!("{found} {unit}");
                let allowed = format!("at most {most}");
                Err(Error::invalid(&self.place, field, found, allowed))
            }
            false => Ok(()),
        };
        at_most(list.len(), MAX_TEXTS, "texts")?;
        list.into_iter()
            .map(|one| match one {
                Value::String(text) => {
                    at_most(text.len(), MAX_TEXT_BYTES, "bytes")?;
                    Ok(text.clone())
                }
                Value::Number(number) => Ok(number.to_string()),
                _ => Err(wrong()),
            })
            .collect()
    }

    fn wrong(&self, field: &str, found: Option<&Value>, allowed: &str) -> Error {
        let found = match found {
            None => {
                let mut names: Vec<&str> = self.fields.keys().map(String::as_str).collect();
                // Whether a map keeps the order of the line depends on the features of others.
                names.sort_unstable();
                format!("missing beside {}", names.join(", "))
            }
            Some(Value::Null) => "null".into(),
            Some(Value::Bool(_)) => "a truth value".into(),
            Some(Value::Number(_)) => "a number".into(),
            Some(Value::String(_)) => "a text".into(),
            Some(Value::Array(list)) if list.is_empty() => "an empty list".into(),
            Some(Value::Array(_)) => "a list of something else".into(),
            Some(Value::Object(_)) => "an object".into(),
        };
        Error::invalid(&self.place, field, found, allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Vec<Line>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn lines_keep_their_numbers() {
        let found = lines("{\"a\": \"x\"}\n\n{\"a\": [\"y\", 3]}\n").unwrap();
        let ids: Vec<&str> = found.iter().map(|line| line.id.as_str()).collect();
        assert_eq!(ids, ["a.jsonl:1", "a.jsonl:3"]);
        assert_eq!(found[0].text("a").unwrap(), "x");
        assert_eq!(found[0].texts("a").unwrap(), ["x"]);
        assert_eq!(found[1].texts("a").unwrap(), ["y", "3"]);
        assert_eq!(found[1].optional("b").unwrap(), None);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, parts) in [
            (
                "{\"a\": 1}\n{\"a\"",
                ["a.jsonl:2: line is not one", "JSON object"],
            ),
            ("[1]", ["a.jsonl:1: line is not one", "JSON object"]),
            ("{\"a\": \"\u{0}\"}", ["a.jsonl:1", "JSON object"]),
            ("\n \n", ["a.jsonl: samples is 0", "at least one"]),
        ] {
            let message = lines(text).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
        #[cfg(unix)]
        {
            // It has no end.
            let message = read(Path::new("/dev/zero")).unwrap_err().to_string();
            assert!(message.contains("device"), "{message}");
        }
        let line = &lines("{\"a\": [], \"b\": [null], \"c\": {}}").unwrap()[0];
        for (found, wanted) in [
            (line.texts("a"), "a.jsonl:1: a is an empty list"),
            (line.texts("b"), "b is a list of something else"),
            (line.texts("c"), "c is an object"),
            (line.texts("d"), "d is missing beside a, b, c"),
        ] {
            let message = found.unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
        assert!(line.text("c").is_err() && line.optional("c").is_err());
        let long = "x".repeat(MAX_TEXT_BYTES);
        let many = "1,".repeat(MAX_TEXTS);
        let text = format!("{{\"a\": \"{long}\", \"b\": \"{long}x\", \"c\": [{many} 1]}}");
        let line = &lines(&text).unwrap()[0];
        assert_eq!(line.texts("a").unwrap(), [long]);
        let message = |field| line.texts(field).unwrap_err().to_string();
        assert!(message("b").contains("b is 65537 bytes; allowed: at most 65536"));
        assert!(message("c").contains("c is 1025 texts; allowed: at most 1024"));
    }
}
