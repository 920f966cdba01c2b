//! Where chat templates come from: GGUF metadata, tokenizer_config.json, chat_template.jinja.

use super::ChatTemplate;
use crate::load::gguf::GgufFile;
use polykv_core::{Error, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Files that list every added token reach a few hundred kilobytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl ChatTemplate {
    /// The template in `tokenizer.chat_template`; `None` when the file has none.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let Some(source) = file.text("tokenizer.chat_template")? else {
            return Ok(None);
        };
        let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let token = |key: &str| -> Result<&str> {
            let id = file.uint(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id)).copied().unwrap_or(""))
        };
        let bos = token("tokenizer.ggml.bos_token_id")?;
        let eos = token("tokenizer.ggml.eos_token_id")?;
        Self::new(file.place(), source, bos, eos).map(Some)
    }

    /// The template of a checkpoint, given its tokenizer_config.json; `None` when it has none.
    ///
    /// A `chat_template.jinja` beside the file goes before its `chat_template` entry, which is a text or a list
    /// of named ones with a `default`.
    pub fn from_tokenizer_config(path: &Path) -> Result<Option<Self>> {
        let place = path.display().to_string();
        let text = read_capped(path, MAX_CONFIG_BYTES)?;
        let config: Value = serde_json::from_str(&text)
            .map_err(|e| Error::invalid(&place, "content", e, "a JSON object"))?;
        let token = |key: &str| {
            let value = &config[key];
            let text = value.as_str().or_else(|| value["content"].as_str());
            text.unwrap_or("").to_owned()
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        let beside = path.with_file_name("chat_template.jinja");
        // One byte more than allowed, so that the size check of `new` speaks.
        match read_capped(&beside, super::MAX_SOURCE_BYTES as u64 + 1) {
            Ok(source) => {
                let place = beside.display().to_string();
                return Self::new(&place, &source, &bos, &eos).map(Some);
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        match default_template(&place, &config["chat_template"])? {
            Some(source) => Self::new(&place, source, &bos, &eos).map(Some),
            None => Ok(None),
        }
    }
}

fn default_template<'a>(place: &str, entry: &'a Value) -> Result<Option<&'a str>> {
    let refuse = |found: &str| {
        let allowed = "a text, or a list of {name, template} with the name default";
        Err(Error::invalid(place, "chat_template", found, allowed))
    };
    match entry {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source)),
        Value::Array(list) => {
            let named = list.iter().find(|t| t["name"].as_str() == Some("default"));
            match named.and_then(|t| t["template"].as_str()) {
                Some(source) => Ok(Some(source)),
                None => refuse("a list without a default"),
            }
        }
        _ => refuse("something else"),
    }
}

fn read_capped(path: &Path, most: u64) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    let place = path.display();
    if bytes.len() as u64 > most {
        let allowed = format!("up to {most} bytes");
        return Err(Error::invalid(place, "size", "larger", allowed));
    }
    String::from_utf8(bytes).map_err(|e| Error::invalid(place, "content", e, "UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;
    use crate::load::gguf::testing::tiny_llama;

    fn load(config: &str, jinja: Option<&str>) -> Result<Option<ChatTemplate>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer_config.json");
        std::fs::write(&path, config).unwrap();
        if let Some(source) = jinja {
            std::fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
        }
        ChatTemplate::from_tokenizer_config(&path)
    }

    fn rendered(config: &str, jinja: Option<&str>) -> String {
        let messages = [Message::new("user", "x")];
        let template = load(config, jinja).unwrap().unwrap();
        template.render(&messages, false).unwrap()
    }

    #[test]
    fn forms_of_tokenizer_config() {
        let text = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"},
            "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}"#;
        assert_eq!(rendered(text, None), "<s>x</s>");
        assert_eq!(rendered(text, Some("J{{ bos_token }}")), "J<s>");
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"},
            {"name": "default", "template": "d"}]}"#;
        assert_eq!(rendered(list, None), "d");
        assert!(load("{}", None).unwrap().is_none());
    }

    #[test]
    fn refusals() {
        let long = format!("{{\"chat_template\": \"{}\"}}", "x".repeat(300_000));
        for config in [
            "",
            "{\"chat_template\": [1]}",
            "{\"chat_template\": 1}",
            &long,
        ] {
            let message = load(config, None).err().unwrap().to_string();
            assert!(message.contains("tokenizer_config.json"), "{message}");
        }
        assert!(load("{}", Some("{% if %}")).unwrap_err().is_refusal());
        assert!(
            load("{}", Some(&"x".repeat(300_000)))
                .unwrap_err()
                .is_refusal()
        );
    }

    #[test]
    fn from_gguf() {
        let template = ChatTemplate::from_gguf(&tiny_llama().open())
            .unwrap()
            .unwrap();
        assert_eq!(
            (template.bos.as_str(), template.eos.as_str()),
            ("<|im_start|>", "<|im_end|>")
        );
    }
}
