//! Statements, in the grammar of Jinja2 with the extensions that transformers adds.

use super::lexer::{Kind, Token};
use super::{LIMIT, MAX_BLOCKS, MAX_ELIFS, Reader, STORE};

/// The blocks that are open; for each the number of its `elif` branches.
#[derive(Debug, Default)]
pub struct Blocks(Vec<usize>);

impl Blocks {
    fn open(&mut self) -> Result<(), String> {
        if self.0.len() == MAX_BLOCKS {
            return Err(format!("blocks are nested more than {MAX_BLOCKS} deep"));
        }
        self.0.push(0);
        Ok(())
    }

    fn branch(&mut self) -> Result<(), String> {
        if self.0.iter().sum::<usize>() == MAX_ELIFS {
            return Err(format!("more than {MAX_ELIFS} elif branches"));
        }
        self.0.last_mut().map_or(Ok(()), |branches| {
            *branches = branches.saturating_add(1);
            Ok(())
        })
    }
}

/// A statement for minijinja.
pub fn rewrite(tokens: &[Token<'_>], blocks: &mut Blocks) -> Result<String, String> {
    let mut reader = Reader::new(tokens);
    let keyword = reader.name()?;
    let text = match keyword {
        "for" => reader.for_loop()?,
        "if" | "elif" => format!("{keyword} {}", reader.tuple(Reader::either)?.text),
        "set" => match reader.set()? {
            (text, false) => {
                reader.end()?;
                return Ok(text);
            }
            (text, true) => text,
        },
        "with" => reader.with()?,
        "macro" => format!("macro {}{}", reader.name()?, reader.parameters()?),
        "call" => {
            let parameters = match reader.sees("(") {
                true => reader.parameters()?,
                false => String::new(),
            };
            format!("call{parameters} {}", reader.expression()?.text)
        }
        "filter" => format!("filter {}", reader.filters()?),
        // The part that the model is trained to write; its names stay inside, as in a macro.
        "generation" => "with".into(),
        "endgeneration" => "endwith".into(),
        "autoescape" => format!("autoescape {}", reader.expression()?.text),
        "else" | "break" | "continue" | "endfor" | "endif" | "endset" | "endwith" | "endmacro"
        | "endcall" | "endfilter" | "endautoescape" => keyword.into(),
        "block" | "endblock" => {
            let mut text = keyword.to_owned();
            while reader.peek().is_some() {
                text = format!("{text} {}", reader.name()?);
            }
            text
        }
        "include" | "import" | "from" | "extends" => {
            return Err(format!("{keyword}: a chat template has no other templates"));
        }
        other => return Err(format!("unknown statement {other:?}")),
    };
    reader.end()?;
    match keyword {
        "elif" => blocks.branch()?,
        "else" | "break" | "continue" => {}
        end if end.starts_with("end") => {
            blocks.0.pop();
        }
        _ => blocks.open()?,
    }
    Ok(text)
}

impl Reader<'_, '_> {
    fn for_loop(&mut self) -> Result<String, String> {
        let (targets, _) = self.targets(false)?;
        self.expect("in")?;
        let mut text = format!("for {targets} in {}", self.tuple(Self::either)?.weighed());
        if self.takes("if") {
            text += &format!(" if {}", self.expression()?.text);
        }
        if self.takes("recursive") {
            text += " recursive";
        }
        Ok(text)
    }

    /// An assignment, and whether it is a block whose output is assigned.
    fn set(&mut self) -> Result<(String, bool), String> {
        let (targets, dotted) = self.targets(true)?;
        if self.takes("=") {
            let value = self.tuple(Self::expression)?;
            let value = match dotted {
                true => format!("({})|{STORE}", value.text),
                false => value.weighed(),
            };
            return Ok((format!("set {targets} = {value}"), false));
        }
        let filters = match self.takes("|") {
            true => format!(" | {}", self.filters()?),
            false => String::new(),
        };
        Ok((format!("set {targets}{filters}"), true))
    }

    fn with(&mut self) -> Result<String, String> {
        let mut text = "with".to_owned();
        while self.peek().is_some() {
            if text.len() > 4 {
                self.expect(",")?;
                text.push(',');
            }
            let name = self.name()?;
            self.expect("=")?;
            text += &format!(" {name} = {}", self.expression()?.weighed());
        }
        Ok(text)
    }

    fn filters(&mut self) -> Result<String, String> {
        let mut text = self.filter()?;
        while self.takes("|") {
            text += &format!("|{LIMIT}|{}", self.filter()?);
        }
        Ok(text)
    }

    /// The names that are assigned, and whether one of them belongs to a namespace.
    fn targets(&mut self, dots: bool) -> Result<(String, bool), String> {
        let mut text = String::new();
        let mut dotted = false;
        let mut open = 0_usize;
        while let Some(token) = self.peek() {
            match (token.kind, token.text) {
                (Kind::Name, "in") => break,
                (Kind::Name, _) => {}
                (_, ",") => {}
                (_, ".") if dots => dotted = true,
                (_, "(") => open = open.saturating_add(1),
                (_, ")") => match open.checked_sub(1) {
                    Some(left) => open = left,
                    None => break,
                },
                _ => break,
            }
            if open > 4 {
                return Err("names to assign to are nested more than 4 deep".into());
            }
            text += token.text;
            self.step();
        }
        match text.is_empty() {
            true => Err(self.unexpected("a name")),
            false => Ok((text, dotted)),
        }
    }

    fn parameters(&mut self) -> Result<String, String> {
        self.expect("(")?;
        let mut text = String::new();
        while !self.takes(")") {
            if !text.is_empty() {
                self.expect(",")?;
                if self.takes(")") {
                    break;
                }
                text += ", ";
            }
            text += self.name()?;
            if self.takes("=") {
                text += &format!("={}", self.expression()?.weighed());
            }
        }
        Ok(format!("({text})"))
    }
}
