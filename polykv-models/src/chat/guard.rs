//! Checks a template's syntax within bounds and rewrites it, before minijinja sees it.
//!
//! Two things in a template can end the process instead of failing: syntax that is nested or chained so deeply that a
//! parser recurses off its stack, and values that grow, nest or contain themselves until printing, comparing or dropping
//! them does. The first is refused here by counts. For the second, the template is written out again with the filter
//! [`LIMIT`] behind everything that is stored, passed on, printed, compared or worked on, so that each value is weighed
//! before anything walks it, and with [`STORE`] behind what goes into a namespace, so that none comes to hold itself.
//!
//! On the way, tags that Jinja2 has and minijinja has not are replaced by their equals.

mod expression;
mod lexer;
mod statement;

use lexer::{Kind, Token};
use statement::Blocks;

/// The filter that weighs a value.
pub(super) const LIMIT: &str = "__limit";
/// The filter that weighs a value which a namespace is to hold.
pub(super) const STORE: &str = "__store";
/// The filter for `%`, which formats texts as well.
pub(super) const MODULO: &str = "__modulo";

/// Brackets, signs, `not` and `else` within one another in an expression.
pub(super) const MAX_NESTING: usize = 32;
/// Blocks within one another.
pub(super) const MAX_BLOCKS: usize = 64;
/// `elif` branches of all blocks that are open at one place.
pub(super) const MAX_ELIFS: usize = 512;
/// Names, numbers, texts and signs of one tag.
pub(super) const MAX_TAG_TOKENS: usize = 4096;

/// The template for minijinja.
///
/// # Errors
/// What is not Jinja, or beyond the limits above.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(2 * source.len());
    let mut blocks = Blocks::default();
    let mut rest = source.as_str();
    while let Some((at, kind)) = next_tag(rest) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let taken = match kind {
            '#' => comment(tag, &mut out),
            '%' => match raw(tag) {
                Some((inner, length)) => {
                    let (start, text) = tag[..length].split_at(inner);
                    out.push_str(start);
                    // Of the two, only minijinja takes the line's end behind this tag away.
                    if text.starts_with('\n') && !start.ends_with("-%}") {
                        out.push('\n');
                    }
                    out.push_str(text);
                    Ok(length)
                }
                None => lexed(tag, "%}", &mut out, |tokens| {
                    statement::rewrite(tokens, &mut blocks)
                }),
            },
            _ => lexed(tag, "}}", &mut out, expression::printed),
        };
        let at_line = |e| {
            let before = &source[..source.len() - tag.len()];
            format!("{e} (line {})", 1 + before.matches('\n').count())
        };
        rest = &tag[taken.map_err(at_line)?..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Byte position of the next tag and the second character of its mark.
fn next_tag(text: &str) -> Option<(usize, char)> {
    let marks = text.match_indices('{');
    marks
        .filter_map(|(at, _)| Some((at, text[at + 1..].chars().next()?)))
        .find(|(_, kind)| matches!(kind, '{' | '%' | '#'))
}

/// Writes the tag at the start of `tag` out again; gives its length.
fn lexed(
    tag: &str,
    close: &str,
    out: &mut String,
    rewrite: impl FnOnce(&[Token<'_>]) -> Result<String, String>,
) -> Result<usize, String> {
    let (open, inner) = tag.split_at(2);
    let start = control(inner);
    let (tokens, end) = lexer::tokens(&inner[start.len()..], close)?;
    let text = rewrite(&tokens)?;
    let last = &inner[start.len() + end..];
    let stop = control(last);
    for part in [open, start, " ", &text, " ", stop, close] {
        out.push_str(part);
    }
    Ok(tag.len() - last.len() + stop.len() + close.len())
}

/// The sign that strips or keeps white space around a tag.
fn control(text: &str) -> &str {
    let signed = text.starts_with(['-', '+']);
    &text[..usize::from(signed)]
}

fn comment(tag: &str, out: &mut String) -> Result<usize, String> {
    let start = control(&tag[2..]);
    let body = &tag[2 + start.len()..];
    let end = body.find("#}").ok_or("a comment without an end")?;
    let stop = match body[..end].chars().last() {
        Some('-') => "-",
        Some('+') => "+",
        _ => "",
    };
    for part in ["{#", start, " ", stop, "#}"] {
        out.push_str(part);
    }
    Ok(2 + start.len() + end + 2)
}

/// Lengths of the first tag and of the whole of the raw block at the start of `tag`, if there is one.
fn raw(tag: &str) -> Option<(usize, usize)> {
    let inner = basic_tag(tag, "raw")?;
    let mut at = inner;
    loop {
        at += tag[at..].find("{%")?;
        match basic_tag(&tag[at..], "endraw") {
            Some(length) => return Some((inner, at + length)),
            None => at += 2,
        }
    }
}

/// Length of a tag that holds nothing but `name`.
fn basic_tag(tag: &str, name: &str) -> Option<usize> {
    let white = |c: char| c.is_ascii_whitespace();
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let rest = inner.trim_start_matches(white).strip_prefix(name)?;
    let rest = rest.trim_start_matches(white);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    Some(tag.len() - rest.strip_prefix("%}")?.len())
}

/// Reads the tokens of one tag.
struct Reader<'a, 't> {
    tokens: &'t [Token<'a>],
    at: usize,
    depth: usize,
}

impl<'a, 't> Reader<'a, 't> {
    fn new(tokens: &'t [Token<'a>]) -> Self {
        let (at, depth) = (0, 0);
        Self { tokens, at, depth }
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn next(&mut self, wanted: &str) -> Result<Token<'a>, String> {
        let token = self.peek().ok_or(format!("expected {wanted}"))?;
        self.at += 1;
        Ok(token)
    }

    /// Whether a sign or keyword comes next.
    fn sees(&self, text: &str) -> bool {
        let is = |token: Token<'_>| token.kind != Kind::Text && token.text == text;
        self.peek().is_some_and(is)
    }

    fn takes(&mut self, text: &str) -> bool {
        let sees = self.sees(text);
        self.at += usize::from(sees);
        sees
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        match self.takes(text) {
            true => Ok(()),
            false => Err(self.unexpected(text)),
        }
    }

    fn name(&mut self) -> Result<&'a str, String> {
        match self.peek() {
            Some(token) if token.kind == Kind::Name => {
                self.at += 1;
                Ok(token.text)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn unexpected(&self, wanted: &str) -> String {
        match self.peek() {
            Some(token) => format!("unexpected {:?}, expected {wanted}", token.text),
            None => format!("expected {wanted}"),
        }
    }

    /// Refuses what is left over.
    fn end(&self) -> Result<(), String> {
        match self.peek() {
            Some(_) => Err(self.unexpected("the end of the tag")),
            None => Ok(()),
        }
    }

    /// One level deeper.
    fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(format!(
                "an expression is nested more than {MAX_NESTING} deep"
            ));
        }
        let read = read(self)?;
        self.depth -= 1;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
