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

use lexer::{Kind, Token, before};
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
    let mut out = String::with_capacity(source.len().saturating_mul(2));
    let mut blocks = Blocks::default();
    let mut rest = source.as_str();
    while let Some((text, tag, kind)) = next_tag(rest) {
        out.push_str(text);
        let after = match kind {
            '#' => comment(tag, &mut out),
            '%' => match raw(tag) {
                Some((start, text, after)) => {
                    out.push_str(start);
                    // Of the two, only minijinja takes the line's end behind this tag away.
                    if text.starts_with('\n') && !start.ends_with("-%}") {
                        out.push('\n');
                    }
                    out.push_str(text);
                    Ok(after)
                }
                None => lexed(tag, "%}", &mut out, |tokens| {
                    statement::rewrite(tokens, &mut blocks)
                }),
            },
            _ => lexed(tag, "}}", &mut out, expression::printed),
        };
        rest = after.map_err(|e| {
            let lines = before(&source, tag).matches('\n').count();
            format!("{e} (line {})", lines.saturating_add(1))
        })?;
    }
    out.push_str(rest);
    Ok(out)
}

/// What stands before the next tag, what begins with it, and the second character of its mark.
fn next_tag(text: &str) -> Option<(&str, &str, char)> {
    text.match_indices('{').find_map(|(at, _)| {
        let (before, tag) = text.split_at_checked(at)?;
        let kind = tag.chars().nth(1)?;
        matches!(kind, '{' | '%' | '#').then_some((before, tag, kind))
    })
}

/// The mark that opens a tag, the sign behind it for white space, and what follows.
fn opened(tag: &str) -> (&str, &str, &str) {
    let (open, inner) = tag.split_at_checked(2).unwrap_or((tag, ""));
    let (sign, inner) = control(inner);
    (open, sign, inner)
}

/// The sign that strips or keeps white space around a tag, and what follows it.
fn control(text: &str) -> (&str, &str) {
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    (before(text, rest), rest)
}

/// Writes the tag at the start of `tag` out again; gives what follows it.
fn lexed<'t>(
    tag: &'t str,
    close: &str,
    out: &mut String,
    rewrite: impl FnOnce(&[Token<'_>]) -> Result<String, String>,
) -> Result<&'t str, String> {
    let (open, start, inner) = opened(tag);
    let (tokens, last) = lexer::tokens(inner, close)?;
    let text = rewrite(&tokens)?;
    let (stop, last) = control(last);
    for part in [open, start, " ", &text, " ", stop, close] {
        out.push_str(part);
    }
    Ok(last.strip_prefix(close).unwrap_or(last))
}

fn comment<'t>(tag: &'t str, out: &mut String) -> Result<&'t str, String> {
    let (_, start, body) = opened(tag);
    let (body, after) = body.split_once("#}").ok_or("a comment without an end")?;
    let stop = match body.chars().last() {
        Some('-') => "-",
        Some('+') => "+",
        _ => "",
    };
    for part in ["{#", start, " ", stop, "#}"] {
        out.push_str(part);
    }
    Ok(after)
}

/// The first tag, the text with the last one, and what follows the raw block at the start of `tag`, if there is one.
fn raw(tag: &str) -> Option<(&str, &str, &str)> {
    let body = basic_tag(tag, "raw")?;
    let mut tags = body.match_indices("{%");
    let after = tags.find_map(|(at, _)| basic_tag(body.get(at..)?, "endraw"))?;
    Some((before(tag, body), before(body, after), after))
}

/// What follows a tag that holds nothing but `name`.
fn basic_tag<'t>(tag: &'t str, name: &str) -> Option<&'t str> {
    let white = |c: char| c.is_ascii_whitespace();
    let inner = tag.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let rest = inner.trim_start_matches(white).strip_prefix(name)?;
    let rest = rest.trim_start_matches(white);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.strip_prefix("%}")
}

/// Reads the tokens of one tag.
struct Reader<'a, 't> {
    rest: &'t [Token<'a>],
    depth: usize,
}

impl<'a, 't> Reader<'a, 't> {
    fn new(tokens: &'t [Token<'a>]) -> Self {
        Self {
            rest: tokens,
            depth: 0,
        }
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.rest.first().copied()
    }

    fn step(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    fn next(&mut self, wanted: &str) -> Result<Token<'a>, String> {
        let token = self.peek().ok_or(format!("expected {wanted}"))?;
        self.step();
        Ok(token)
    }

    /// Whether a sign or keyword comes next.
    fn sees(&self, text: &str) -> bool {
        let is = |token: Token<'_>| token.kind != Kind::Text && token.text == text;
        self.peek().is_some_and(is)
    }

    fn takes(&mut self, text: &str) -> bool {
        let sees = self.sees(text);
        if sees {
            self.step();
        }
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
                self.step();
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
        let outer = self.depth;
        self.depth = outer.saturating_add(1);
        if self.depth > MAX_NESTING {
            return Err(format!(
                "an expression is nested more than {MAX_NESTING} deep"
            ));
        }
        let read = read(self)?;
        self.depth = outer;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
