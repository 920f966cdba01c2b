//! One vocabulary for two tokenizers.

use super::compact::CompactBpe;
use super::raw::Raw;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::models::bpe::BpeTrainer;
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
pub(super) struct SharedModel(Arc<Table>);

enum Table {
    Compact(CompactBpe),
    /// What the small tables cannot say.
    Crate(ModelWrapper),
}

impl SharedModel {
    /// The small tables, if the model has them.
    pub fn compact(&self) -> Option<&CompactBpe> {
        match &*self.0 {
            Table::Compact(bpe) => Some(bpe),
            Table::Crate(_) => None,
        }
    }

    /// Calls a function with every token and its id.
    pub fn each_token(&self, mut take: impl FnMut(&str, u32)) {
        match &*self.0 {
            Table::Compact(bpe) => bpe.tokens().for_each(|(text, id)| take(text, id)),
            Table::Crate(model) => {
                let vocab = model.get_vocab();
                vocab.iter().for_each(|(text, id)| take(text, *id));
            }
        }
    }
}

impl<'de> Deserialize<'de> for SharedModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let table = deserializer.deserialize_map(Streamed)?;
        Ok(Self(Arc::new(table)))
    }
}

/// Reads BPE as it comes. The crate reads every model into a tree of values first, which for the 262,144 tokens and 514,000
/// merges of Gemma 3 takes more memory than its weights.
struct Streamed;

impl<'de> Visitor<'de> for Streamed {
    type Value = Table;

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
                let raw = Raw::deserialize(MapAccessDeserializer::new(map))?;
                return table(raw).map_err(Error::custom);
            }
            rest.insert(key, value);
        }
        let rest = Value::Object(rest);
        match rest.get("type").is_some_and(|kind| kind == "BPE") {
            true => {
                let raw = Raw::deserialize(rest).map_err(Error::custom)?;
                table(raw).map_err(Error::custom)
            }
            false => serde_json::from_value(rest)
                .map(Table::Crate)
                .map_err(Error::custom),
        }
    }
}

fn table(raw: Raw) -> Result<Table> {
    match CompactBpe::new(&raw)? {
        Some(bpe) => Ok(Table::Compact(bpe)),
        None => Ok(Table::Crate(ModelWrapper::BPE(raw.crates()?))),
    }
}

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        match &*self.0 {
            Table::Compact(bpe) => Ok(bpe.tokenize(sequence)),
            Table::Crate(model) => model.tokenize(sequence),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match &*self.0 {
            Table::Compact(bpe) => bpe.id(token),
            Table::Crate(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match &*self.0 {
            Table::Compact(bpe) => bpe.token(id).map(str::to_owned),
            Table::Crate(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match &*self.0 {
            Table::Compact(bpe) => bpe
                .tokens()
                .map(|(text, id)| (text.to_owned(), id))
                .collect(),
            Table::Crate(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match &*self.0 {
            Table::Compact(bpe) => bpe.len(),
            Table::Crate(model) => model.get_vocab_size(),
        }
    }

    /// Nothing here writes vocabularies.
    fn save(&self, _: &Path, _: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a shared vocabulary is only read".into())
    }

    /// Nothing here trains vocabularies: this is one of the right type.
    fn get_trainer(&self) -> TrainerWrapper {
        BpeTrainer::default().into()
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
            assert_eq!(ours.get_vocab(), theirs.get_vocab(), "{text}");
            for word in ["ab", "a", "abab", "bab"] {
                let (ours, theirs) = (ours.tokenize(word), theirs.tokenize(word));
                assert_eq!(ours.unwrap(), theirs.unwrap(), "{text}");
            }
        }
        assert!(serde_json::from_str::<SharedModel>(r#"{"type": "BPE", "vocab": {}}"#).is_err());
    }
}
