//! One vocabulary for two tokenizers.

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::models::bpe::BPE;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Result,
    Token, TokenizerImpl,
};

/// A tokenizer of the crate whose copies share their model, tens of megabytes of tables.
pub(super) type SharedTokenizer = TokenizerImpl<
    SharedModel,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// A vocabulary with its merges.
#[derive(Clone)]
pub(super) struct SharedModel(Arc<ModelWrapper>);

impl SharedModel {
    pub fn model(&self) -> &ModelWrapper {
        &self.0
    }
}

impl<'de> Deserialize<'de> for SharedModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let model = deserializer.deserialize_map(Streamed)?;
        Ok(Self(Arc::new(model)))
    }
}

/// Reads BPE as it comes. The crate reads every model into a tree of values first, which for the 262,144 tokens and 514,000
/// merges of Gemma 3 takes more memory than its weights.
struct Streamed;

impl<'de> Visitor<'de> for Streamed {
    type Value = ModelWrapper;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with the model of a tokenizer")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut rest = Map::new();
        // The crate writes the kind before everything else.
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if key == "type" && value == "BPE" && rest.is_empty() {
                let known = MapAccessDeserializer::new(Known(map));
                return BPE::deserialize(known).map(ModelWrapper::BPE);
            }
            rest.insert(key, value);
        }
        serde_json::from_value(Value::Object(rest)).map_err(Error::custom)
    }
}

/// The entries of a map that the crate's BPE reads. It leaves the value of any other key unread, which a stream of text does not
/// forgive.
struct Known<A>(A);

const KEYS: [&str; 9] = [
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
    "vocab",
    "merges",
];

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Known<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> std::result::Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.0.next_key::<String>()? {
            if KEYS.contains(&&*key) {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            self.0.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> std::result::Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        self.0.tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }

    fn get_trainer(&self) -> TrainerWrapper {
        self.0.get_trainer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_model_is_what_the_crate_reads_wherever_its_kind_stands_and_whatever_else_is_there() {
        let parts =
            r#""vocab": {"a": 0, "b": 1, "ab": 2}, "new": {"x": [1]}, "merges": [["a", "b"]]"#;
        for text in [
            format!(r#"{{"type": "BPE", {parts}}}"#),
            format!(r#"{{{parts}, "type": "BPE"}}"#),
            json!({"type": "WordLevel", "vocab": {"ab": 0}, "unk_token": "ab"}).to_string(),
        ] {
            let ours: SharedModel = serde_json::from_str(&text).unwrap();
            let theirs: ModelWrapper = serde_json::from_str(&text).unwrap();
            assert_eq!(*ours.model(), theirs, "{text}");
        }
        assert!(serde_json::from_str::<SharedModel>(r#"{"type": "BPE", "vocab": {}}"#).is_err());
    }
}
