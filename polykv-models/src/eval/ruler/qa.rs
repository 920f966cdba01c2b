//! Questions about documents, with other documents around them.

use super::{Draft, Maker};
use rand::seq::{SliceRandom, index};

/// Documents and the questions about them.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub texts: Vec<String>,
    pub questions: Vec<Asked>,
}

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub question: String,
    pub answers: Vec<String>,
    /// The documents that have the answer.
    pub sources: Vec<usize>,
    /// Documents that go next to them before any others.
    pub near: Vec<usize>,
}

fn of<'a>(maker: &'a Maker<'_>) -> (&'a Documents, &'a Asked) {
    let documents = &maker.texts.documents[usize::from(maker.task == "qa_2")];
    let questions = &documents.questions;
    (documents, &questions[maker.index % questions.len()])
}

/// The documents with the answer.
pub fn least(maker: &Maker<'_>) -> usize {
    of(maker).1.sources.len()
}

/// `size` is the number of documents; more than there are repeat them.
pub fn draft(maker: &Maker<'_>, size: usize) -> Draft {
    let mut rng = maker.rng();
    let (documents, asked) = of(maker);
    let mut chosen = asked.sources.clone();
    let free = size.saturating_sub(chosen.len());
    let near = index::sample(&mut rng, asked.near.len(), free.min(asked.near.len()));
    chosen.extend(near.iter().map(|at| asked.near[at]));
    let mut others: Vec<usize> = (0..documents.texts.len())
        .filter(|at| !asked.sources.contains(at) && !asked.near.contains(at))
        .collect();
    others.shuffle(&mut rng);
    chosen.extend(others.into_iter().take(size.saturating_sub(chosen.len())));
    let again = (0..documents.texts.len()).cycle();
    chosen.extend(again.take(size.saturating_sub(chosen.len())));
    chosen.shuffle(&mut rng);
    let chosen: Vec<String> = chosen
        .iter()
        .enumerate()
        .map(|(number, at)| format!("Document {}:\n{}", number + 1, documents.texts[*at]))
        .collect();
    let fields = [("query", asked.question.as_str())];
    let (context, question, lead_in) = maker.texts.qa.fill(&chosen.join("\n\n"), &fields);
    Draft {
        context,
        question,
        lead_in,
        answers: asked.answers.clone(),
    }
}
