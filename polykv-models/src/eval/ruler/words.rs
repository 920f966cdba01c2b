//! Aggregation: the most common words of a list, and the most frequent made-up words of a text.

use super::{Draft, Maker};
use polykv_core::{Error, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{SliceRandom, index};

/// How many words are common.
pub const COMMON: usize = 10;
/// From this length on, words are repeated as RULER repeats them; below, fewer times.
const LONG: usize = 4096;
/// So few made-up words that the third and the fourth are still told apart.
pub const LEAST_CODED: usize = 64;
const LETTERS: usize = 6;

/// `size` is the number of different words. One solved example comes first.
///
/// # Errors
/// More words than there are.
pub fn common(maker: &Maker<'_>, size: usize) -> Result<Draft> {
    let mut rng = maker.rng();
    let ((example_words, example_often, example_seldom), (often, seldom)) =
        match maker.length < LONG {
            true => ((20, 3, 1), (6, 1)),
            false => ((40, 10, 3), (30, 3)),
        };
    let number = COMMON.to_string();
    let fields = [("num_cw", number.as_str()), ("query", "")];
    let fill = |rng: &mut StdRng, size, often, seldom| -> Result<_> {
        let (list, answers) = list(maker, rng, size, often, seldom)?;
        Ok((maker.texts.common.fill(&list, &fields), answers))
    };
    let ((context, question, lead_in), solved) =
        fill(&mut rng, example_words, example_often, example_seldom)?;
    let example = format!("{context}{question}{lead_in} {}\n", numbered(&solved));
    let ((context, question, lead_in), answers) = fill(&mut rng, size, often, seldom)?;
    Ok(Draft {
        context: format!("{example}{context}"),
        question,
        lead_in,
        answers,
    })
}

/// Words in random order, the first few of them more often than the rest.
fn list(
    maker: &Maker<'_>,
    rng: &mut StdRng,
    size: usize,
    often: usize,
    seldom: usize,
) -> Result<(String, Vec<String>)> {
    let words = &maker.texts.words;
    if size > words.len() {
        let found = format!("{size} different words");
        let allowed = format!("{}, all that there are: a shorter length", words.len());
        return Err(Error::invalid("evaluation of cwe", "list", found, allowed));
    }
    let chosen = index::sample(rng, words.len(), size);
    let chosen: Vec<String> = chosen.iter().map(|at| words[at].clone()).collect();
    let mut list: Vec<String> = Vec::new();
    for (rank, word) in chosen.iter().enumerate() {
        let times = if rank < COMMON { often } else { seldom };
        list.extend(std::iter::repeat_n(word.clone(), times));
    }
    list.shuffle(rng);
    Ok((numbered(&list), chosen[..COMMON.min(size)].to_vec()))
}

fn numbered(words: &[String]) -> String {
    let words = words.iter().enumerate();
    let words: Vec<String> = words
        .map(|(at, word)| format!("{}. {word}", at + 1))
        .collect();
    words.join(" ")
}

/// `size` is the number of words before rounding; the word of rank k makes up k⁻²/ζ(2) of them, and the first is only
/// dots.
pub fn frequent(maker: &Maker<'_>, size: usize) -> Draft {
    let mut rng = maker.rng();
    let room = maker.length.saturating_sub(maker.texts.frequent.new_tokens);
    let vocabulary = (room / 50).max(8);
    let mut words = vec!["...".to_string()];
    while words.len() < vocabulary {
        let word = (0..LETTERS).map(|_| char::from(rng.random_range(b'a'..=b'z')));
        let word: String = word.collect();
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let zeta = std::f64::consts::PI.powi(2) / 6.0;
    let mut text: Vec<&str> = Vec::new();
    for (rank, word) in words.iter().enumerate() {
        let times = size as f64 / ((rank + 1) as f64).powi(2) / zeta;
        text.extend(std::iter::repeat_n(word.as_str(), times as usize));
    }
    text.shuffle(&mut rng);
    let (context, question, lead_in) = maker.texts.frequent.fill(&text.join(" "), &[("query", "")]);
    Draft {
        context,
        question,
        lead_in,
        answers: words[1..4].to_vec(),
    }
}
