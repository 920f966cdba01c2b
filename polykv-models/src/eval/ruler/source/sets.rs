//! The question sets that RULER hides among their documents.

use super::read_json;
use crate::eval::ruler::qa::{Asked, Documents};
use polykv_core::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

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
pub fn squad(path: &Path) -> Result<Documents> {
    let data = read_json(
        path,
        "SQuAD's dev-v2.0.json, which RULER's json/download_qa_dataset.sh fetches",
    )?;
    let paragraphs = |article: &Value| -> Vec<String> {
        let paragraphs = list(article, "paragraphs").iter();
        paragraphs
            .filter_map(|one| one["context"].as_str().map(String::from))
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
            let Some(source) = paragraph["context"]
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
                        sources: vec![source],
                        near: near.iter().copied().filter(|at| *at != source).collect(),
                    });
                }
            }
        }
    }
    documents.with(path, questions)
}

/// HotpotQA: each question with its documents, a title and sentences each.
pub fn hotpot(path: &Path) -> Result<Documents> {
    let what = "HotpotQA's hotpot_dev_distractor_v1.json, which RULER's json/download_qa_dataset.sh fetches";
    let data = read_json(path, what)?;
    let data = data.as_array().map_or(&[][..], Vec::as_slice);
    let texts = |asked: &Value| -> Vec<String> {
        let documents = list(asked, "context").iter();
        documents
            .filter_map(|document| {
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
