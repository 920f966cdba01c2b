//! Whether every byte of a text ends up in one of its tokens, so that a long text has many.

use super::compact::CompactBpe;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// Whether a pre-tokenizer drops nothing, and the vocabulary spells every byte of what it makes. Characters that a vocabulary
/// does not have are left out without a word.
pub(super) fn keeps_all_bytes(bpe: &CompactBpe, pre: Option<&PreTokenizerWrapper>) -> bool {
    let letters = |steps: &[PreTokenizerWrapper]| {
        let kept = steps.iter().all(drops_nothing);
        kept && match steps.iter().any(is_byte_level) {
            true => ByteLevel::alphabet()
                .iter()
                .all(|letter| bpe.has_letter(*letter)),
            false => bpe.falls_back(),
        }
    };
    match pre {
        None => letters(&[]),
        Some(PreTokenizerWrapper::Sequence(steps)) => letters(steps.as_ref()),
        Some(one) => letters(std::slice::from_ref(one)),
    }
}

fn is_byte_level(step: &PreTokenizerWrapper) -> bool {
    matches!(step, PreTokenizerWrapper::ByteLevel(_))
}

fn drops_nothing(step: &PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
        PreTokenizerWrapper::ByteLevel(_)
        | PreTokenizerWrapper::Digits(_)
        | PreTokenizerWrapper::Metaspace(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Specials, Tokenizer};
    use serde_json::{Value, json};

    fn tokenizer(pre: &Value, letters: &[char], fallback: bool) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for letter in letters {
            let id = vocab.len();
            vocab.insert(letter.to_string(), id.into());
        }
        if fallback {
            for byte in 0..=255 {
                let id = vocab.len();
                vocab.insert(format!("<0x{byte:02X}>"), id.into());
            }
        }
        let json = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": pre, "post_processor": null,
            "decoder": null,
            "model": {"type": "BPE", "byte_fallback": fallback, "unk_token": null, "vocab": vocab, "merges": []},
        });
        Tokenizer::from_json("t", json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_bound_is_known_only_where_nothing_is_dropped() {
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let bytes: Vec<char> = super::ByteLevel::alphabet().into_iter().collect();
        let removing = json!({
            "type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": false,
        });
        let both = json!({"type": "Sequence", "pretokenizers": [removing, level]});
        let text = "xxxx \u{4e16}".repeat(9);
        for (pre, letters, fallback, known) in [
            (&level, bytes.as_slice(), false, true),
            (&level, &bytes[1..], false, false),
            (&both, &bytes, false, false),
            (&json!({"type": "Whitespace"}), &bytes, false, false),
            (&Value::Null, &bytes, false, false),
            (&Value::Null, &[], true, true),
        ] {
            let tokenizer = tokenizer(pre, letters, fallback);
            let least = tokenizer.least_tokens(&text);
            assert_eq!(least > 0, known, "{pre} {fallback}");
            let found = tokenizer.encode(&text, Specials::AsText).unwrap();
            assert!(least <= found.len(), "{pre} {fallback}");
        }
    }
}
