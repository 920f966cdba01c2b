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

/// The tokens up to the end of the tag, and the byte position of that end, its sign for white space included.
///
/// # Errors
/// A tag without an end; characters that begin no token; too many tokens.
pub fn tokens<'a>(source: &'a str, close: &str) -> Result<(Vec<Token<'a>>, usize), String> {
    let mut tokens = Vec::new();
    let mut open = 0_usize;
    let mut rest = source;
    loop {
        rest = rest.trim_start();
        let unsigned = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if open == 0 && (rest.starts_with(close) || unsigned.starts_with(close)) {
            return Ok((tokens, source.len() - rest.len()));
        }
        let Some(first) = rest.chars().next() else {
            return Err(format!("a tag without its end {close}"));
        };
        if tokens.len() == MAX_TAG_TOKENS {
            return Err(format!("a tag of more than {MAX_TAG_TOKENS} tokens"));
        }
        match first {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.checked_sub(1).ok_or(format!("unexpected {first}"))?,
            _ => {}
        }
        let (kind, length) = match first {
            '\'' | '"' => (Kind::Text, text_length(rest, first)?),
            '0'..='9' => {
                let after_dot = tokens.last().is_some_and(|t: &Token<'_>| t.text == ".");
                (Kind::Number, number_length(rest, after_dot))
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                (Kind::Name, rest.find(other).unwrap_or(rest.len()))
            }
            c if SIGNS.contains(c) || c == '!' => {
                let long = LONG_SIGNS.iter().find(|sign| rest.starts_with(**sign));
                match (long, c) {
                    (Some(sign), _) => (Kind::Sign, sign.len()),
                    (None, '!') => return Err("unexpected !".into()),
                    (None, _) => (Kind::Sign, 1),
                }
            }
            other => return Err(format!("unexpected {other:?}")),
        };
        let (text, after) = rest.split_at(length);
        tokens.push(Token { kind, text });
        rest = after;
    }
}

fn text_length(rest: &str, quote: char) -> Result<usize, String> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a text without its closing quote".into())
}

fn number_length(rest: &str, after_dot: bool) -> usize {
    let run = |text: &str, part: fn(char) -> bool| {
        text.find(|c| !part(c) && c != '_').unwrap_or(text.len())
    };
    let digits = |text: &str| run(text, |c| c.is_ascii_digit());
    if ["0x", "0X", "0o", "0O", "0b", "0B"]
        .iter()
        .any(|p| rest.starts_with(p))
    {
        return run(rest, |c| c.is_ascii_alphanumeric());
    }
    let mut length = digits(rest);
    if after_dot {
        return length;
    }
    let starts_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    if let Some(fraction) = rest[length..].strip_prefix('.').filter(|f| starts_digit(f)) {
        length += 1 + digits(fraction);
    }
    if let Some(exponent) = rest[length..].strip_prefix(['e', 'E']) {
        let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if starts_digit(unsigned) {
            length += 1 + (exponent.len() - unsigned.len()) + digits(unsigned);
        }
    }
    length
}

/// What a text in quotes stands for, as Python reads it.
///
/// # Errors
/// Escapes that are cut off, name no character or name it by its Unicode name.
pub fn unescape(quoted: &str) -> Result<String, String> {
    let mut chars = quoted[1..quoted.len() - 1].chars();
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
                let whole = 0x10000 + ((first - 0xD800) << 10) + (code - 0xDC00);
                out.extend(char::from_u32(whole));
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
            let mut code = u32::from(c) - u32::from('0');
            for _ in 0..2 {
                let Some(digit) = chars.as_str().chars().next().and_then(|c| c.to_digit(8)) else {
                    break;
                };
                chars.next();
                code = 8 * code + digit;
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
