//! The messages of a chat.

use super::fault::Fault;
use super::fields::Fields;
use polykv::models::chat::{Call, Message};
use serde_json::{Map, Value};

/// The message at a place of the list.
///
/// # Errors
/// What is malformed or not supported, by the name of its field.
pub fn read(index: usize, value: Value) -> Result<Message, Fault> {
    let mut fields = Fields::of(value, format!("messages[{index}]"))?;
    let role: Option<String> = fields.take("role")?;
    let role = role.ok_or_else(|| Fault::field(fields.path("role"), "is missing"))?;
    // The newer name of the same role.
    let role = match role.as_str() {
        "developer" => "system".into(),
        _ => role,
    };
    let path = fields.path("content");
    let content: Option<Value> = fields.take("content")?;
    let tool_calls = match role.as_str() {
        "assistant" => calls(&mut fields)?,
        _ => Vec::new(),
    };
    if role == "assistant" {
        // What OpenAI's answers have beside their content; it is empty there unless the content is.
        fields.take::<Value>("refusal")?;
    }
    let tool_call_id = match role.as_str() {
        "tool" => fields.take("tool_call_id")?,
        _ => None,
    };
    let name = fields.take("name")?;
    fields.end()?;
    let content = match content {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(part, value)| text_part(format!("{path}[{part}]"), value));
            parts.collect::<Result<Vec<_>, _>>()?.concat()
        }
        None if !tool_calls.is_empty() => String::new(),
        _ => {
            return Err(Fault::field(
                path,
                "is missing; allowed: a text or a list of texts",
            ));
        }
    };
    let mut message = Message::new(role, content);
    message.tool_calls = tool_calls;
    message.tool_call_id = tool_call_id;
    message.name = name;
    Ok(message)
}

/// The calls of tools in an answer before.
fn calls(fields: &mut Fields) -> Result<Vec<Call>, Fault> {
    let path = fields.path("tool_calls");
    let calls: Vec<Value> = fields.take("tool_calls")?.unwrap_or_default();
    let calls = calls.into_iter().enumerate();
    let calls = calls.map(|(index, value)| call(value, format!("{path}[{index}]")));
    calls.collect()
}

fn call(value: Value, path: String) -> Result<Call, Fault> {
    let mut fields = Fields::of(value, path)?;
    // Its place in a stream, which clients put together.
    fields.take::<usize>("index")?;
    let id = fields.take("id")?;
    check_type(&mut fields, "function")?;
    let missing = |path: String| Fault::field(path, "is missing");
    let mut function = fields
        .take_object("function")?
        .ok_or_else(|| missing(fields.path("function")))?;
    fields.end()?;
    let name: Option<String> = function.take("name")?;
    let name = name.ok_or_else(|| missing(function.path("name")))?;
    let arguments: Option<String> = function.take("arguments")?;
    let arguments = arguments.ok_or_else(|| missing(function.path("arguments")))?;
    let path = function.path("arguments");
    function.end()?;
    let arguments: Map<String, Value> = serde_json::from_str(&arguments)
        .map_err(|error| Fault::field(path, format!("is no JSON object: {error}")))?;
    Ok(Call {
        id,
        name,
        arguments,
    })
}

fn text_part(path: String, value: Value) -> Result<String, Fault> {
    let mut fields = Fields::of(value, path)?;
    check_type(&mut fields, "text")?;
    let text = fields.take("text")?;
    let path = fields.path("text");
    fields.end()?;
    text.ok_or_else(|| Fault::field(path, "is missing"))
}

/// # Errors
/// An object of another type.
pub fn check_type(fields: &mut Fields, allowed: &str) -> Result<(), Fault> {
    match fields.take::<String>("type")? {
        Some(found) if found == allowed => Ok(()),
        found => {
            let found = found.unwrap_or_else(|| "missing".into());
            let reason = format!("is {found}; allowed: {allowed}");
            Err(Fault::field(fields.path("type"), reason))
        }
    }
}
