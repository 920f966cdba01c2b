//! Calls of tools in the text of an answer.

use super::tools::Call;
use serde_json::{Map, Value};

/// Llama 3 may put it before a call; it is a special token there, and then no part of the text.
const PYTHON: &str = "<|python_tag|>";

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Text.
    Text(String),
    /// A call, without an id.
    Call(Call),
}

/// Finds calls in an answer as it comes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen write them, any
/// number; or `{"name": …, "parameters": {…}}` as the whole answer, as Llama 3 does. What is no call of one of the tools is text.
#[derive(Clone, Debug)]
pub struct CallReader {
    /// The names of the tools.
    tools: Vec<String>,
    held: String,
    /// Whether something was told of already: a call without tags is the whole answer.
    begun: bool,
    /// Whether a begin tag stands before what is held.
    inside: bool,
    /// Whether the last that was told of is a call.
    called: bool,
}

impl CallReader {
    /// What Hermes and Qwen write before a call.
    pub const BEGIN: &str = "<tool_call>";
    /// What they write after it.
    pub const END: &str = "</tool_call>";

    /// A reader for calls of tools with these names.
    pub fn new(tools: Vec<String>) -> Self {
        Self {
            tools,
            held: String::new(),
            begun: false,
            inside: false,
            called: false,
        }
    }

    /// Takes the next piece of the answer's text. Returns what is certain, and holds back what may belong to a call.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// Ends the answer. A call whose end tag is missing counts if it is whole.
    pub fn finish(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let held = std::mem::take(&mut self.held);
        if self.inside {
            self.inside = false;
            self.tagged(&held, "", &mut said);
        } else if !self.begun
            && let Some(call) = self.call(strip(&held))
        {
            said.push(Said::Call(call));
        } else {
            self.text(held, &mut said);
        }
        said
    }

    /// Whether more can be told of what is held.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        if self.inside {
            let Some((inner, rest)) = self.held.split_once(Self::END) else {
                return false;
            };
            let (inner, rest) = (inner.to_owned(), rest.to_owned());
            self.held = rest;
            self.inside = false;
            self.tagged(&inner, Self::END, said);
            return true;
        }
        let start = self.held.trim_start();
        let bare = start.starts_with('{') || PYTHON.starts_with(start) || start.starts_with(PYTHON);
        if !self.begun && bare {
            return false;
        }
        if let Some((before, rest)) = self.held.split_once(Self::BEGIN) {
            let (before, rest) = (before.to_owned(), rest.to_owned());
            self.held = rest;
            self.inside = true;
            self.text(before, said);
            return true;
        }
        let open = (0..Self::BEGIN.len()).rev().find(|length| {
            Self::BEGIN
                .get(..*length)
                .is_some_and(|tag| self.held.ends_with(tag))
        });
        let certain = self.held.len().saturating_sub(open.unwrap_or(0));
        let text = self.held.get(..certain).unwrap_or_default();
        if !self.begun && text.trim().is_empty() {
            // White space before a call is no text.
            return false;
        }
        let rest = self.held.split_off(certain);
        let text = std::mem::replace(&mut self.held, rest);
        self.text(text, said);
        false
    }

    /// White space before the first call and after any is no text.
    fn text(&mut self, text: String, said: &mut Vec<Said>) {
        let text = match self.called {
            true => text.trim_start().to_owned(),
            false => text,
        };
        let alone = !self.begun && self.inside && text.trim().is_empty();
        if !text.is_empty() && !alone {
            self.begun = true;
            self.called = false;
            said.push(Said::Text(text));
        }
    }

    fn tagged(&mut self, inner: &str, end: &str, said: &mut Vec<Said>) {
        let call = self.call(inner);
        self.begun = true;
        self.called = call.is_some();
        said.push(match call {
            Some(call) => Said::Call(call),
            None => Said::Text([Self::BEGIN, inner, end].concat()),
        });
    }

    fn call(&self, text: &str) -> Option<Call> {
        let mut object: Map<String, Value> = serde_json::from_str(text.trim()).ok()?;
        let name = object.remove("name")?;
        let name = name.as_str()?;
        let arguments = object
            .remove("arguments")
            .or_else(|| object.remove("parameters"));
        let arguments = match arguments {
            Some(Value::Object(arguments)) => arguments,
            Some(Value::String(text)) => serde_json::from_str(&text).ok()?,
            Some(_) => return None,
            None => Map::new(),
        };
        let known = self.tools.iter().any(|tool| tool == name);
        known.then(|| Call {
            id: None,
            name: name.to_owned(),
            arguments,
        })
    }
}

