//! What reaches the console. Data to a file or a pipe stays as it is; on a terminal, control characters of names, files and
//! model output could move its cursor or rename its window, so they are shown instead of sent.

use anyhow::Context;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// Prints text and a line break to standard output.
///
/// # Errors
/// A standard output that is full or gone.
pub fn print(text: &str) -> anyhow::Result<()> {
    write(text)
        .and_then(|()| write("\n"))
        .context("standard output")
}

/// Writes text to standard output, at once.
///
/// # Errors
/// A standard output that is full or gone.
pub fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    let text = for_console(text, stdout.is_terminal());
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints text and a line break to standard error.
///
/// # Errors
/// A standard error that is full or gone.
pub fn note(text: &str) -> anyhow::Result<()> {
    let mut stderr = std::io::stderr();
    let text = for_console(text, stderr.is_terminal());
    writeln!(stderr, "{text}").context("standard error")
}

/// Whether an error says that the reader of a pipe has gone away: no failure, but nothing is left to do.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn for_console(text: &str, terminal: bool) -> Cow<'_, str> {
    let sent = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    match terminal && !text.chars().all(sent) {
        true => Cow::Owned(
            text.chars()
                .map(|c| if sent(c) { c } else { '\u{fffd}' })
                .collect(),
        ),
        false => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let text = "a\u{1b}[2Jb\u{9b}c\u{7}\td\ne\r";
        assert_eq!(
            for_console(text, true),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\td\ne\u{fffd}"
        );
        assert_eq!(for_console(text, false), text);
    }
}
