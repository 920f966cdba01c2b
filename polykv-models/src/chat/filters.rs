//! Filters, tests and functions that minijinja lacks or has in another way than Jinja2.

use super::fuel::{pay, refused};
use chrono::format::{Item, StrftimeItems};
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value};
use std::fmt::Write;

/// Texts are padded to this many characters at most.
const MAX_WIDTH: usize = 4096;
/// Bytes of a format for the date.
const MAX_FORMAT_BYTES: usize = 256;

pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_filter("center", center);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", wordcount);
    env.add_filter("indent", indent);
    env.add_filter("sum", sum);
    // Not of Jinja2, or of no use in a prompt.
    for name in ["pprint", "chain", "zip", "bool", "split", "lines"] {
        env.remove_filter(name);
    }
    env.remove_global("debug");
    env.add_test("iterable", |value: &Value| {
        let single = [
            ValueKind::None,
            ValueKind::Bool,
            ValueKind::Number,
            ValueKind::Plain,
        ];
        !single.contains(&value.kind())
    });
    env.add_test("sequence", |value: &Value| {
        let single = [
            ValueKind::None,
            ValueKind::Bool,
            ValueKind::Number,
            ValueKind::Plain,
        ];
        !single.contains(&value.kind())
    });
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    env.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
}

/// `sum(attribute=none, start=0)`, of numbers or, where it starts with a list, of lists.
fn sum(
    state: &State,
    values: &Value,
    attribute: Option<&str>,
    start: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let attribute = attribute.or(named.get("attribute")?);
    let start = start
        .or(named.get("start")?)
        .unwrap_or_else(|| Value::from(0));
    named.assert_all_used()?;
    let items = values.try_iter()?.checked().map(|item| {
        let item = item?;
        attribute.map_or(Ok(item.clone()), |name| item.get_attr(name))
    });
    if matches!(start.kind(), ValueKind::Seq | ValueKind::Iterable) {
        let mut all: Vec<Value> = start.try_iter()?.collect();
        for item in items {
            for inner in item?.try_iter()?.checked() {
                pay(state, 64)?;
                all.push(inner?);
            }
        }
        return Ok(Value::from(all));
    }
    let whole = |value: &Value| i128::try_from(value.clone()).ok();
    let mut total = start;
    for item in items {
        let item = item?;
        total = match (whole(&total), whole(&item)) {
            (Some(a), Some(b)) => match a.checked_add(b).and_then(|sum| i64::try_from(sum).ok()) {
                Some(sum) => Value::from(sum),
                None => return Err(refused("sum: too large".into())),
            },
            _ => Value::from(f64::try_from(total)? + f64::try_from(item)?),
        };
    }
    Ok(total)
}

fn center(text: String, width: Option<usize>) -> Result<String, Error> {
    let width = checked_width(width.unwrap_or(80))?;
    Ok(pad(&text, width, ' ', Side::Both))
}

/// Where a text stands in its width.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

pub(super) fn checked_width(width: usize) -> Result<usize, Error> {
    match width > MAX_WIDTH {
        true => Err(refused(format!("a width of more than {MAX_WIDTH}"))),
        false => Ok(width),
    }
}

/// A text with characters around it up to a width, as Python pads it.
pub(super) fn pad(text: &str, width: usize, with: char, side: Side) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let before = match side {
        Side::Left => 0,
        Side::Right => missing,
        Side::Both => (missing / 2).saturating_add(missing & width & 1),
    };
    let after = missing.saturating_sub(before);
    let run = |count: usize| with.to_string().repeat(count);
    format!("{}{text}{}", run(before), run(after))
}

/// `truncate(length=255, killwords=false, end='...', leeway=5)`.
fn truncate(text: String, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Args = (
        Option<usize>,
        Option<bool>,
        Option<String>,
        Option<usize>,
        Kwargs,
    );
    let args = args.into_values();
    let (length, kill, end, leeway, named): Args = from_args(&args)?;
    let length = length.or(named.get("length")?).unwrap_or(255);
    let kill = kill.or(named.get("killwords")?).unwrap_or_default();
    let end = end.or(named.get("end")?).unwrap_or_else(|| "...".into());
    let leeway = leeway.or(named.get("leeway")?).unwrap_or(5);
    named.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(refused(format!(
            "truncate: {length} characters cannot hold the end"
        )));
    };
    let mut short: String = text.chars().take(kept).collect();
    if !kill && let Some(at) = short.rfind(' ') {
        short.truncate(at);
    }
    Ok(short + &end)
}

/// `indent(width=4, first=false, blank=false)`.
fn indent(
    state: &State,
    text: String,
    width: Option<&Value>,
    first: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = width.or(named.get("width")?);
    let with = match width.map(|width| (width.as_str(), width)) {
        None => " ".repeat(4),
        Some((Some(text), _)) => text.to_owned(),
        Some((None, width)) => " ".repeat(checked_width(usize::try_from(width.clone())?)?),
    };
    let first = first.or(named.get("first")?).unwrap_or_default();
    let blank = named.get::<Option<bool>>("blank")?.unwrap_or_default();
    named.assert_all_used()?;
    let lines = text.matches('\n').count().saturating_add(1);
    pay(state, lines.saturating_mul(with.len()))?;
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if index > 0 {
            out.push('\n');
        }
        if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) {
            out.push_str(&with);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Runs of letters, digits and underscores.
fn wordcount(text: String) -> usize {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).count()
}

/// The date and time in a format of C's `strftime`, without a time zone, as Python's `datetime.now()` has none.
pub(super) fn strftime(now: chrono::NaiveDateTime, format: &str) -> Result<String, Error> {
    if format.len() > MAX_FORMAT_BYTES {
        let message = format!("strftime_now: a format of more than {MAX_FORMAT_BYTES} bytes");
        return Err(refused(message));
    }
    let mut plain = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('f') => plain.push_str(&now.format("%6f").to_string()),
            Some('z' | 'Z') => {}
            Some(other) => plain.extend(['%', other]),
            None => plain.push_str("%%"),
        }
    }
    let unknown = || refused(format!("strftime_now: {format:?} is no format"));
    let items: Vec<Item<'_>> = StrftimeItems::new(&plain).collect();
    if items.contains(&Item::Error) {
        return Err(unknown());
    }
    let mut text = String::new();
    write!(text, "{}", now.format_with_items(items.iter())).map_err(|_| unknown())?;
    Ok(text)
}
