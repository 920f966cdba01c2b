//! The fields of a JSON object, taken out one by one: what is left at the end is not supported.

use super::fault::Fault;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of an object that have not been taken yet. Those that are null count as not given.
#[derive(Debug)]
pub struct Fields {
    /// Before the names of the fields in messages: empty, or where the object stands.
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The object of a request's body.
    ///
    /// # Errors
    /// A body that is no JSON object.
    pub fn of_body(body: &[u8]) -> Result<Self, Fault> {
        let value = serde_json::from_slice(body)
            .map_err(|error| Fault::body(format!("the body is no JSON: {error}")))?;
        Self::of(value, String::new())
    }

    /// An object inside another one.
    ///
    /// # Errors
    /// A value that is no object.
    pub fn of(value: Value, place: String) -> Result<Self, Fault> {
        match value {
            Value::Object(mut map) => {
                map.retain(|_, value| !value.is_null());
                Ok(Self { place, map })
            }
            _ if place.is_empty() => Err(Fault::body("the body is no JSON object")),
            _ => Err(Fault::field(place, "is no object")),
        }
    }

    /// How messages name a field.
    pub fn path(&self, name: &str) -> String {
        match self.place.is_empty() {
            true => name.to_string(),
            false => format!("{}.{name}", self.place),
        }
    }

    /// Takes a field out.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Fault> {
        let Some(value) = self.map.remove(name) else {
            return Ok(None);
        };
        serde_json::from_value(value)
            .map(Some)
            .map_err(|error| Fault::field(self.path(name), error))
    }

    /// Takes an object out.
    ///
    /// # Errors
    /// A value that is no object.
    pub fn take_object(&mut self, name: &str) -> Result<Option<Self>, Fault> {
        let value = self.map.remove(name);
        let path = self.path(name);
        value.map(|value| Self::of(value, path)).transpose()
    }

    /// # Errors
    /// A field that nobody has taken.
    pub fn end(self) -> Result<(), Fault> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(Fault::field(self.path(name), "is not supported")),
        }
    }
}