fn strip(text: &str) -> &str {
    let text = text.trim_start();
    text.strip_prefix(PYTHON).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What an answer says, whatever pieces it comes in.
    fn read(answer: &str) -> Vec<Said> {
        let mut all: Vec<Vec<Said>> = Vec::new();
        for size in [1, 2, 7, 1000] {
            let mut reader = CallReader::new(vec!["add".into(), "rain".into()]);
            let chars: Vec<char> = answer.chars().collect();
            let pieces = chars
                .chunks(size)
                .map(|piece| piece.iter().collect::<String>());
            let mut said: Vec<Said> = pieces.flat_map(|piece| reader.push(&piece)).collect();
            said.extend(reader.finish());
            all.push(joined(said));
        }
        assert!(all.windows(2).all(|two| two[0] == two[1]), "{all:?}");
        all.remove(0)
    }

    fn joined(said: Vec<Said>) -> Vec<Said> {
        let mut whole: Vec<Said> = Vec::new();
        for one in said {
            match (whole.last_mut(), one) {
                (Some(Said::Text(text)), Said::Text(more)) => text.push_str(&more),
                (_, one) => whole.push(one),
            }
        }
        whole
    }

    fn text(text: &str) -> Said {
        Said::Text(text.into())
    }

    fn call(name: &str, arguments: Value) -> Said {
        Said::Call(Call {
            id: None,
            name: name.into(),
            arguments: arguments.as_object().unwrap().clone(),
        })
    }

    #[test]
    fn calls_between_tags() {
        let add = r#"<tool_call>
{"name": "add", "arguments": {"a": 1, "b": [2]}}
</tool_call>"#;
        let called = || call("add", json!({"a": 1, "b": [2]}));
        assert_eq!(read(add), [called()]);
        assert_eq!(read(&format!("\n{add}\n{add}\n")), [called(), called()]);
        assert_eq!(
            read(&format!("Let me see.\n{add}")),
            [text("Let me see.\n"), called()]
        );
        // Cut off after the object, or before its end.
        assert_eq!(read(add.trim_end_matches("\n</tool_call>")), [called()]);
        let cut = &add[..30];
        assert_eq!(read(cut), [text(cut)]);
        // No tool of that name, and no JSON.
        let other = add.replace("add", "subtract");
        assert_eq!(read(&other), [text(&other)]);
        let broken = add.replace('[', "");
        assert_eq!(read(&broken), [text(&broken)]);
        assert_eq!(read("a < b <tool"), [text("a < b <tool")]);
    }

    #[test]
    fn calls_that_are_the_whole_answer() {
        let rain = call("rain", json!({"place": "Rome"}));
        for answer in [
            r#"{"name": "rain", "parameters": {"place": "Rome"}}"#,
            r#" <|python_tag|>{"name": "rain", "parameters": {"place": "Rome"}}"#,
            r#"{"name": "rain", "arguments": "{\"place\": \"Rome\"}"}"#,
        ] {
            assert_eq!(read(answer), std::slice::from_ref(&rain), "{answer}");
        }
        assert_eq!(read(r#"{"name": "rain"}"#), [call("rain", json!({}))]);
        for answer in [
            r#"{"a": 1}"#,
            r#"See {"name": "rain", "parameters": {}}"#,
            "",
            "<|pyth",
        ] {
            let wanted: Vec<Said> = (!answer.is_empty())
                .then(|| text(answer))
                .into_iter()
                .collect();
            assert_eq!(read(answer), wanted, "{answer}");
        }
    }
}
