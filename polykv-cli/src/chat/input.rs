//! Where the lines of a chat come from: an editor with a history on a terminal, else standard input as it is.

use anyhow::Context;
use polykv::Error;
use polykv_core::files;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};

const MOST_BYTES: u64 = 64 << 20;

/// Whether Ctrl-C was pressed since the answer began.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

pub fn forget_interrupt() {
    INTERRUPTED.store(false, Ordering::Relaxed);
}

pub enum Input {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

pub enum Line {
    Text(String),
    /// Ctrl-C instead of a line.
    Interrupted,
    End,
}

impl Input {
    /// On a terminal Ctrl-C ends answers from here on, not the process.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub fn open() -> anyhow::Result<Self> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Self::Pipe);
        }
        ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
            .context("the handler of Ctrl-C")?;
        let editor = DefaultEditor::new().context("the terminal")?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line; one that ends with a backslash goes on in the line after it.
    ///
    /// # Errors
    /// A terminal or a pipe that fails; text that is not UTF-8 or too long.
    pub fn next(&mut self) -> anyhow::Result<Line> {
        let mut text = String::new();
        loop {
            let line = match self.line(text.is_empty())? {
                Line::Text(line) => line,
                Line::End if !text.is_empty() => return Ok(Line::Text(text)),
                other => return Ok(other),
            };
            match line.strip_suffix('\\') {
                Some(line) => {
                    text.push_str(line);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    break;
                }
            }
        }
        if let Self::Terminal(editor) = self
            && !text.trim().is_empty()
        {
            editor.add_history_entry(&text).context("the history")?;
        }
        Ok(Line::Text(text))
    }

    fn line(&mut self, first: bool) -> anyhow::Result<Line> {
        match self {
            Self::Terminal(editor) => match editor.readline(if first { "> " } else { "… " }) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("the terminal"),
            },
            Self::Pipe => piped(std::io::stdin().lock()),
        }
    }
}

fn piped(source: impl BufRead) -> anyhow::Result<Line> {
    const PLACE: &str = "standard input";
    let mut bytes = Vec::new();
    source
        .take(MOST_BYTES + 1)
        .read_until(b'\n', &mut bytes)
        .context(PLACE)?;
    if bytes.is_empty() {
        return Ok(Line::End);
    }
    if bytes.len() as u64 > MOST_BYTES {
        let found = format!("more than {MOST_BYTES} bytes");
        let allowed = format!("at most {MOST_BYTES} bytes");
        return Err(Error::invalid(PLACE, "a line", found, allowed).into());
    }
    while bytes
        .last()
        .is_some_and(|byte| matches!(byte, b'\r' | b'\n'))
    {
        bytes.pop();
    }
    Ok(Line::Text(files::text(PLACE, bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_pipe() {
        let mut source = &b"\xef\xbb\xbfone\r\n\ntwo"[..];
        let mut texts = Vec::new();
        while let Line::Text(text) = piped(&mut source).unwrap() {
            texts.push(text);
        }
        assert_eq!(texts, ["one", "", "two"]);
        let error = piped(&b"a\xffb\n"[..]).err().unwrap().to_string();
        assert!(error.contains("standard input"), "{error}");
    }
}
