//! Variables for templates, given by hand.

use minijinja::Value;
use std::fmt;
use std::str::FromStr;

/// What a conversation itself decides.
const RESERVED: [&str; 2] = ["messages", "add_generation_prompt"];

/// A variable for a chat template, written `NAME=VALUE`: `enable_thinking=false`.
///
/// The value is JSON, or `True`, `False` or `None` as Python writes them; whatever else is a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    name: String,
    text: String,
}

impl Argument {
    /// The name of the variable.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| self.text.as_str().into())
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| Value::from(self.text.as_str()))
    }
}

impl FromStr for Argument {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let (name, text) = given
            .split_once('=')
            .ok_or("NAME=VALUE is wanted, such as enable_thinking=false")?;
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(part) {
            return Err(format!("{name:?} is no name of a variable"));
        }
        if RESERVED.contains(&name) {
            return Err(format!("{name} comes from the prompt"));
        }
        let text = match text {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let (name, text) = (name.into(), text.into());
        Ok(Self { name, text })
    }
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_or_text() {
        for (given, json) in [
            ("enable_thinking=false", serde_json::json!(false)),
            ("enable_thinking=False", serde_json::json!(false)),
            ("date=26 Jul 2024", serde_json::json!("26 Jul 2024")),
            ("n=3", serde_json::json!(3)),
            ("x=[1, {\"a\": null}]", serde_json::json!([1, {"a": null}])),
            ("empty=", serde_json::json!("")),
            ("eq=a=b", serde_json::json!("a=b")),
        ] {
            assert_eq!(given.parse::<Argument>().unwrap().json(), json, "{given}");
        }
        for given in ["enable_thinking", "=1", "a b=1", "messages=[]", "__limit=1"] {
            assert!(given.parse::<Argument>().is_err(), "{given}");
        }
    }
}
