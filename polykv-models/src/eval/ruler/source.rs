//! A user's own copy of RULER: its templates and needles as they stand in its Python files, its question sets, and a text
//! as haystack.

use super::RulerSource;
use super::own;
use super::qa::{Asked, Documents};
use super::texts::{Texts, Wording};
use polykv_core::{Error, Result};
use regex::Regex;
use serde_json::Value;
use std::collections::HashMap;
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
        let mut texts = own::texts(0);
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
            texts.documents[0] = squad(&json.join("squad.json"))?;
        }
        if tasks.contains(&"qa_2") {
            texts.documents[1] = hotpot(&json.join("hotpotqa.json"))?;
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
    let place = path.display();
    let size = match std::fs::metadata(path) {
        Ok(found) => found.len(),
        Err(_) => return Err(Error::invalid(place, "file", "missing", what)),
    };
    if size > MAX_BYTES {
        let allowed = format!("at most {MAX_BYTES}");
        return Err(Error::invalid(place, "bytes", size, allowed));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid(place, "content", "no UTF-8 text", "UTF-8 text"))
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

/// A Python file, of which only string and number literals are read.
struct Python {
    place: String,
    text: String,
}

impl Python {
    fn read(path: &Path) -> Result<Self> {
        Ok(Self {
            text: read(path, "RULER's own file, scripts/data/synthetic")?,
            place: path.display().to_string(),
        })
    }

    /// The entry of TASKS under a name.
    fn wording(&self, task: &str) -> Result<Wording> {
        let start = self.find(&format!(r#"['"]{task}['"]\s*:\s*\{{"#), task, &self.text)?;
        let entry = &self.text[start..];
        let literal = |field: &str| {
            let at = self.find(&format!(r#"['"]{field}['"]\s*:\s*"#), field, entry)?;
            self.literal(field, &entry[at..])
        };
        let at = self.find(r#"['"]tokens_to_generate['"]\s*:\s*"#, "tokens", entry)?;
        let digits = entry[at..].split(|c: char| !c.is_ascii_digit()).next();
        let new_tokens = digits.and_then(|digits| digits.parse().ok());
        let template = literal("template")?;
        if template.matches("{context}").count() != 1 {
            return Err(self.lacks("a template with one {context}"));
        }
        Ok(Wording {
            template,
            lead_in: literal("answer_prefix")?,
            new_tokens: new_tokens
                .filter(|tokens| (1..=1 << 20).contains(tokens))
                .ok_or_else(|| self.lacks("tokens_to_generate"))?,
        })
    }

    /// The first text that is assigned to a variable.
    fn string(&self, variable: &str) -> Result<String> {
        let at = self.find(
            &format!(r#"(?m)^\s*{variable}\s*=\s*['"]"#),
            variable,
            &self.text,
        )?;
        self.literal(variable, &self.text[at - 1..])
    }

    /// The end of a pattern's first match.
    fn find(&self, pattern: &str, what: &str, text: &str) -> Result<usize> {
        let pattern = Regex::new(pattern).map_err(|e| Error::Failed(e.to_string()))?;
        let found = pattern.find(text).map(|found| found.end());
        found.ok_or_else(|| self.lacks(what))
    }

    /// The string literal that a text starts with.
    fn literal(&self, what: &str, text: &str) -> Result<String> {
        let quotes = [r#"""""#, "'''", "\"", "'"];
        let quote = quotes.into_iter().find(|quote| text.starts_with(quote));
        let quote = quote.ok_or_else(|| self.lacks(what))?;
        let mut rest = &text[quote.len()..];
        let mut value = String::new();
        while !rest.starts_with(quote) {
            let mut chars = rest.chars();
            match (chars.next(), chars.clone().next()) {
                (Some('\\'), Some(escaped)) => {
                    match escaped {
                        'n' => value.push('\n'),
                        't' => value.push('\t'),
                        '\n' => {}
                        other => value.push(other),
                    }
                    chars.next();
                }
                (Some(c), _) => value.push(c),
                (None, _) => return Err(self.lacks(&format!("the end of {what}"))),
            }
            rest = chars.as_str();
        }
        Ok(value)
    }

    fn lacks(&self, what: &str) -> Error {
        let allowed = format!("{what}, as in RULER");
        Error::invalid(&self.place, "content", format!("without {what}"), allowed)
    }
}

/// Plain, or a JSON object with the text.
fn read_haystack(path: &Path) -> Result<String> {
    let what = "a text to hide needles in: RULER's json/PaulGrahamEssays.json, or any plain text";
    if path.extension().is_none_or(|own| own != "json") {
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

/// Numbers for different documents, in the order of their texts.
struct Numbered {
    texts: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Numbered {
    fn new(mut texts: Vec<String>) -> Self {
        texts.sort_unstable();
        texts.dedup();
        let numbers = texts.iter().cloned().zip(0..).collect();
        Self { texts, numbers }
    }

    fn of(&self, text: &str) -> Option<usize> {
        self.numbers.get(text).copied()
    }

    fn with(self, place: &Path, questions: Vec<Asked>) -> Result<Documents> {
        if questions.is_empty() {
            let allowed = "at least one with an answer";
            return Err(Error::invalid(place.display(), "questions", 0, allowed));
        }
        Ok(Documents {
            texts: self.texts,
            questions,
        })
    }
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// SQuAD 2.0: paragraphs, other paragraphs of the same article next to them. Fields of another form are passed over.
fn squad(path: &Path) -> Result<Documents> {
    let data = read_json(
        path,
        "SQuAD's dev-v2.0.json, which RULER's json/download_qa_dataset.sh fetches",
    )?;
    let paragraphs = |article: &Value| -> Vec<String> {
        let own = list(article, "paragraphs").iter();
        own.filter_map(|one| one["context"].as_str().map(String::from))
            .collect()
    };
    let documents = Numbered::new(list(&data, "data").iter().flat_map(paragraphs).collect());
    let mut questions = Vec::new();
    for article in list(&data, "data") {
        let near: Vec<usize> = paragraphs(article)
            .iter()
            .filter_map(|text| documents.of(text))
            .collect();
        for paragraph in list(article, "paragraphs") {
            let Some(own) = paragraph["context"]
                .as_str()
                .and_then(|text| documents.of(text))
            else {
                continue;
            };
            for asked in list(paragraph, "qas") {
                let answers: Vec<String> = list(asked, "answers")
                    .iter()
                    .filter_map(|answer| answer["text"].as_str().map(String::from))
                    .collect();
                if let (Some(question), false) = (asked["question"].as_str(), answers.is_empty())
                    && asked["is_impossible"] != Value::Bool(true)
                {
                    questions.push(Asked {
                        question: question.into(),
                        answers,
                        sources: vec![own],
                        near: near.iter().copied().filter(|at| *at != own).collect(),
                    });
                }
            }
        }
    }
    documents.with(path, questions)
}

/// HotpotQA: each question with its documents, a title and sentences each.
fn hotpot(path: &Path) -> Result<Documents> {
    let what = "HotpotQA's hotpot_dev_distractor_v1.json, which RULER's json/download_qa_dataset.sh fetches";
    let data = read_json(path, what)?;
    let data = data.as_array().map_or(&[][..], Vec::as_slice);
    let texts = |asked: &Value| -> Vec<String> {
        let own = list(asked, "context").iter();
        own.filter_map(|document| {
            let title = document[0].as_str()?;
            let sentences = document[1].as_array()?.iter();
            let sentences: String = sentences.filter_map(Value::as_str).collect();
            Some(format!("{title}\n{sentences}"))
        })
        .collect()
    };
    let documents = Numbered::new(data.iter().flat_map(texts).collect());
    let questions = data.iter().filter_map(|asked| {
        let sources = texts(asked);
        let sources = sources.iter().filter_map(|text| documents.of(text));
        Some(Asked {
            question: asked["question"].as_str()?.into(),
            answers: vec![asked["answer"].as_str()?.into()],
            sources: sources.collect(),
            near: Vec::new(),
        })
    });
    let questions = questions.collect();
    documents.with(path, questions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(text: &str) -> Python {
        Python {
            place: "constants.py".into(),
            text: text.into(),
        }
    }

    #[test]
    fn literals_are_read_from_python() {
        let file = python(
            "TASKS = {\n  'niah': {\n    'tokens_to_generate': 12,\n    'template': \"\"\"Some {type_needle_v} are \
             \"here\".\\n{context}\\nWhat are all of {query}?\"\"\",\n    'answer_prefix': ' They\\'re'\n  },\n\
             'qa' : {'tokens_to_generate': 5, 'template': '{context}', 'answer_prefix': ''},\n}\nneedle = 'It is {value}.'\n",
        );
        let found = file.wording("niah").unwrap();
        let wanted = "Some {type_needle_v} are \"here\".\n{context}\nWhat are all of {query}?";
        assert_eq!(found.template, wanted);
        assert_eq!((found.lead_in.as_str(), found.new_tokens), (" They're", 12));
        let one = singular(found);
        assert_eq!(
            one.template,
            "A {type_needle_v} is \"here\".\n{context}\nWhat is of {query}?"
        );
        assert_eq!(file.wording("qa").unwrap().new_tokens, 5);
        assert_eq!(file.string("needle").unwrap(), "It is {value}.");
        for (error, part) in [
            (file.wording("vt").unwrap_err(), "without vt"),
            (file.string("haystack").unwrap_err(), "without haystack"),
            (
                python("'qa': {'template': 'x").wording("qa").unwrap_err(),
                "without tokens",
            ),
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn sentences_end_at_their_signs() {
        let found = sentences("One is  short.\nTwo (is it?) asks: \"why?\" Three");
        assert_eq!(
            found,
            ["One is short.", "Two (is it?)", "asks: \"why?\"", "Three"]
        );
    }

    #[test]
    fn question_sets_keep_their_documents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("squad.json");
        let text = r#"{"data": [{"paragraphs": [
            {"context": "The mill is old.", "qas": [
                {"question": "How is the mill?", "is_impossible": false, "answers": [{"text": "old"}]},
                {"question": "Why?", "is_impossible": true, "answers": []}]},
            {"context": "A gate.", "qas": []}]}]}"#;
        std::fs::write(&path, text).unwrap();
        let found = squad(&path).unwrap();
        assert_eq!(found.texts, ["A gate.", "The mill is old."]);
        assert_eq!(found.questions.len(), 1);
        let asked = &found.questions[0];
        assert_eq!((&asked.sources[..], &asked.near[..]), (&[1][..], &[0][..]));
        let text = r#"[{"question": "Who?", "answer": "Ada", "context": [["T", ["It ", "is."]]]}]"#;
        std::fs::write(&path, text).unwrap();
        let found = hotpot(&path).unwrap();
        assert_eq!(found.texts, ["T\nIt is."]);
        assert_eq!(found.questions[0].answers, ["Ada"]);
        std::fs::write(&path, "{}").unwrap();
        assert!(
            squad(&path)
                .unwrap_err()
                .to_string()
                .contains("questions is 0")
        );
    }
}
