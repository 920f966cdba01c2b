//! Expressions, in the grammar of Jinja2.

use super::lexer::{Kind, Token, unescape};
use super::{LIMIT, MODULO, Reader};

/// A part of an expression, written out again.
#[derive(Debug)]
pub struct Part {
    pub text: String,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A constant, which needs no weighing.
    Constant,
    /// Binds more tightly than any operator.
    Closed,
    Open,
}

impl Part {
    fn new(text: impl Into<String>, form: Form) -> Self {
        let text = text.into();
        Self { text, form }
    }

    /// The part with its value weighed.
    pub fn weighed(&self) -> String {
        match self.form {
            Form::Constant => self.text.clone(),
            Form::Closed => format!("{}|{LIMIT}", self.text),
            Form::Open => format!("({})|{LIMIT}", self.text),
        }
    }
}

/// What a tag for output holds.
pub fn printed(tokens: &[Token<'_>]) -> Result<String, String> {
    let mut reader = Reader::new(tokens);
    let part = reader.tuple(Reader::expression)?;
    reader.end()?;
    Ok(part.weighed())
}

impl<'a> Reader<'a, '_> {
    /// One value, or several with commas, which are a tuple.
    pub fn tuple(
        &mut self,
        value: impl Fn(&mut Self) -> Result<Part, String>,
    ) -> Result<Part, String> {
        let first = value(self)?;
        if !self.sees(",") {
            return Ok(first);
        }
        let mut text = format!("({},", first.text);
        while self.takes(",") {
            let ends =
                self.peek().is_none() || [")", "=", "if", "recursive"].iter().any(|t| self.sees(t));
            if ends {
                break;
            }
            text += &format!(" {},", value(self)?.text);
        }
        Ok(Part::new(text + ")", Form::Closed))
    }

    pub fn expression(&mut self) -> Result<Part, String> {
        let mut part = self.either()?;
        while self.takes("if") {
            let condition = self.either()?;
            let mut text = format!("{} if {}", part.text, condition.text);
            if self.takes("else") {
                text += &format!(" else {}", self.nested(Self::expression)?.text);
            }
            part = Part::new(text, Form::Open);
        }
        Ok(part)
    }

    /// An expression without a condition of its own.
    pub fn either(&mut self) -> Result<Part, String> {
        self.chain(&["or"], |reader| reader.chain(&["and"], Self::negation))
    }

    fn negation(&mut self) -> Result<Part, String> {
        if self.takes("not") {
            let part = self.nested(Self::negation)?;
            return Ok(Part::new(format!("not {}", part.text), Form::Open));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Part, String> {
        let first = self.sum()?;
        let mut text = String::new();
        loop {
            let sign = match self.peek() {
                Some(Token {
                    text: sign @ ("==" | "!=" | "<" | "<=" | ">" | ">=" | "in"),
                    kind,
                }) if kind != Kind::Text => sign,
                _ if self.sees("not") => "not in",
                _ => break,
            };
            self.step();
            if sign == "not in" {
                self.expect("in")?;
            }
            text += &format!(" {sign} {}", self.sum()?.weighed());
        }
        Ok(match text.is_empty() {
            true => first,
            false => Part::new(first.weighed() + &text, Form::Open),
        })
    }

    fn sum(&mut self) -> Result<Part, String> {
        self.chain(&["+", "-"], Self::concatenation)
    }

    fn concatenation(&mut self) -> Result<Part, String> {
        let first = self.product()?;
        if !self.sees("~") {
            return Ok(first);
        }
        let mut text = first.weighed();
        while self.takes("~") {
            text += &format!(" ~ {}", self.product()?.weighed());
        }
        Ok(Part::new(text, Form::Open))
    }

    fn product(&mut self) -> Result<Part, String> {
        let mut part = self.power()?;
        while let Some(sign) = self.one_of(&["*", "/", "//", "%"]) {
            let right = self.power()?;
            part = match sign {
                "%" => {
                    let text = format!("{}|{MODULO}({})", part.weighed(), right.weighed());
                    Part::new(text, Form::Closed)
                }
                _ => Part::new(format!("{} {sign} {}", part.text, right.text), Form::Open),
            };
        }
        Ok(part)
    }

    fn power(&mut self) -> Result<Part, String> {
        self.chain(&["**"], Self::signed)
    }

    /// Operands with one kind of operator between them, none of which walks its operands.
    fn chain(
        &mut self,
        signs: &[&'static str],
        operand: impl Fn(&mut Self) -> Result<Part, String>,
    ) -> Result<Part, String> {
        let mut part = operand(self)?;
        while let Some(sign) = self.one_of(signs) {
            part.text += &format!(" {sign} {}", operand(self)?.text);
            part.form = Form::Open;
        }
        Ok(part)
    }

    fn one_of(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        let sign = signs.iter().find(|sign| self.sees(sign))?;
        self.step();
        Some(*sign)
    }

    /// An operand with its sign, its filters and its tests.
    fn signed(&mut self) -> Result<Part, String> {
        let mut part = self.unfiltered()?;
        loop {
            if self.takes("|") {
                let filter = self.filter()?;
                part = Part::new(format!("{}|{filter}", part.weighed()), Form::Closed);
            } else if self.takes("is") {
                let negated = if self.takes("not") { "not " } else { "" };
                let test = self.dotted()?;
                let arguments = self.test_arguments()?;
                let text = format!("{} is {negated}{test}{arguments}", part.weighed());
                part = Part::new(text, Form::Open);
            } else {
                return Ok(part);
            }
        }
    }

    fn unfiltered(&mut self) -> Result<Part, String> {
        if self.takes("-") {
            let part = self.nested(Self::unfiltered)?;
            return Ok(Part::new(format!("-{}", part.text), Form::Open));
        }
        if self.takes("+") {
            return self.nested(Self::unfiltered);
        }
        let part = self.primary()?;
        self.postfix(part)
    }

    /// A filter with its arguments.
    pub fn filter(&mut self) -> Result<String, String> {
        let name = self.dotted()?;
        let arguments = match self.sees("(") {
            true => self.arguments()?,
            false => String::new(),
        };
        Ok(name + &arguments)
    }

    fn dotted(&mut self) -> Result<String, String> {
        let mut name = self.name()?.to_owned();
        while self.takes(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    fn test_arguments(&mut self) -> Result<String, String> {
        let Some(next) = self.peek() else {
            return Ok(String::new());
        };
        if self.sees("(") {
            return self.arguments();
        }
        let value = match next.kind {
            Kind::Name => {
                !["and", "or", "else", "is", "if", "in", "not", "recursive"].contains(&next.text)
            }
            Kind::Text | Kind::Number => true,
            Kind::Sign => ["[", "{"].contains(&next.text),
        };
        if !value {
            return Ok(String::new());
        }
        let part = self.primary()?;
        Ok(format!("({})", self.postfix(part)?.weighed()))
    }

    fn primary(&mut self) -> Result<Part, String> {
        let token = self.next("an expression")?;
        match (token.kind, token.text) {
            (Kind::Name, "true" | "True" | "false" | "False" | "none" | "None") => {
                Ok(Part::new(token.text, Form::Constant))
            }
            (Kind::Name, name) => Ok(Part::new(name, Form::Closed)),
            (Kind::Number, number) => Ok(Part::new(number, Form::Constant)),
            (Kind::Text, text) => {
                let mut whole = unescape(text)?;
                while let Some(next) = self.peek().filter(|next| next.kind == Kind::Text) {
                    self.step();
                    whole += &unescape(next.text)?;
                }
                Ok(Part::new(quoted(&whole), Form::Constant))
            }
            (_, "(") => self.nested(Self::parenthesis),
            (_, "[") => self.nested(|reader| {
                let text = reader.items("]", |reader| Ok(reader.expression()?.text))?;
                Ok(Part::new(format!("[{text}]"), Form::Closed))
            }),
            (_, "{") => self.nested(|reader| {
                let text = reader.items("}", |reader| {
                    let key = reader.expression()?.weighed();
                    reader.expect(":")?;
                    Ok(format!("{key}: {}", reader.expression()?.text))
                })?;
                Ok(Part::new(format!("{{{text}}}"), Form::Closed))
            }),
            _ => Err(format!("unexpected {:?}", token.text)),
        }
    }

    fn parenthesis(&mut self) -> Result<Part, String> {
        if self.takes(")") {
            return Ok(Part::new("()", Form::Closed));
        }
        let part = self.tuple(Self::expression)?;
        self.expect(")")?;
        Ok(match part.form {
            Form::Constant => part,
            _ => Part::new(format!("({})", part.text), Form::Closed),
        })
    }

    /// Items with commas between them, up to the closing bracket.
    fn items(
        &mut self,
        close: &str,
        item: impl Fn(&mut Self) -> Result<String, String>,
    ) -> Result<String, String> {
        let mut text = String::new();
        while !self.takes(close) {
            if !text.is_empty() {
                self.expect(",")?;
                if self.takes(close) {
                    break;
                }
                text += ", ";
            }
            text += &item(self)?;
        }
        Ok(text)
    }

    fn postfix(&mut self, mut part: Part) -> Result<Part, String> {
        loop {
            let base = match part.form {
                Form::Closed => part.text.clone(),
                _ => format!("({})", part.text),
            };
            let text = if self.takes(".") {
                let name = match self.peek() {
                    Some(Token {
                        kind: Kind::Number,
                        text,
                    }) => {
                        self.step();
                        text
                    }
                    _ => self.name()?,
                };
                match self.sees("(") {
                    // The loop is no data, and only its own methods can be called.
                    true if part.form == Form::Constant || base == "loop" => {
                        format!("{base}.{name}{}", self.arguments()?)
                    }
                    true => format!("({}).{name}{}", part.weighed(), self.arguments()?),
                    false => format!("{base}.{name}"),
                }
            } else if self.takes("[") {
                format!("{base}[{}]", self.nested(Self::subscript)?)
            } else if self.sees("(") {
                format!("{base}{}", self.arguments()?)
            } else {
                return Ok(part);
            };
            part = Part::new(text, Form::Closed);
        }
    }

    fn subscript(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut slice = false;
        loop {
            if self.takes("]") {
                return Ok(text);
            }
            if self.takes(":") {
                text.push(':');
                slice = true;
                continue;
            }
            let part = self.expression()?;
            text += &match slice || self.sees(":") {
                true => part.text,
                false => part.weighed(),
            };
            if !self.sees(":") && !self.sees("]") {
                return Err(self.unexpected("]"));
            }
        }
    }

    /// The arguments of a call, brackets included, each of them weighed.
    pub fn arguments(&mut self) -> Result<String, String> {
        self.expect("(")?;
        let text = self.nested(|reader| {
            reader.items(")", |reader| {
                let splat = reader.one_of(&["**", "*"]).unwrap_or_default();
                let keyword = match reader.rest {
                    [name, sign, rest @ ..] if name.kind == Kind::Name && sign.text == "=" => {
                        reader.rest = rest;
                        format!("{}=", name.text)
                    }
                    _ => String::new(),
                };
                Ok(format!(
                    "{splat}{keyword}{}",
                    reader.expression()?.weighed()
                ))
            })
        })?;
        Ok(format!("({text})"))
    }
}

/// A text in quotes, for minijinja.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
