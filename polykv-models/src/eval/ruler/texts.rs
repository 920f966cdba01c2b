//! The texts that RULER's tasks are made of: templates, filler, words, questions with documents.

use super::qa::Documents;

/// A task's template and the start of its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wording {
    /// With `{context}`, `{query}` and, by task, `{type_needle_v}`, `{num_v}` and `{num_cw}`.
    pub template: String,
    /// The same fields.
    pub lead_in: String,
    pub new_tokens: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    /// For several values, and for one.
    pub niah: [Wording; 2],
    pub tracking: Wording,
    pub common: Wording,
    pub frequent: Wording,
    pub qa: Wording,
    /// With `{type_needle_v}`, `{key}` and `{value}`.
    pub needle: String,
    /// Repeated.
    pub noise: String,
    /// In the order of the text, which starts anew where it ends; made up anew for each sample if none.
    pub sentences: Vec<String>,
    /// For keys.
    pub adjectives: Vec<String>,
    pub nouns: Vec<String>,
    /// For lists.
    pub words: Vec<String>,
    /// For qa_1 and qa_2.
    pub documents: [Documents; 2],
}

impl Texts {
    pub fn wording(&self, task: &str) -> &Wording {
        match task {
            "vt" => &self.tracking,
            "cwe" => &self.common,
            "fwe" => &self.frequent,
            "qa_1" | "qa_2" => &self.qa,
            _ => &self.niah[0],
        }
    }
}

impl Wording {
    /// The prompt up to the end of the context, what follows it, and the start of the answer.
    pub fn fill(&self, context: &str, fields: &[(&str, &str)]) -> (String, String, String) {
        let (before, after) = self
            .template
            .split_once("{context}")
            .unwrap_or((&self.template, ""));
        (
            format!("{}{context}", fill(before, fields)),
            fill(after, fields),
            fill(&self.lead_in, fields),
        )
    }
}

/// A text with the fields in their braces replaced.
pub(super) fn fill(text: &str, fields: &[(&str, &str)]) -> String {
    fields.iter().fold(text.to_string(), |text, (name, value)| {
        text.replace(&format!("{{{name}}}"), value)
    })
}
