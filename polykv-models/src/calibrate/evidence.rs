//! Questions about hidden facts, from a seed. Words and wording differ from those of the evaluation's needles.

use super::example::Example;
use crate::LoadedModel;
use crate::texts::haystack::Haystack;
use crate::tokenizer::Specials;
use polykv_core::Result;
use polykv_core::calibrate::Data;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// How questions about hidden facts are made.
#[derive(Clone, Debug)]
pub struct EvidenceOptions {
    /// The number of examples.
    pub examples: usize,
    /// Length of the compressed prompt, in tokens. A prompt ends at the last sentence that fits.
    pub length: usize,
    /// Whether the question runs over the compressed text. Otherwise it is part of the prompt and compressed with it.
    pub question_after: bool,
    /// Seed of the facts, their places and the filler text.
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

struct Puzzle {
    /// The facts with their depths, from 0 (start) to 1 (end).
    facts: Vec<(f64, String)>,
    question: String,
    /// The start of the answer, which is given.
    lead_in: String,
    /// The rest of the answer, which is scored.
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

/// A fact, and a second person who shares it, with a decoy beside them. Both steps are scored: the answer says first who
/// shares the fact.
fn chain(rng: &mut impl Rng) -> Puzzle {
    let owners = owners(rng);
    let (number, decoy) = (number(rng), number(rng));
    let facts = [
        format!("The locker of {} has the number {number}.", owners[0]),
        format!("{} shares the locker of {}.", owners[1], owners[0]),
        format!("The locker of {} has the number {decoy}.", owners[2]),
    ];
    Puzzle {
        facts: facts.into_iter().map(|fact| (depth(rng), fact)).collect(),
        question: format!("Which number does the locker that {} uses have?", owners[1]),
        lead_in: format!("{} shares the locker of", owners[1]),
        answer: format!(" {}, number {number}", owners[0]),
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

    /// How many facts end with a number.
    fn holding(puzzle: &Puzzle, number: &str) -> usize {
        let ends = |fact: &str| fact.ends_with(&format!(" {number}."));
        puzzle.facts.iter().filter(|(_, fact)| ends(fact)).count()
    }

    #[test]
    fn the_answer_is_in_one_fact_and_not_given_away() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            for puzzle in [facts(&mut rng, 1), facts(&mut rng, 4), chain(&mut rng)] {
                let mut words = puzzle.answer.split([' ', ',']);
                let number = words.next_back().unwrap();
                assert_eq!(holding(&puzzle, number), 1);
                let depths = puzzle.facts.iter().map(|(depth, _)| depth);
                assert!(depths.into_iter().all(|depth| (0.0..0.9).contains(depth)));
                for given in [&puzzle.question, &puzzle.lead_in] {
                    assert!(!given.contains(number) && !given.contains("{}"), "{given}");
                }
            }
        }
    }

    #[test]
    fn a_chain_takes_both_facts() {
        let puzzle = chain(&mut StdRng::seed_from_u64(4));
        let sharer = puzzle.lead_in.split(' ').next().unwrap();
        let owner = puzzle.answer[1..].split(',').next().unwrap();
        assert!(!puzzle.question.contains(owner) && !puzzle.lead_in.contains(owner));
        let naming = |names: [&str; 2]| {
            let facts = puzzle.facts.iter().map(|(_, fact)| fact);
            let found = facts.filter(|fact| names.iter().all(|name| fact.contains(name)));
            found.count()
        };
        assert_eq!(naming([sharer, owner]), 1);
        let number = puzzle.answer.rsplit(' ').next().unwrap();
        assert_eq!(naming([owner, number]), 1);
    }
}
