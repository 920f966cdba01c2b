//! Methods of Python's texts, lists and dicts, and its `%`.

use super::filters::{Side, checked_width, pad};
use super::fuel::{pay, refused};
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat;

/// Digits of a width or precision in a format.
const MAX_WIDTH_DIGITS: usize = 3;
/// What an item of a list takes, in bytes.
const ITEM_BYTES: usize = 48;

/// A method that minijinja itself does not know.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let result = match value.kind() {
        ValueKind::String => text_method(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, args)?,
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    match result {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `None` for methods that pycompat has.
fn text_method(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "partition" | "rpartition" => {
            let (mark,): (&str,) = from_args(args)?;
            if mark.is_empty() {
                return Err(refused(format!("{method}: an empty separator")));
            }
            let last = method == "rpartition";
            let cut = match last {
                true => text.rsplit_once(mark),
                false => text.split_once(mark),
            };
            let parts = match cut {
                Some((before, after)) => [before, mark, after],
                None if last => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "rsplit" => {
            let (mark, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX - 1);
            pay(state, ITEM_BYTES.saturating_mul(text.len().min(most)))?;
            rsplit(text, mark, most)?
        }
        "removeprefix" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(part).unwrap_or(text))
        }
        "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(part).unwrap_or(text))
        }
        "ljust" | "rjust" | "center" => {
            let (width, with): (usize, Option<&str>) = from_args(args)?;
            let with = with.unwrap_or(" ");
            let mut chars = with.chars();
            let (Some(with), None) = (chars.next(), chars.next()) else {
                return Err(refused(format!("{method}: the fill is one character")));
            };
            let side = match method {
                "ljust" => Side::Left,
                "rjust" => Side::Right,
                _ => Side::Both,
            };
            Value::from(pad(text, checked_width(width)?, with, side))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let width = checked_width(width)?;
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let sign = text.strip_suffix(digits).unwrap_or_default();
            let width = width.saturating_sub(sign.len());
            Value::from(format!("{sign}{}", pad(digits, width, '0', Side::Right)))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let cut = match method {
                "index" => text.split_once(part),
                _ => text.rsplit_once(part),
            };
            let missing = || refused(format!("{method}: substring not found"));
            let (before, _) = cut.ok_or_else(missing)?;
            Value::from(before.chars().count())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = text.chars().map(|c| match c.is_uppercase() {
                true => c.to_lowercase().to_string(),
                false => c.to_uppercase().to_string(),
            });
            Value::from(swapped.collect::<String>())
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(char::is_numeric))
        }
        "split" | "splitlines" => {
            let mark = args.first().and_then(Value::as_str);
            let cuts = match mark {
                Some(mark) if method == "split" => text.matches(mark).count(),
                _ => text.matches(char::is_whitespace).count(),
            };
            pay(state, ITEM_BYTES.saturating_mul(cuts))?;
            return Ok(None);
        }
        "format" => {
            check_format(state, text, '{', args)?;
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

fn rsplit(text: &str, mark: Option<&str>, most: usize) -> Result<Value, Error> {
    let mut parts: Vec<&str> = match mark {
        Some("") => return Err(refused("rsplit: an empty separator".into())),
        Some(mark) => text.rsplitn(most.saturating_add(1), mark).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                let cut = rest.rsplit_once(char::is_whitespace);
                let Some((before, last)) = cut.filter(|_| parts.len() < most) else {
                    parts.push(rest);
                    break;
                };
                parts.push(last);
                rest = before.trim_end();
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match method {
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let mut items = value.try_iter()?;
            match items.position(|item| item == *wanted) {
                Some(at) => Some(Value::from(at)),
                None => return Err(refused("index: the item is not in the list".into())),
            }
        }
        "copy" => Some(value.clone()),
        _ => None,
    })
}

/// `left % right`: what is left of a number, or a text with values put in.
pub(super) fn modulo(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        let args: Vec<Value> = match right.is_tuple() {
            true => right.try_iter()?.collect(),
            false => vec![right.clone()],
        };
        check_format(state, text, '%', &args)?;
        return format(FormatStyle::Printf, text, &args).map(Value::from);
    }
    let zero = || refused("% by zero".into());
    if let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone())) {
        if b == 0 {
            return Err(zero());
        }
        // The least number divided by -1 would overflow, and leaves nothing.
        let rest = a.checked_rem(b).unwrap_or_default();
        let rest = if rest != 0 && (rest < 0) != (b < 0) {
            rest.saturating_add(b)
        } else {
            rest
        };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    if !left.is_number() || !right.is_number() {
        let (left, right) = (left.kind(), right.kind());
        return Err(refused(format!("% of {left} and {right}")));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if b == 0.0 {
        return Err(zero());
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
        rest + b
    } else {
        rest
    }))
}

/// The `format` filter: `%` with the values in a row or by name.
pub(super) fn format_filter(
    state: &State,
    text: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let args = args.into_values();
    let right = match args.last() {
        Some(named) if named.is_kwargs() => {
            let pairs = named.as_object().and_then(|map| map.try_iter_pairs());
            Value::from_pairs(pairs.into_iter().flatten())
        }
        _ => Value::from(Tuple::from(args)),
    };
    match text.as_str() {
        Some(_) => modulo(state, text, &right),
        None => Err(refused("format: not a text".into())),
    }
}

/// Refuses widths and precisions that are long or come from elsewhere; takes the steps for what the values can make.
fn check_format(state: &State, text: &str, open: char, args: &[Value]) -> Result<(), Error> {
    let size = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string().len(), str::len)
    };
    let largest = args.iter().map(size).max().unwrap_or_default();
    let mut specs = text.split(open);
    specs.next();
    for spec in specs {
        let spec = match (open, spec.strip_prefix('(')) {
            ('%', Some(named)) => named.split_once(')').map_or("", |(_, spec)| spec),
            ('%', None) => spec,
            (_, _) => spec.split_once('}').map_or(spec, |(spec, _)| spec),
        };
        let other = |c: char| !"0123456789.+-# *".contains(c);
        let spec = match open {
            '%' => spec.split(other).next().unwrap_or_default(),
            _ => spec,
        };
        let mut runs = spec.split(|c: char| !c.is_ascii_digit());
        if spec.contains('*') && open == '%' || runs.any(|run| run.len() > MAX_WIDTH_DIGITS) {
            let message = "a format with a width of more than 999, or from a value";
            return Err(refused(message.into()));
        }
        let width = if spec.contains(|c: char| c.is_ascii_digit()) {
            999
        } else {
            0
        };
        pay(state, largest.saturating_add(width))?;
    }
    Ok(())
}
