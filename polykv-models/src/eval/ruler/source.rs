//! A user's own copy of RULER: its templates and needles as they stand in its Python files, its question sets, and a text
//! as haystack.

mod python;
mod sets;

use super::RulerSource;
use super::builtin;
use super::texts::{Texts, Wording};
use polykv_core::{Error, Result, files};
use python::Python;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A file with more bytes is refused.
const MAX_BYTES: u64 = 512 << 20;

impl Texts {
    /// Reads what `tasks` need from the copy. RULER draws words from the lists of a Python package, wonderwords; they are
    /// read from `nounlist.txt`, `adjectivelist.txt` and `verblist.txt` in the copy's folder json if they are there, and
    /// are our own otherwise.
    ///
    /// # Errors
    /// A file that is missing or lacks what is read from it, with where RULER has it.
    pub fn read(source: &RulerSource, tasks: &[&str]) -> Result<Self> {
        let folder = folder(&source.folder)?;
        let constants = Python::read(&folder.join("constants.py"))?;
        let niah = Python::read(&folder.join("niah.py"))?;
        let mut texts = builtin::texts(0);
        let several = constants.wording("niah")?;
        texts.niah = [several.clone(), singular(several)];
        texts.tracking = constants.wording("variable_tracking")?;
        texts.common = constants.wording("common_words_extraction")?;
        texts.frequent = constants.wording("freq_words_extraction")?;
        texts.qa = constants.wording("qa")?;
        texts.needle = niah.string("needle")?;
        texts.noise = niah.string("haystack")?;
        texts.sentences = sentences(&read_haystack(&source.haystack)?);
        if texts.sentences.is_empty() {
            let place = source.haystack.display();
            return Err(Error::invalid(
                place,
                "text",
                "empty",
                "at least one sentence",
            ));
        }
        let json = folder.join("json");
        let list = |name: &str| -> Result<Option<Vec<String>>> {
            let path = json.join(name);
            if !path.is_file() {
                return Ok(None);
            }
            let words = read(&path, "a word per line")?;
            let words = words.lines().map(str::trim).filter(|word| !word.is_empty());
            Ok(Some(words.map(String::from).collect()))
        };
        let lists = [
            list("nounlist.txt")?,
            list("adjectivelist.txt")?,
            list("verblist.txt")?,
        ];
        if let [Some(nouns), Some(adjectives), Some(verbs)] = lists {
            let mut words = [&nouns[..], &adjectives, &verbs].concat();
            words.sort_unstable();
            words.dedup();
            (texts.words, texts.nouns, texts.adjectives) = (words, nouns, adjectives);
        }
        if tasks.contains(&"qa_1") {
            texts.documents[0] = sets::squad(&json.join("squad.json"))?;
        }
        if tasks.contains(&"qa_2") {
            texts.documents[1] = sets::hotpot(&json.join("hotpotqa.json"))?;
        }
        Ok(texts)
    }
}

/// Where the Python files are.
fn folder(given: &Path) -> Result<PathBuf> {
    let inside = given.join("scripts/data/synthetic");
    let found = [given.to_path_buf(), inside]
        .into_iter()
        .find(|folder| folder.join("constants.py").is_file());
    found.ok_or_else(|| {
        let allowed = "RULER's repository, NVIDIA/RULER, or its folder scripts/data/synthetic";
        Error::invalid(given.display(), "constants.py", "missing", allowed)
    })
}

fn read(path: &Path, what: &str) -> Result<String> {
    match path.exists() {
        true => files::read_capped_text(path, MAX_BYTES),
        false => Err(Error::invalid(path.display(), "file", "missing", what)),
    }
}

fn read_json(path: &Path, what: &str) -> Result<Value> {
    serde_json::from_str(&read(path, what)?).map_err(|e| {
        let found = format!("no JSON ({e})");
        Error::invalid(path.display(), "content", found, what)
    })
}

/// RULER's template for one needle is made from the one for several.
fn singular(several: Wording) -> Wording {
    let one = |text: &str| {
        text.replace("Some", "A")
            .replace("are all", "is")
            .replace("are", "is")
            .replace("answers", "answer")
    };
    Wording {
        template: one(&several.template),
        lead_in: one(&several.lead_in),
        ..several
    }
}

/// Plain, or a JSON object with the text.
fn read_haystack(path: &Path) -> Result<String> {
    let what = "a text to hide needles in: RULER's json/PaulGrahamEssays.json, or any plain text";
    if path.extension().is_none_or(|extension| extension != "json") {
        return read(path, what);
    }
    match read_json(path, what)?.get("text").and_then(Value::as_str) {
        Some(text) => Ok(text.into()),
        None => {
            let place = path.display();
            Err(Error::invalid(place, "text", "missing", "the essay's text"))
        }
    }
}

/// Cut behind the signs that end a sentence, white space in one piece.
fn sentences(text: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut sentence = String::new();
    for word in text.split_whitespace() {
        if !sentence.is_empty() {
            sentence.push(' ');
        }
        sentence.push_str(word);
        if word
            .trim_end_matches(['"', '\'', ')'])
            .ends_with(['.', '!', '?'])
        {
            sentences.push(std::mem::take(&mut sentence));
        }
    }
    if !sentence.is_empty() {
        sentences.push(sentence);
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_at_their_signs() {
        let found = sentences("One is  short.\nTwo (is it?) asks: \"why?\" Three");
        assert_eq!(
            found,
            ["One is short.", "Two (is it?)", "asks: \"why?\"", "Three"]
        );
    }
}
