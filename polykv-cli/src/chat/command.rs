//! What a line of a chat says.

use polykv::Error;
use std::path::Path;

pub const HELP: &str = "\
/plan             the plan: which policy each layer runs
/kept [FILE.html] what the layers hold; with a file, a page that shows it in the text
/stats            tokens, memory and speed of the last answer
/save FILE        write the conversation to a session
/load FILE        go on from a session of this model and plan
/undo             take back the last turn
/clear            begin anew, after the same system message
/help             this list
/exit             end, as Ctrl-D does
A message that begins with / is written with //.";

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'a> {
    Nothing,
    Message(&'a str),
    Command(Command<'a>),
    /// A command that does not exist, or without what it needs.
    Unknown(&'a str),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Help,
    Plan,
    Stats,
    Kept(Option<&'a Path>),
    Save(&'a Path),
    Load(&'a Path),
    Undo,
    Clear,
    Exit,
}

impl<'a> Said<'a> {
    pub fn of(line: &'a str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        let Some(command) = line.strip_prefix('/') else {
            return Self::Message(line);
        };
        if command.starts_with('/') {
            return Self::Message(command);
        }
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        let command = match (name, rest.map(Path::new)) {
            ("help", None) => Command::Help,
            ("plan", None) => Command::Plan,
            ("stats", None) => Command::Stats,
            ("kept", path) => Command::Kept(path),
            ("save", Some(path)) => Command::Save(path),
            ("load", Some(path)) => Command::Load(path),
            ("undo", None) => Command::Undo,
            ("clear", None) => Command::Clear,
            ("exit", None) => Command::Exit,
            _ => return Self::Unknown(line),
        };
        Self::Command(command)
    }
}

pub fn unknown(line: &str) -> Error {
    Error::invalid("chat", "command", format!("'{line}'"), "those of /help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let said = [
            (" \t", Said::Nothing),
            ("Hello /plan ", Said::Message("Hello /plan")),
            ("//plan b", Said::Message("/plan b")),
            ("/plan", Said::Command(Command::Plan)),
            (" /kept ", Said::Command(Command::Kept(None))),
            (
                "/kept a b.html",
                Said::Command(Command::Kept(Some(Path::new("a b.html")))),
            ),
            ("/save  x ", Said::Command(Command::Save(Path::new("x")))),
            ("/save", Said::Unknown("/save")),
            ("/undo 2", Said::Unknown("/undo 2")),
            ("/", Said::Unknown("/")),
        ];
        for (line, wanted) in said {
            assert_eq!(Said::of(line), wanted, "{line}");
        }
    }

    #[test]
    fn the_help_names_every_command() {
        for line in HELP.lines().filter(|line| line.starts_with('/')) {
            let name = line.split_whitespace().next().unwrap();
            let with_file = format!("{name} file");
            let known = [name, &with_file].map(|line| Said::of(line) != Said::Unknown(line));
            assert!(known.contains(&true), "{line}");
        }
        assert_eq!(HELP.lines().count(), 10);
    }
}
