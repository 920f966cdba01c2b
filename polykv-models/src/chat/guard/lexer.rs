//! The tokens inside a tag.

use super::MAX_TAG_TOKENS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Name,
    /// With its quotes.
    Text,
    Number,
    Sign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
}

const LONG_SIGNS: [&str; 6] = ["//", "**", "==", "!=", ">=", "<="];
const SIGNS: &str = "+-*/%.,:~|=><()[]{}";

/// The tokens up to the end of the tag, and what follows them: that end with its sign for white space.
///
/// # Errors
/// A tag without an end; characters that begin no token; too many tokens.
pub fn tokens<'a>(source: &'a str, close: &str) -> Result<(Vec<Token<'a>>, &'a str), String> {
    let mut tokens = Vec::new();
    let mut open = 0_usize;
    let mut rest = source;
    loop {
        rest = rest.trim_start();
        let unsigned = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if open == 0 && (rest.starts_with(close) || unsigned.starts_with(close)) {
            return Ok((tokens, rest));
        }
        let Some(first) = rest.chars().next() else {
            return Err(format!("a tag without its end {close}"));
        };
        if tokens.len() == MAX_TAG_TOKENS {
            return Err(format!("a tag of more than {MAX_TAG_TOKENS} tokens"));
        }
        match first {
            '(' | '[' | '{' => open = open.saturating_add(1),
            ')' | ']' | '}' => open = open.checked_sub(1).ok_or(format!("unexpected {first}"))?,
            _ => {}
        }
        let (kind, after) = match first {
            '\'' | '"' => (Kind::Text, behind_text(rest, first)?),
            '0'..='9' => {
                let after_dot = tokens.last().is_some_and(|t: &Token<'_>| t.text == ".");
                (Kind::Number, behind_number(rest, after_dot))
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
                (Kind::Name, rest.trim_start_matches(part))
            }
            c if SIGNS.contains(c) || c == '!' => {
                let long = LONG_SIGNS.iter().find_map(|sign| rest.strip_prefix(sign));
                match (long, rest.strip_prefix(c)) {
                    (None, _) if c == '!' => return Err("unexpected !".into()),
                    (long, short) => (Kind::Sign, long.or(short).unwrap_or_default()),
                }
            }
            other => return Err(format!("unexpected {other:?}")),
        };
        let text = before(rest, after);
        tokens.push(Token { kind, text });
        rest = after;
    }
}

/// What stands before the last part of a text.
pub fn before<'a>(whole: &'a str, last: &str) -> &'a str {
    let length = whole.len().saturating_sub(last.len());
    whole.get(..length).unwrap_or(whole)
}

/// What follows the text in quotes at the start.
fn behind_text(text: &str, quote: char) -> Result<&str, String> {
    let mut chars = text.chars();
    chars.next();
    let mut escaped = false;
    while let Some(c) = chars.next() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Ok(chars.as_str()),
            _ => {}
        }
    }
    Err("a text without its closing quote".into())
}

/// What follows the number at the start.
fn behind_number(text: &str, after_dot: bool) -> &str {
    fn behind(text: &str, part: fn(char) -> bool) -> &str {
        text.trim_start_matches(|c| part(c) || c == '_')
    }
    let digits = |text| behind(text, |c| c.is_ascii_digit());
    let starts_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    if ["0x", "0X", "0o", "0O", "0b", "0B"]
        .iter()
        .any(|p| text.starts_with(p))
    {
        return behind(text, |c| c.is_ascii_alphanumeric());
    }
    let mut rest = digits(text);
    if after_dot {
        return rest;
    }
    if let Some(fraction) = rest.strip_prefix('.').filter(|f| starts_digit(f)) {
        rest = digits(fraction);
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if starts_digit(unsigned) {
            rest = digits(unsigned);
        }
    }
    rest
}

/// What a text in quotes stands for, as Python reads it.
///
/// # Errors
/// Escapes that are cut off, name no character or name it by its Unicode name.
pub fn unescape(quoted: &str) -> Result<String, String> {
    let mut chars = quoted.chars();
    chars.next();
    chars.next_back();
    let mut out = String::new();
    let mut high: Option<u32> = None;
    while let Some(c) = chars.next() {
        let code = match c {
            '\\' => escape(&mut chars, &mut out)?,
            c => Some(u32::from(c)),
        };
        let Some(code) = code else { continue };
        match (high.take(), code) {
            (None, 0xD800..=0xDBFF) => high = Some(code),
            (Some(first), 0xDC00..=0xDFFF) => {
                let units = [first, code].map(|unit| unit as u16);
                out.extend(char::decode_utf16(units).flatten());
            }
            (None, _) => match char::from_u32(code) {
                Some(c) => out.push(c),
                None => return Err(format!("no character has the number {code:#x}")),
            },
            (Some(first), _) => return Err(format!("half a character, {first:#x}")),
        }
    }
    match high {
        Some(first) => Err(format!("half a character, {first:#x}")),
        None => Ok(out),
    }
}

/// The number of the character behind a backslash; `None` when nothing is left to add.
fn escape(chars: &mut std::str::Chars<'_>, out: &mut String) -> Result<Option<u32>, String> {
    let c = chars.next().ok_or("a text ends in a backslash")?;
    let mut hex = |digits: usize| {
        let text: String = chars.by_ref().take(digits).collect();
        let found = u32::from_str_radix(&text, 16).ok();
        found
            .filter(|_| text.len() == digits)
            .map(Some)
            .ok_or(format!("\\{c} needs {digits} hexadecimal digits"))
    };
    Ok(Some(match c {
        '\n' => return Ok(None),
        'x' => return hex(2),
        'u' => return hex(4),
        'U' => return hex(8),
        'N' => return Err("\\N{…} in a text".into()),
        '0'..='7' => {
            let mut code = c.to_digit(8).unwrap_or_default();
            for _ in 0..2 {
                let Some(digit) = chars.as_str().chars().next().and_then(|c| c.to_digit(8)) else {
                    break;
                };
                chars.next();
                code = code.saturating_mul(8).saturating_add(digit);
            }
            code
        }
        'a' => 7,
        'b' => 8,
        't' => 9,
        'n' => 10,
        'v' => 11,
        'f' => 12,
        'r' => 13,
        '\\' | '\'' | '"' => u32::from(c),
        other => {
            out.push('\\');
            u32::from(other)
        }
    }))
}
