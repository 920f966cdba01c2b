//! The metrics by name.

use super::{
    classification, code, count, exact, f1, f1_zh, mean, retrieval, retrieval_zh, rouge_l,
    rouge_l_zh, substring,
};
use polykv_core::{Error, Result};
use std::str::FromStr;

/// Bytes of a piece of code that answers are compared with: the time grows faster than its length.
const MAX_CODE_BYTES: usize = 16 << 10;

/// How an answer is compared with its references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// F1 over the words of two English texts.
    F1,
    /// F1 over the words of two Chinese texts.
    F1Zh,
    /// ROUGE-L over the words of two English texts.
    RougeL,
    /// ROUGE-L over the words of two Chinese texts.
    RougeLZh,
    /// Whether the answer names the right class, shared among the classes that it names.
    Classification,
    /// Similarity of the first line of code.
    Edit,
    /// The share of the answer's numbers that are the number in `Paragraph N`.
    Retrieval,
    /// The share of the answer's numbers that are the number in `段落N`.
    RetrievalZh,
    /// The share of the answer's numbers that are the right one.
    Count,
    /// Whether the texts are the same after SQuAD's normalisation.
    Exact,
    /// Whether any reference is part of the answer.
    Substring,
    /// The share of the references that are part of the answer.
    SubstringAll,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 12] = [
        Self::F1,
        Self::F1Zh,
        Self::RougeL,
        Self::RougeLZh,
        Self::Classification,
        Self::Edit,
        Self::Retrieval,
        Self::RetrievalZh,
        Self::Count,
        Self::Exact,
        Self::Substring,
        Self::SubstringAll,
    ];

    /// The name, as in `polykv eval --scorer`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F1 => "f1",
            Self::F1Zh => "f1-zh",
            Self::RougeL => "rouge-l",
            Self::RougeLZh => "rouge-l-zh",
            Self::Classification => "classification",
            Self::Edit => "edit",
            Self::Retrieval => "retrieval",
            Self::RetrievalZh => "retrieval-zh",
            Self::Count => "count",
            Self::Exact => "exact",
            Self::Substring => "substring",
            Self::SubstringAll => "substring-all",
        }
    }

    /// Whether the metric needs the names of the classes.
    pub fn needs_classes(self) -> bool {
        self == Self::Classification
    }

    /// The score of a prediction, from 0 to 1: the best over the references, or for `substring-all` their mean; 0
    /// without references. A reference of the wrong form counts as missed; see [`Metric::check`].
    #[must_use]
    pub fn score(self, prediction: &str, references: &[String], classes: &[String]) -> f64 {
        let one = |truth: &String| match self {
            Self::F1 => f1(prediction, truth),
            Self::F1Zh => f1_zh(prediction, truth),
            Self::RougeL => rouge_l(prediction, truth),
            Self::RougeLZh => rouge_l_zh(prediction, truth),
            Self::Classification => classification(prediction, truth, classes),
            Self::Edit => code(prediction, truth),
            Self::Retrieval => retrieval(prediction, truth).unwrap_or(0.0),
            Self::RetrievalZh => retrieval_zh(prediction, truth).unwrap_or(0.0),
            Self::Count => count(prediction, truth),
            Self::Exact => exact(prediction, truth),
            Self::Substring | Self::SubstringAll => substring(prediction, truth),
        };
        let scores: Vec<f64> = references.iter().map(one).collect();
        match self {
            Self::SubstringAll => mean(&scores),
            _ => scores.into_iter().fold(0.0, f64::max),
        }
    }

    /// Checks that a sample's references can be scored; `place` names them in errors.
    ///
    /// # Errors
    /// A reference without the number that the metric reads, a class that is not among the classes, code that is too long.
    pub fn check(self, place: &str, references: &[String], classes: &[String]) -> Result<()> {
        for truth in references {
            let allowed = match self {
                Self::Retrieval if retrieval("", truth).is_none() => "'Paragraph' and a number",
                Self::RetrievalZh if retrieval_zh("", truth).is_none() => "'段落' and a number",
                Self::Classification if !classes.contains(truth) => "one of the line's classes",
                Self::Edit if truth.len() > MAX_CODE_BYTES => "at most 16384 bytes",
                _ => continue,
            };
            return Err(Error::invalid(
                place,
                "reference",
                format!("'{truth}'"),
                allowed,
            ));
        }
        Ok(())
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let names = Self::ALL.map(Self::name);
        let found = Self::ALL.into_iter().find(|metric| metric.name() == text);
        found.ok_or_else(|| format!("'{text}' is no metric: {}", names.join(", ")))
    }
}
