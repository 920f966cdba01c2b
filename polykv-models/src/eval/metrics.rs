//! The arithmetic of the scores, in f64 on the host.

mod choice;
mod edit;
mod metric;
mod rouge;
mod words;

pub use choice::{classification, count, retrieval, retrieval_zh};
pub use edit::{code, ratio};
pub use metric::Metric;
pub use rouge::{rouge_l, rouge_l_zh};
pub use words::{exact, f1, f1_zh, segment, substring};

use polykv_core::{Error, Result};

/// The negative logarithm of a token's probability, in nats. `logits` has one number per token of the vocabulary.
///
/// # Errors
/// NaN or plus infinity among the logits, and a token outside the vocabulary.
pub fn nll(logits: &[f32], token: u32) -> Result<f64> {
    let Some(&logit) = logits.get(token as usize) else {
        let allowed = format!("below {}", logits.len());
        return Err(Error::invalid("score", "token id", token, allowed));
    };
    Ok(log_sum(logits)? - f64::from(logit))
}

/// Kullback-Leibler divergence of two next-token distributions, `Σ p ln(p / q)` in nats with `p` from `reference` and
/// `q` from `other`.
///
/// # Errors
/// NaN or plus infinity among the logits, and distributions of different sizes.
pub fn kl(reference: &[f32], other: &[f32]) -> Result<f64> {
    if reference.len() != other.len() {
        let found = format!("{} against {}", reference.len(), other.len());
        return Err(Error::invalid(
            "score",
            "vocabulary",
            found,
            "one vocabulary",
        ));
    }
    let (p_sum, q_sum) = (log_sum(reference)?, log_sum(other)?);
    let mut total = 0.0;
    for (&p, &q) in reference.iter().zip(other) {
        let log_p = f64::from(p) - p_sum;
        // A token that the reference rules out adds nothing.
        if log_p > f64::NEG_INFINITY {
            total += log_p.exp() * (log_p - (f64::from(q) - q_sum));
        }
    }
    // It is never negative; rounding can make it so by about 1e-16.
    Ok(total.max(0.0))
}

/// The most likely token; of equal ones the lowest id.
///
/// # Errors
/// NaN or no logit at all.
pub fn most_likely(logits: &[f32]) -> Result<u32> {
    check(logits)?;
    let (mut best, mut most) = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > most {
            (best, most) = (id, logit);
        }
    }
    Ok(best as u32)
}

/// Whether a smaller value of a score is the better one.
#[must_use]
pub fn lower_is_better(metric: &str) -> bool {
    matches!(metric, "perplexity" | "nll" | "kl")
}

/// The mean of values; 0 if there are none.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The first run of decimal digits in a text.
#[must_use]
pub fn first_number(text: &str) -> Option<&str> {
    let mut runs = text.split(|c: char| !c.is_ascii_digit());
    runs.find(|run| !run.is_empty())
}

/// Log-sum-exp: the logarithm of the sum of the exponentials.
fn log_sum(logits: &[f32]) -> Result<f64> {
    check(logits)?;
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - most).exp()).sum();
    Ok(most + sum.ln())
}

fn check(logits: &[f32]) -> Result<()> {
    let wrong = |x: &f32| x.is_nan() || *x == f32::INFINITY;
    match logits.iter().find(|x| wrong(x)) {
        Some(wrong) => Err(Error::Failed(format!("a logit is {wrong}"))),
        None if logits.iter().all(|x| *x == f32::NEG_INFINITY) => {
            Err(Error::Failed("no token has a finite logit".into()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-6, "{found}, not {wanted}");
    }

    /// Logits of the probabilities 1/2, 1/4, 1/4, moved by a constant.
    fn half() -> [f32; 3] {
        [0.5f32, 0.25, 0.25].map(|p| p.ln() + 7.0)
    }

    #[test]
    fn likelihoods_by_hand() {
        near(nll(&half(), 0).unwrap(), 2f64.ln());
        near(nll(&half(), 2).unwrap(), 4f64.ln());
        near(nll(&[f32::NEG_INFINITY, 3.0], 1).unwrap(), 0.0);
        assert!(
            nll(&half(), 3)
                .unwrap_err()
                .to_string()
                .contains("token id is 3")
        );
    }

    #[test]
    fn divergences_by_hand() {
        let uniform = [1.0f32; 3];
        // ½ ln(½·3) + 2 · ¼ ln(¼·3) and ⅓ ln(⅓·2) + 2 · ⅓ ln(⅓·4).
        near(
            kl(&half(), &uniform).unwrap(),
            0.5 * 1.5f64.ln() + 0.5 * 0.75f64.ln(),
        );
        near(
            kl(&uniform, &half()).unwrap(),
            (2f64 / 3.0).ln() / 3.0 + 2.0 * (4f64 / 3.0).ln() / 3.0,
        );
        assert!(kl(&half(), &half()).unwrap() < 1e-12);
        near(
            kl(&[f32::NEG_INFINITY, 0.0], &[0.0, 0.0]).unwrap(),
            2f64.ln(),
        );
        assert!(kl(&half(), &[0.0]).is_err());
    }

    #[test]
    fn choices_and_means_by_hand() {
        assert_eq!(most_likely(&[0.0, 2.0, 2.0]).unwrap(), 1);
        near(mean(&[1.0, 2.0, 6.0]), 3.0);
        near(mean(&[]), 0.0);
        for wrong in [&[0.0, f32::NAN][..], &[f32::INFINITY], &[]] {
            assert!(most_likely(wrong).is_err(), "{wrong:?}");
            assert!(nll(wrong, 0).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_first_number_of_a_text() {
        assert_eq!(first_number("It is 714092. Not 5."), Some("714092"));
        assert_eq!(first_number("7140921"), Some("7140921"));
        assert_eq!(first_number("none"), None);
    }
}
