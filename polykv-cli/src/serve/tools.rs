//! The tools that a request offers to the model.

use super::fault::Fault;
use super::fields::Fields;
use super::messages::check_type;
use super::state::Ready;
use polykv::models::GenerateOptions;
use polykv::models::chat::{CallReader, Tool};
use polykv::models::guide::CallForm;
use serde_json::{Value, json};

const MOST_TOOLS: usize = 128;
const MOST_NAME_BYTES: usize = 64;

/// The tools of a request, and what is wanted of them.
#[derive(Debug)]
pub struct Toolbox {
    pub tools: Vec<Tool>,
    /// Whether the answer must be a call, and of which tool if that is said.
    required: bool,
    named: Option<usize>,
    /// Whether an answer may hold several calls.
    parallel: bool,
}

impl Toolbox {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`; none if there are no tools, or if they are not to be used.
    ///
    /// # Errors
    /// What is malformed or not supported, by the name of its field.
    pub fn read(fields: &mut Fields) -> Result<Option<Self>, Fault> {
        let given: Option<Vec<Value>> = fields.take("tools")?;
        let choice: Option<Value> = fields.take("tool_choice")?;
        let parallel: Option<bool> = fields.take("parallel_tool_calls")?;
        let Some(given) = given else {
            let lonely = [
                ("tool_choice", choice.is_some()),
                ("parallel_tool_calls", parallel.is_some()),
            ];
            return match lonely.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => Err(Fault::field(name, "needs tools")),
                None => Ok(None),
            };
        };
        if given.is_empty() || given.len() > MOST_TOOLS {
            let reason = format!("are {}; allowed: 1 to {MOST_TOOLS}", given.len());
            return Err(Fault::field("tools", reason));
        }
        let mut tools: Vec<Tool> = Vec::new();
        let mut strict = None;
        for (index, value) in given.into_iter().enumerate() {
            let (one, is_strict) = tool(value, format!("tools[{index}]"))?;
            if tools.iter().any(|other| other.name == one.name) {
                let reason = format!("is {} a second time", one.name);
                return Err(Fault::field(
                    format!("tools[{index}].function.name"),
                    reason,
                ));
            }
            strict = strict.or(is_strict.then_some(index));
            tools.push(one);
        }
        let (required, named) = match choice {
            None => (false, None),
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => return Ok(None),
                "auto" => (false, None),
                "required" => (true, None),
                other => {
                    let reason = format!("is {other}; allowed: none, auto, required, or a tool");
                    return Err(Fault::field("tool_choice", reason));
                }
            },
            Some(choice) => (true, Some(named(choice, &tools)?)),
        };
        // Only where the answer is a call from its beginning is it known what must be followed.
        if let Some(index) = strict.filter(|_| !required) {
            let reason = "is true; allowed: where tool_choice is required or a tool";
            return Err(Fault::field(
                format!("tools[{index}].function.strict"),
                reason,
            ));
        }
        Ok(Some(Self {
            tools,
            required,
            named,
            parallel: parallel.unwrap_or(true),
        }))
    }

    pub fn names(&self) -> Vec<String> {
        self.tools.iter().map(|tool| tool.name.clone()).collect()
    }

    /// Sets what an answer must follow, and where it ends.
    ///
    /// # Errors
    /// A schema that cannot be followed, and another form of the answer beside tools.
    pub fn set(&self, options: &mut GenerateOptions, ready: &Ready) -> Result<(), Fault> {
        if options.guide.is_some() {
            let reason = "is not supported beside tools, unless tool_choice is none";
            return Err(Fault::field("response_format", reason));
        }
        let chat = ready.model.chat.as_ref();
        let tagged = chat.is_some_and(|chat| chat.tags_calls());
        if !self.required {
            if !self.parallel && tagged {
                options.stop.push(CallReader::END.into());
            }
            return Ok(());
        }
        let form = match tagged {
            true => CallForm::Tagged,
            false => CallForm::Bare,
        };
        let wanted = self.tools.iter().enumerate();
        let wanted = wanted.filter(|(index, _)| self.named.is_none_or(|named| named == *index));
        let wanted: Vec<(&str, &Value)> = wanted
            .map(|(_, tool)| (tool.name.as_str(), &tool.parameters))
            .collect();
        let guide = ready.guides()?.call(&wanted, form);
        options.guide = Some(guide.map_err(|error| Fault::field("tools", error))?);
        Ok(())
    }
}

/// A tool, and whether its calls must follow the schema.
fn tool(value: Value, path: String) -> Result<(Tool, bool), Fault> {
    let mut fields = Fields::of(value, path)?;
    check_type(&mut fields, "function")?;
    let Some(mut function) = fields.take_object("function")? else {
        return Err(Fault::field(fields.path("function"), "is missing"));
    };
    fields.end()?;
    let name: Option<String> = function.take("name")?;
    let name = name.unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > MOST_NAME_BYTES || !name.bytes().all(plain) {
        let allowed = format!("1 to {MOST_NAME_BYTES} letters, digits, _, - and .");
        let reason = format!("is {name:?}; allowed: {allowed}");
        return Err(Fault::field(function.path("name"), reason));
    }
    let description = function.take("description")?;
    let strict = function.take("strict")?.unwrap_or(false);
    let path = function.path("parameters");
    let parameters = function.take("parameters")?;
    function.end()?;
    let parameters = parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    if !parameters.is_object() {
        return Err(Fault::field(path, "is no object"));
    }
    let tool = Tool {
        name,
        description,
        parameters,
    };
    Ok((tool, strict))
}

/// The tool that the request names.
fn named(choice: Value, tools: &[Tool]) -> Result<usize, Fault> {
    let mut choice = Fields::of(choice, "tool_choice".into())?;
    check_type(&mut choice, "function")?;
    let Some(mut function) = choice.take_object("function")? else {
        return Err(Fault::field("tool_choice.function", "is missing"));
    };
    choice.end()?;
    let name: Option<String> = function.take("name")?;
    function.end()?;
    let name = name.unwrap_or_default();
    let found = tools.iter().position(|tool| tool.name == name);
    found.ok_or_else(|| {
        let reason = format!("is {name:?}; allowed: the name of one of the tools");
        Fault::field("tool_choice.function.name", reason)
    })
}
