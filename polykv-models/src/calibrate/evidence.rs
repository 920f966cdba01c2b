//! Questions about hidden facts, from a seed. Words and wording differ from those of the evaluation's needles.

use super::Example;
use crate::LoadedModel;
use crate::eval::haystack::Haystack;
use crate::tokenizer::Specials;
use polykv_core::Result;
use polykv_core::calibrate::Data;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Which examples are made.
#[derive(Clone, Debug)]
pub struct EvidenceOptions {
    pub examples: usize,
    /// Tokens of the compressed prompt, at most; a prompt ends at a sentence, up to one sentence below.
    pub length: usize,
    /// Whether the question runs over the compressed text instead of being part of what is compressed.
    pub question_after: bool,
    pub seed: u64,
}

const OWNERS: [&str; 10] = [
    "Bertram",
    "Ludmila",
    "Ignatius",
    "Rosalind",
    "Casimir",
    "Philippa",
    "Thaddeus",
    "Wilhelmine",
    "Barnaby",
    "Seraphina",
];

/// A kind of fact: what stands before the number, and the question. `{}` is the owner. Several, so that a plan does not
/// depend on one wording.
struct Form {
    lead_in: &'static str,
    question: &'static str,
}

const FORMS: [Form; 4] = [
    Form {
        lead_in: "The locker of {} has the number ",
        question: "Which number does the locker of {} have?",
    },
    Form {
        lead_in: "{} can be called under the extension ",
        question: "Under which extension can {} be called?",
    },
    Form {
        lead_in: "The parcel for {} carries the label ",
        question: "Which label does the parcel for {} carry?",
    },
    Form {
        lead_in: "The savings of {} are kept in account ",
        question: "In which account are the savings of {} kept?",
    },
];

/// Facts at depths, the question, the start of the answer and the answer.
struct Puzzle {
    facts: Vec<(f64, String)>,
    question: String,
    lead_in: String,
    answer: String,
}

/// In turns: one fact, several facts of which one is asked for, one again, and a fact that is reached over another one.
pub(super) fn examples(model: &LoadedModel, options: &EvidenceOptions) -> Result<Vec<Example>> {
    // A stream of its own: the evaluation draws its samples from the seed itself.
    let mut seeds = StdRng::seed_from_u64(options.seed ^ 0xCA11_B8A7_E5EE_D000);
    let haystack = Haystack {
        length: options.length,
        raw: false,
        question_after: options.question_after,
    };
    (0..options.examples)
        .map(|index| {
            let mut rng = StdRng::seed_from_u64(seeds.random());
            let puzzle = match index % 4 {
                1 => facts(&mut rng, 4),
                3 => chain(&mut rng),
                _ => facts(&mut rng, 1),
            };
            let (prompt, mut continuation) =
                haystack.around(model, &mut rng, &puzzle.facts, &puzzle.question, &[])?;
            let encode = |text: &str| model.tokenizer.encode(text, Specials::AsText);
            continuation.extend(encode(&puzzle.lead_in)?);
            let start = continuation.len();
            continuation.extend(encode(&puzzle.answer)?);
            Ok(Example {
                data: Data::Evidence,
                prompt,
                scored: start..continuation.len(),
                continuation,
            })
        })
        .collect()
}

/// `count` facts of one form, one of which is asked for.
fn facts(rng: &mut impl Rng, count: usize) -> Puzzle {
    let form = &FORMS[rng.random_range(0..FORMS.len())];
    let owners = owners(rng);
    let numbers: Vec<String> = (0..count).map(|_| number(rng)).collect();
    let facts = owners.iter().zip(&numbers).map(|(owner, number)| {
        let lead_in = form.lead_in.replace("{}", owner);
        (depth(rng), format!("{lead_in}{number}."))
    });
    Puzzle {
        facts: facts.collect(),
        question: form.question.replace("{}", owners[0]),
        lead_in: form.lead_in.replace("{}", owners[0]),
        answer: numbers[0].clone(),
    }
}

/// A fact, and a second person who shares it, with a decoy beside them.
fn chain(rng: &mut impl Rng) -> Puzzle {
    let owners = owners(rng);
    let (own, decoy) = (number(rng), number(rng));
    let facts = [
        format!("The locker of {} has the number {own}.", owners[0]),
        format!("{} shares the locker of {}.", owners[1], owners[0]),
        format!("The locker of {} has the number {decoy}.", owners[2]),
    ];
    Puzzle {
        facts: facts.into_iter().map(|fact| (depth(rng), fact)).collect(),
        question: format!("Which number does the locker that {} uses have?", owners[1]),
        lead_in: format!(
            "{} shares the locker of {}, and the locker of {} has the number ",
            owners[1], owners[0], owners[0]
        ),
        answer: own,
    }
}

fn owners(rng: &mut impl Rng) -> Vec<&'static str> {
    let mut owners = OWNERS.to_vec();
    owners.shuffle(rng);
    owners
}

fn number(rng: &mut impl Rng) -> String {
    let digits = rng.random_range(4..=7);
    let least = 10u32.pow(digits - 1);
    rng.random_range(least..10 * least).to_string()
}

/// Not among the last sentences, which many policies keep anyway.
fn depth(rng: &mut impl Rng) -> f64 {
    rng.random_range(0.0..0.9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_among_the_facts() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            for puzzle in [facts(&mut rng, 1), facts(&mut rng, 4), chain(&mut rng)] {
                let wanted = format!(" {}.", puzzle.answer);
                let holds = |text: &str| text.ends_with(&wanted);
                assert_eq!(
                    puzzle.facts.iter().filter(|(_, fact)| holds(fact)).count(),
                    1
                );
                assert!(
                    puzzle
                        .facts
                        .iter()
                        .all(|(depth, _)| (0.0..0.9).contains(depth))
                );
                assert!(
                    !puzzle.question.contains(&puzzle.answer)
                        && !puzzle.lead_in.contains(&puzzle.answer)
                );
                assert!(
                    ![&puzzle.question, &puzzle.lead_in]
                        .iter()
                        .any(|own| own.contains("{}"))
                );
            }
        }
    }
}
