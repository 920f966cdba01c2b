//! Where chat templates come from: GGUF metadata, chat_template.jinja, tokenizer_config.json.

use super::{ChatTemplate, MAX_SOURCE_BYTES};
use crate::gguf::GgufFile;
use crate::tokenizer::companions::{self, Companions};
use polykv_core::Result;
use serde_json::Value;
use std::path::Path;

impl ChatTemplate {
    /// The template in `tokenizer.chat_template`; `None` when the file has none.
    ///
    /// # Errors
    /// Metadata of other types than GGUF prescribes.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let Some(source) = file.text("tokenizer.chat_template")? else {
            return Ok(None);
        };
        let texts = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut tokens = Vec::new();
        for (name, key) in [
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("sep_token", "seperator"),
            ("pad_token", "padding"),
            ("cls_token", "cls"),
            ("mask_token", "mask"),
        ] {
            let id = file.uint(&format!("tokenizer.ggml.{key}_token_id"))?;
            let id = id.and_then(|id| usize::try_from(id).ok());
            if let Some(text) = id.and_then(|id| texts.get(id)) {
                tokens.push((name.to_owned(), (*text).to_owned()));
            }
        }
        Ok(Some(Self::of(file.place(), source.to_owned(), tokens)))
    }

    /// The template of a folder with a checkpoint; `None` when it has none.
    ///
    /// `chat_template.jinja` goes before the entry `chat_template` of tokenizer_config.json, which is a text or a list
    /// of named ones with a `default`. The special tokens come from tokenizer_config.json and special_tokens_map.json.
    ///
    /// # Errors
    /// Files that cannot be read, are too large or are not JSON.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let companions = Companions::read(folder)?;
        let tokens = companions.named_tokens();
        let beside = folder.join("chat_template.jinja");
        let most = (MAX_SOURCE_BYTES as u64).saturating_add(1);
        if let Some(bytes) = companions::read_up_to(&beside, most)? {
            let place = beside.display().to_string();
            let oversized = bytes.len() > MAX_SOURCE_BYTES;
            let template = match String::from_utf8(bytes) {
                _ if oversized => {
                    Self::faulty(&place, format!("more than {MAX_SOURCE_BYTES} bytes"))
                }
                Ok(source) => Self::of(&place, source, tokens),
                Err(e) => Self::faulty(&place, format!("no UTF-8 text: {}", e.utf8_error())),
            };
            return Ok(Some(template));
        }
        let place = companions.place();
        Ok(match default_template(companions.chat_template()) {
            Ok(None) => None,
            Ok(Some(source)) => Some(Self::of(&place, source.to_owned(), tokens)),
            Err(fault) => Some(Self::faulty(&place, fault.into())),
        })
    }

    fn of(place: &str, source: String, tokens: Vec<(String, String)>) -> Self {
        Self {
            source,
            tokens,
            ..Self::new(place, "", "", "")
        }
    }

    fn faulty(place: &str, fault: String) -> Self {
        Self {
            fault: Some(fault),
            ..Self::new(place, "", "", "")
        }
    }
}

fn default_template(entry: &Value) -> std::result::Result<Option<&str>, &'static str> {
    match entry {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source)),
        Value::Array(list) => {
            let named = list.iter().find(|t| t["name"].as_str() == Some("default"));
            let source = named.and_then(|t| t["template"].as_str());
            source
                .map(Some)
                .ok_or("a list of templates without a default")
        }
        _ => Err("neither a text nor a list of templates"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;
    use crate::gguf::testing::tiny_llama;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn rendered(files: &[(&str, &str)]) -> Result<String> {
        let dir = folder(files);
        let template = ChatTemplate::from_folder(dir.path())?.unwrap();
        template.render(&[Message::new("user", "x")], false)
    }

    #[test]
    fn forms_of_a_folder() {
        let text = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<p>", "image_token": "<i>",
            "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}{{ image_token }}"}"#;
        let config = ("tokenizer_config.json", text);
        assert_eq!(rendered(&[config]).unwrap(), "<s>x</s><p><i>");
        let beside = ("chat_template.jinja", "J{{ bos_token }}");
        assert_eq!(rendered(&[config, beside]).unwrap(), "J<s>");
        assert_eq!(rendered(&[beside]).unwrap(), "J");
        let map = (
            "special_tokens_map.json",
            r#"{"bos_token": {"content": "<m>"}}"#,
        );
        assert_eq!(rendered(&[beside, map]).unwrap(), "J<m>");
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"},
            {"name": "default", "template": "d"}]}"#;
        assert_eq!(rendered(&[("tokenizer_config.json", list)]).unwrap(), "d");
        for files in [&[][..], &[("tokenizer_config.json", "{}")]] {
            let dir = folder(files);
            assert!(ChatTemplate::from_folder(dir.path()).unwrap().is_none());
        }
    }

    #[test]
    fn a_bad_template_is_refused_when_it_is_needed() {
        let long = "x".repeat(300_000);
        let entry = format!("{{\"chat_template\": \"{long}\"}}");
        for (name, text) in [
            ("tokenizer_config.json", "{\"chat_template\": [1]}"),
            ("tokenizer_config.json", "{\"chat_template\": 1}"),
            ("tokenizer_config.json", &entry),
            ("chat_template.jinja", "{% if %}"),
            ("chat_template.jinja", &long),
        ] {
            let dir = folder(&[(name, text)]);
            let template = ChatTemplate::from_folder(dir.path()).unwrap().unwrap();
            let error = template
                .render(&[Message::new("user", "x")], false)
                .unwrap_err();
            assert!(
                error.is_refusal() && error.to_string().contains(name),
                "{error}"
            );
        }
        let dir = folder(&[("tokenizer_config.json", "")]);
        assert!(
            ChatTemplate::from_folder(dir.path())
                .unwrap_err()
                .is_refusal()
        );
    }

    #[test]
    fn from_gguf() {
        let template = ChatTemplate::from_gguf(&tiny_llama().open())
            .unwrap()
            .unwrap();
        let text = |name: &str| {
            let token = template.tokens.iter().find(|(key, _)| key == name);
            token.map(|(_, text)| text.as_str())
        };
        assert_eq!(text("bos_token"), Some("<|im_start|>"));
        assert_eq!(text("eos_token"), Some("<|im_end|>"));
    }
}
