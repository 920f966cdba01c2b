//! Scores over words: F1, exact match and substrings, normalised as the SQuAD and LongBench scorers do.

use jieba_rs::Jieba;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

/// Punctuation that LongBench's scorer removes from Chinese words, beside ASCII punctuation.
const PUNCTUATION_ZH: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏.";

static JIEBA: LazyLock<Jieba> = LazyLock::new(Jieba::new);

/// F1 over the words of two texts, lower case, without ASCII punctuation and the articles a, an and the (SQuAD, Rajpurkar
/// et al. 2016).
#[must_use]
pub fn f1(prediction: &str, truth: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let text = normalize(text);
        split(&text).map(String::from).collect()
    };
    f1_of(&words(prediction), &words(truth))
}

/// F1 over the words that jieba finds in two Chinese texts, lower case and without punctuation (LongBench).
#[must_use]
pub fn f1_zh(prediction: &str, truth: &str) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let words = segment(text).into_iter().map(|word| {
            word.to_lowercase()
                .chars()
                .filter(|c| !(c.is_ascii_punctuation() || PUNCTUATION_ZH.contains(*c)))
                .filter(|c| !is_space(*c))
                .collect::<String>()
        });
        words.filter(|word| !word.is_empty()).collect()
    };
    f1_of(&words(prediction), &words(truth))
}

/// 1 if two texts are the same after SQuAD's normalisation, else 0.
#[must_use]
pub fn exact(prediction: &str, truth: &str) -> f64 {
    let same = split(&normalize(prediction)).eq(split(&normalize(truth)));
    f64::from(u8::from(same))
}

/// 1 if the prediction contains the truth in whatever case, else 0 (RULER).
#[must_use]
pub fn substring(prediction: &str, truth: &str) -> f64 {
    let found = prediction.to_lowercase().contains(&truth.to_lowercase());
    f64::from(u8::from(found))
}

/// The words of a Chinese text.
pub fn segment(text: &str) -> Vec<&str> {
    let words = JIEBA.cut(text, true).into_iter();
    words.flat_map(apart).collect()
}

/// Letters, a sign and digits are one word in the crate, where the Python package leaves only a full stop or a percent
/// sign with its number.
fn apart(word: &str) -> Vec<&str> {
    let Some((head, tail)) = word.split_once(['+', '#', '&', '_', '%', '-']) else {
        return vec![word];
    };
    let digits = tail.trim_end_matches('%');
    let run = |text: &str, of: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|c| of(&c));
    if !run(head, u8::is_ascii_alphanumeric) || !run(digits, u8::is_ascii_digit) {
        return vec![word];
    }
    let signed = word.strip_suffix(tail).unwrap_or(word);
    match signed.strip_prefix(head).unwrap_or(signed) {
        "%" => vec![signed, tail],
        sign => vec![head, sign, tail],
    }
}

/// White space as Python's `str.split` sees it.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Lower case, no ASCII punctuation, and a space in place of each article.
fn normalize(text: &str) -> String {
    let text: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let mut kept = String::with_capacity(text.len());
    let mut word = String::new();
    // A character that ends the last word.
    for c in text.chars().chain([' ']) {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        match word.as_str() {
            "a" | "an" | "the" => kept.push(' '),
            word => kept.push_str(word),
        }
        word.clear();
        kept.push(c);
    }
    kept
}

/// Over two bags of words; 0 if they have none in common.
fn f1_of<T: Eq + Hash>(prediction: &[T], truth: &[T]) -> f64 {
    let mut left: HashMap<&T, usize> = HashMap::new();
    for word in truth {
        let count = left.entry(word).or_default();
        *count = count.saturating_add(1);
    }
    let mut common = 0_u32;
    for word in prediction {
        if let Some(count) = left.get_mut(word)
            && *count > 0
        {
            *count = count.saturating_sub(1);
            common = common.saturating_add(1);
        }
    }
    if common == 0 {
        return 0.0;
    }
    let precision = f64::from(common) / prediction.len() as f64;
    let recall = f64::from(common) / truth.len() as f64;
    2.0 * precision * recall / (precision + recall)
}
