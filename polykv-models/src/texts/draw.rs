//! How many samples there are, how long they may be, and which ones a seed chooses.

use polykv_core::{Error, Result};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::index;

const MOST: usize = 100_000;

/// Counts have a ceiling, because all samples are made before the first one runs.
///
/// # Errors
/// Names the count.
pub fn check_counts(counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, count)| !(1..=MOST).contains(count)) {
        Some((field, count)) => {
            let allowed = format!("at least 1, at most {MOST}");
            Err(Error::invalid("evaluation", field, count, allowed))
        }
        None => Ok(()),
    }
}

/// Whether a prompt of `length` and `more` tokens fit the model.
///
/// # Errors
/// Names both numbers.
pub fn check_length(length: usize, more: usize, context: usize) -> Result<()> {
    if length == 0 {
        return Err(Error::invalid("evaluation", "length", 0, "at least 1"));
    }
    if length.saturating_add(more) > context {
        let found = format!("{length} and {more} tokens after it");
        let allowed = format!("at most {context} together, the model's context");
        return Err(Error::invalid("evaluation", "length", found, allowed));
    }
    Ok(())
}

/// Tokens of a text in a prefix of `length` that starts with the tokens `begin`.
///
/// # Errors
/// A prefix that the begin token fills.
pub fn of_text(length: usize, begin: &[u32]) -> Result<usize> {
    match length.checked_sub(begin.len()) {
        None | Some(0) => {
            let allowed = format!("at least {}", begin.len().saturating_add(1));
            Err(Error::invalid("evaluation", "length", length, allowed))
        }
        Some(tokens) => Ok(tokens),
    }
}

/// `count` different numbers below `choices`, ascending; all if there are fewer.
pub fn starts(choices: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut starts = index::sample(&mut rng, choices, count.min(choices)).into_vec();
    starts.sort_unstable();
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_different_and_follow_the_seed() {
        let some = starts(1000, 8, 3);
        assert_eq!(some.len(), 8);
        assert!(some.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(some.iter().all(|&start| start < 1000));
        assert_eq!(some, starts(1000, 8, 3));
        assert_ne!(some, starts(1000, 8, 4));
        assert_eq!(starts(3, 8, 0), [0, 1, 2]);
    }

    #[test]
    fn lengths_must_fit_the_context() {
        assert!(check_length(384, 128, 512).is_ok());
        let message = check_length(400, 128, 512).unwrap_err().to_string();
        assert_eq!(
            message,
            "evaluation: length is 400 and 128 tokens after it; allowed: at most 512 together, the model's context"
        );
        assert!(check_length(0, 1, 512).is_err());
        assert_eq!(of_text(5, &[]).unwrap(), 5);
        assert_eq!(of_text(5, &[1]).unwrap(), 4);
        let message = of_text(1, &[1]).unwrap_err().to_string();
        assert_eq!(message, "evaluation: length is 1; allowed: at least 2");
        assert!(check_length(usize::MAX, 1, 512).is_err());
    }
}
