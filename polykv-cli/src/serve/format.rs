//! The form of an answer: text, or JSON that follows a schema.

use super::fault::Fault;
use super::fields::Fields;
use super::state::Ready;
use polykv::models::guide::Guide;
use serde_json::{Value, json};

/// What the request's `response_format` asks an answer to follow.
///
/// # Errors
/// A form that is not known, and a schema that cannot be followed.
pub fn guide(fields: &mut Fields, ready: &Ready) -> Result<Option<Box<dyn Guide>>, Fault> {
    let Some(mut format) = fields.take_object("response_format")? else {
        return Ok(None);
    };
    let (path, schema) = match format.take::<String>("type")?.as_deref() {
        Some("text") => {
            format.end()?;
            return Ok(None);
        }
        Some("json_object") => (format.path("type"), json!({"type": "object"})),
        Some("json_schema") => {
            let path = format.path("json_schema");
            let Some(mut given) = format.take_object("json_schema")? else {
                return Err(Fault::field(path, "is missing"));
            };
            for name in ["name", "description"] {
                given.take::<String>(name)?;
            }
            // Answers always follow the schema.
            given.take::<bool>("strict")?;
            let path = given.path("schema");
            let schema: Option<Value> = given.take("schema")?;
            given.end()?;
            match schema {
                Some(schema) => (path, schema),
                None => return Err(Fault::field(path, "is missing")),
            }
        }
        found => {
            let found = found.unwrap_or("missing");
            let reason = format!("is {found}; allowed: text, json_object, json_schema");
            return Err(Fault::field(format.path("type"), reason));
        }
    };
    format.end()?;
    let guide = ready.guides()?.json_schema(&schema);
    guide.map(Some).map_err(|error| Fault::field(path, error))
}
