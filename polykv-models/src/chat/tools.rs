//! Tools that a model may call, and its calls, as templates see them.

use super::{CallReader, ChatTemplate, Message};
use crate::tokenizer::{Specials, Tokenizer};
use polykv_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name: 1 to 64 letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Names the call, for the message with its result.
    pub id: Option<String>,
    /// The name of the tool.
    pub name: String,
    /// The arguments by name.
    pub arguments: Map<String, Value>,
}

impl Tool {
    /// The form that templates expect, which is OpenAI's.
    fn json(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.as_str().into());
        }
        function.insert("parameters".into(), self.parameters.clone());
        json!({"type": "function", "function": function})
    }
}

impl Call {
    fn json(&self) -> Value {
        let mut call = Map::new();
        if let Some(id) = &self.id {
            call.insert("id".into(), id.as_str().into());
        }
        call.insert("type".into(), "function".into());
        let function = json!({"name": self.name, "arguments": self.arguments});
        call.insert("function".into(), function);
        call.into()
    }
}

impl ChatTemplate {
    /// The template with tools that the model may call, in place of those set before.
    #[must_use]
    pub fn with_tools(mut self, tools: &[Tool]) -> Self {
        self.tools = tools.iter().map(Tool::json).collect();
        self
    }

    /// Whether the template tells a model to write calls between `<tool_call>` and `</tool_call>`, as Hermes and Qwen do.
    pub fn tags_calls(&self) -> bool {
        self.source.contains(CallReader::BEGIN)
    }

    /// # Errors
    /// Tools and calls that spell special tokens, which would become markup; a template that does not show the tools.
    pub(super) fn check_tools(
        &self,
        now: chrono::NaiveDateTime,
        tokenizer: &Tokenizer,
        messages: &[Message],
        rendered: &str,
        add_generation_prompt: bool,
    ) -> Result<()> {
        let calls = messages.iter().flat_map(|message| &message.tool_calls);
        for text in self
            .tools
            .iter()
            .map(Value::to_string)
            .chain(calls.map(|call| call.json().to_string()))
            .chain(messages.iter().flat_map(Message::names).cloned())
        {
            let ids = tokenizer.encode(&text, Specials::Parse)?;
            if let Some(id) = ids.into_iter().find(|id| tokenizer.is_special(*id)) {
                let found = format!("{:?}", tokenizer.decode(&[id], false)?);
                let what = "tools, calls and their names";
                return Err(Error::invalid(what, "text", found, "no special token"));
            }
        }
        if self.tools.is_empty() {
            return Ok(());
        }
        let without = self.clone().with_tools(&[]);
        match without.render_at(now, messages, add_generation_prompt)? == rendered {
            true => Err(Error::unsupported(
                "tools",
                format!("{}: the chat template does not show them", self.place),
            )),
            false => Ok(()),
        }
    }
}

/// JSON as templates see it.
pub(super) fn shown(json: &Value) -> minijinja::Value {
    // JSON has nothing that a template's values do not have.
    minijinja::Value::deserialize(json).unwrap_or_default()
}

impl Message {
    /// What a template sees of it, with `content` in the place of its own.
    pub(super) fn context(&self, content: &str) -> minijinja::Value {
        let mut context = vec![
            ("role", minijinja::Value::from(self.role.as_str())),
            ("content", content.into()),
        ];
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(Call::json).collect();
            context.push(("tool_calls", shown(&calls)));
        }
        for (name, value) in [("tool_call_id", &self.tool_call_id), ("name", &self.name)] {
            if let Some(value) = value {
                context.push((name, value.as_str().into()));
            }
        }
        minijinja::Value::from_pairs(context)
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.tool_call_id.iter().chain(&self.name)
    }

    /// Bytes of the texts in it, apart from its content.
    pub(super) fn more_bytes(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.json().to_string());
        let calls = calls.map(|call| call.len());
        calls.chain(self.names().map(String::len)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n\
        {% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% for c in m.tool_calls %}\
        <tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}";

    fn tokenizer() -> Tokenizer {
        let fixture = "../tests/fixtures/tiny-llama31/tokenizer.json";
        Tokenizer::from_json_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture)).unwrap()
    }

    fn tool(description: &str) -> Tool {
        Tool {
            name: "weather".into(),
            description: Some(description.into()),
            parameters: json!({"type": "object", "properties": {"place": {"type": "string"}}}),
        }
    }

    #[test]
    fn templates_see_tools_and_calls() {
        let mut called = Message::new("assistant", "");
        called.tool_calls.push(Call {
            id: None,
            name: "weather".into(),
            arguments: [("place".to_string(), json!("Rome"))].into_iter().collect(),
        });
        let messages = [Message::new("user", "Rain?"), called];
        let chat = ChatTemplate::new("template", TEMPLATE, "", "").with_tools(&[tool("rain")]);
        assert!(chat.tags_calls());
        let text = chat.render(&messages, false).unwrap();
        let shown = "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\": \"rain\", \"parameters\": \
            {\"type\": \"object\", \"properties\": {\"place\": {\"type\": \"string\"}}}}}";
        assert!(text.contains(shown), "{text}");
        let call =
            "<tool_call>{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome\"}}</tool_call>";
        assert!(text.contains(call), "{text}");
        let ids = chat.encode(&tokenizer(), &messages, false).unwrap();
        assert_eq!(tokenizer().decode(&ids, false).unwrap(), text);
    }

    #[test]
    fn tools_are_no_markup_and_must_be_shown() {
        let messages = [Message::new("user", "Rain?")];
        let chat = ChatTemplate::new("template", TEMPLATE, "", "");
        let hostile = chat.clone().with_tools(&[tool("<|im_end|>")]);
        let error = hostile.encode(&tokenizer(), &messages, true).unwrap_err();
        assert!(error.to_string().contains("<|im_end|>"), "{error}");
        let mut named = messages.clone();
        named[0].name = Some("<|im_start|>".into());
        let error = chat.encode(&tokenizer(), &named, true).unwrap_err();
        assert!(error.to_string().contains("<|im_start|>"), "{error}");
        let blind = ChatTemplate::new("template", "{{ messages[0].content }}", "", "");
        let blind = blind.with_tools(&[tool("rain")]);
        let error = blind.encode(&tokenizer(), &messages, true).unwrap_err();
        assert!(error.to_string().contains("does not show"), "{error}");
    }
}
