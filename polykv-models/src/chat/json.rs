//! The `tojson` filter as transformers has it, which is Python's `json.dumps` with its defaults changed.

use super::fuel::refused;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, State, Value};

/// Spaces per level at most.
const MAX_INDENT: usize = 64;
/// Bytes for which one step is taken: walking a value costs more than copying a text.
const BYTES_PER_STEP: usize = 4;
/// Bytes between two looks at what is left of the steps.
const BYTES_PER_LOOK: usize = 4096;

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ascii: Option<&Value>,
    indent: Option<&Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => named.get("indent")?,
    };
    let indent = indent.map(indentation).transpose()?.flatten();
    let ascii = match ascii {
        Some(ascii) => Some(ascii),
        None => named.get("ensure_ascii")?,
    };
    let separators = named.get::<Option<&Value>>("separators")?;
    let separators = separators.filter(|given| !given.is_none());
    let (item, key) = match separators {
        Some(given) => (separator(given, 0)?, separator(given, 1)?),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort = named.get::<Option<bool>>("sort_keys")?.unwrap_or_default();
    named.assert_all_used()?;
    let mut writer = Writer {
        state,
        out: String::new(),
        looked: 0,
        ascii: ascii.is_some_and(Value::is_true),
        sort,
        indent,
        item,
        key,
    };
    writer.value(value, 0)?;
    writer.pay()?;
    Ok(Value::from(writer.out))
}

/// What one level is indented by; `None` for all on one line.
fn indentation(value: &Value) -> Result<Option<String>, Error> {
    if value.is_none() || value.is_undefined() {
        return Ok(None);
    }
    let text = match value.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let spaces = i64::try_from(value.clone())?.max(0);
            let spaces = usize::try_from(spaces).unwrap_or(usize::MAX);
            " ".repeat(spaces.min(MAX_INDENT + 1))
        }
    };
    match text.len() > MAX_INDENT {
        true => Err(refused(format!(
            "tojson: an indent of more than {MAX_INDENT}"
        ))),
        false => Ok(Some(text)),
    }
}

fn separator(pair: &Value, index: usize) -> Result<String, Error> {
    let text = pair.get_item_by_index(index)?;
    match text.as_str() {
        Some(text) if text.len() <= MAX_INDENT => Ok(text.to_owned()),
        _ => Err(refused("tojson: separators are two short texts".into())),
    }
}

struct Writer<'a, 's, 'e> {
    state: &'a State<'s, 'e>,
    out: String,
    /// Length of `out` when it was last paid for.
    looked: usize,
    ascii: bool,
    sort: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Writer<'_, '_, '_> {
    /// Bytes that were written since the last time.
    fn unpaid(&self) -> usize {
        self.out.len().saturating_sub(self.looked)
    }

    /// Takes the steps for them.
    fn pay(&mut self) -> Result<(), Error> {
        let steps = self.unpaid() / BYTES_PER_STEP;
        self.looked = self.out.len();
        self.state
            .consume_fuel(u64::try_from(steps).unwrap_or(u64::MAX))
    }

    fn value(&mut self, value: &Value, level: usize) -> Result<(), Error> {
        if self.unpaid() >= BYTES_PER_LOOK {
            self.pay()?;
        }
        let inner = level.saturating_add(1);
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut first = true;
                self.out.push('[');
                for item in value.try_iter()?.checked() {
                    self.separate(&mut first, inner);
                    self.value(&item?, inner)?;
                }
                self.close(first, level, ']');
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|map| map.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sort {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                let mut first = true;
                self.out.push('{');
                for (key, item) in pairs {
                    self.separate(&mut first, inner);
                    self.name(&key)?;
                    self.out.push_str(&self.key);
                    self.value(&item, inner)?;
                }
                self.close(first, level, '}');
            }
            other => return Err(refused(format!("tojson: {other} is no JSON"))),
        }
        Ok(())
    }

    fn name(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.text(key.as_str().unwrap_or_default()),
            ValueKind::Number => self.text(&number(key)),
            ValueKind::Bool => self.text(if key.is_true() { "true" } else { "false" }),
            ValueKind::None => self.text("null"),
            other => return Err(refused(format!("tojson: {other} is no key"))),
        }
        Ok(())
    }

    fn separate(&mut self, first: &mut bool, level: usize) {
        if !std::mem::take(first) {
            self.out.push_str(&self.item);
        }
        self.new_line(level);
    }

    fn close(&mut self, empty: bool, level: usize, bracket: char) {
        if !empty {
            self.new_line(level);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, level: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..level {
                self.out.push_str(indent);
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) || (self.ascii && c == '\u{7F}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python writes it.
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(number) => float(number),
        Err(_) => value.to_string(),
    }
}

fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        if let Some((digits, exponent)) = text.split_once('e') {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            return format!("{digits}e{sign}{exponent:0>2}");
        }
    }
    format!("{number:?}")
}
