//! Typed access to a JSON object, with errors that name the field.

use polykv_core::{Error, Result};
use serde_json::{Map, Value};

/// A value from a file, cut so that a hostile one cannot fill the screen.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    format!("{cut:?}")
}

/// Typed access to a JSON object; `null` counts as missing.
pub(super) struct Fields<'a> {
    pub(super) place: &'a str,
    pub(super) prefix: &'a str,
    pub(super) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, allowed: &str) -> Error {
        let cut: String = found.to_string().chars().take(64).collect();
        Error::invalid(self.place, format!("{}{key}", self.prefix), cut, allowed)
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        Error::invalid(
            self.place,
            format!("{}{key}", self.prefix),
            "missing",
            "a number",
        )
    }

    fn typed<T>(
        &self,
        key: &str,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|v| read(v).ok_or_else(|| self.wrong(key, v, allowed)))
            .transpose()
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    pub(super) fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.list(key, "a list of numbers", Value::as_f64)
    }

    pub(super) fn required_numbers(&self, key: &str) -> Result<Vec<f64>> {
        self.numbers(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of whole numbers.
    pub(super) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.list(key, "a list of whole numbers", |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.list(key, "a list of texts", Value::as_str)
    }

    fn list<T>(
        &self,
        key: &str,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.typed(key, allowed, |v| v.as_array()?.iter().map(&read).collect())
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(key, "an object", Value::as_object)
    }

    pub(super) fn token(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", token_id)
    }

    pub(super) fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let read = |v: &Value| match v.as_array() {
            Some(list) => list.iter().map(token_id).collect(),
            None => token_id(v).map(|id| vec![id]),
        };
        let ids = self.typed(key, "a token id or a list of them", read)?;
        Ok(ids.unwrap_or_default())
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
