//! What reaches the console. Control characters of names, files and model output could move a terminal's cursor or rename its
//! window: tables and messages have none, and data (plans, answers) that goes to a file or a pipe stays as it is.

use anyhow::Context;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// Prints a table, a JSON object or the like, and a line break, to standard output.
///
/// # Errors
/// A standard output that is full or gone.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    let printed = writeln!(stdout, "{}", shown(text)).and_then(|()| stdout.flush());
    printed.context("standard output")
}

/// Writes data to standard output, at once.
///
/// # Errors
/// A standard output that is full or gone.
pub fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.is_terminal() {
        true => stdout.write_all(shown(text).as_bytes())?,
        false => stdout.write_all(text.as_bytes())?,
    }
    stdout.flush()
}

/// Prints text and a line break to standard error.
///
/// # Errors
/// A standard error that is full or gone.
pub fn note(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "{}", shown(text)).context("standard error")
}

/// Whether an error says that the reader of a pipe has gone away: no failure, but nothing is left to do.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Text without control characters other than line breaks and tabs.
fn shown(text: &str) -> Cow<'_, str> {
    let sent = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    match text.chars().all(sent) {
        true => Cow::Borrowed(text),
        false => {
            let cleared = text.chars().map(|c| if sent(c) { c } else { '\u{fffd}' });
            Cow::Owned(cleared.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_characters_are_shown() {
        let text = "a\u{1b}[2Jb\u{9b}c\u{7}\td\ne\r";
        assert_eq!(shown(text), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\td\ne\u{fffd}");
        assert_eq!(shown("a\tb\nc"), "a\tb\nc");
    }
}
