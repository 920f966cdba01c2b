//! The files beside a tokenizer.json that say more about its tokens: tokenizer_config.json, special_tokens_map.json.

use polykv_core::{Error, Result, files};
use serde_json::{Map, Value};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Files that list every added token reach a few hundred kilobytes.
const MAX_BYTES: u64 = 16 << 20;

/// What the files of a folder say, as far as it has them.
#[derive(Debug, Default)]
pub(crate) struct Companions {
    #[cfg(feature = "chat")]
    folder: std::path::PathBuf,
    config: Map<String, Value>,
    map: Map<String, Value>,
}

impl Companions {
    /// # Errors
    /// Files that cannot be read, are too large or hold no JSON object.
    pub fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            #[cfg(feature = "chat")]
            folder: folder.to_owned(),
            config: read_object(&folder.join("tokenizer_config.json"))?,
            map: read_object(&folder.join("special_tokens_map.json"))?,
        })
    }

    /// The file with the chat template.
    #[cfg(feature = "chat")]
    pub fn place(&self) -> String {
        let path = self.folder.join("tokenizer_config.json");
        path.display().to_string()
    }

    #[cfg(feature = "chat")]
    pub fn chat_template(&self) -> &Value {
        self.config.get("chat_template").unwrap_or(&Value::Null)
    }

    /// Entries such as `bos_token` with their texts. tokenizer_config.json goes before special_tokens_map.json.
    pub fn named_tokens(&self) -> Vec<(String, String)> {
        let mut tokens: Vec<(String, String)> = Vec::new();
        for (name, value) in self.config.iter().chain(&self.map) {
            let known = tokens.iter().any(|(known, _)| known == name);
            if let Some(text) = text(value).filter(|_| name.ends_with("_token") && !known) {
                tokens.push((name.clone(), text.to_owned()));
            }
        }
        tokens
    }

    /// The texts of all tokens that the files call special.
    pub fn special_texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.named_tokens().into_iter().map(|(_, t)| t).collect();
        for file in [&self.config, &self.map] {
            for key in ["additional_special_tokens", "extra_special_tokens"] {
                let values: Vec<&Value> = match file.get(key) {
                    Some(Value::Array(list)) => list.iter().collect(),
                    Some(Value::Object(named)) => named.values().collect(),
                    _ => Vec::new(),
                };
                texts.extend(values.into_iter().filter_map(text).map(str::to_owned));
            }
        }
        let listed = self.config.get("added_tokens_decoder");
        for token in listed
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::values)
        {
            if token["special"] == Value::Bool(true) {
                texts.extend(text(token).map(str::to_owned));
            }
        }
        texts
    }
}

/// The text of a token, which is written plainly or as an object.
fn text(token: &Value) -> Option<&str> {
    let text = token.as_str().or_else(|| token["content"].as_str());
    text.filter(|text| !text.is_empty())
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(bytes) = read_up_to(path, MAX_BYTES + 1)? else {
        return Ok(Map::new());
    };
    let place = path.display();
    if bytes.len() as u64 > MAX_BYTES {
        let allowed = format!("up to {MAX_BYTES} bytes");
        return Err(Error::invalid(place, "size", "larger", allowed));
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(place, "content", e, "a JSON object"))
}

/// The first `most` bytes of a regular file; `None` when it is not there.
pub(crate) fn read_up_to(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let file = match files::open_regular(path) {
        Ok(file) => file,
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    Ok(Some(bytes))
}
