//! What describes the command line.

use crate::cli_support::{path_str, polykv};
use std::path::Path;

/// `POLYKV_WRITE_DOCS=1` writes the page anew.
#[cfg(all(feature = "hub", feature = "serve"))]
#[test]
fn the_reference_is_that_of_the_program() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let wanted = polykv(&["reference"]);
    assert_eq!((wanted.code, wanted.stderr.as_str()), (0, ""));
    if std::env::var_os("POLYKV_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted.stdout).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    for (found, wanted) in page.lines().zip(wanted.stdout.lines()) {
        assert_eq!(found, wanted, "set POLYKV_WRITE_DOCS=1 once");
    }
    assert_eq!(page.lines().count(), wanted.stdout.lines().count());
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let help = polykv(&["--help"]).stdout;
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let commands: Vec<&str> = commands
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"generate"), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = polykv(&["completions", shell]);
        assert_eq!((script.code, script.stderr.as_str()), (0, ""), "{shell}");
        for command in &commands {
            assert!(script.stdout.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(polykv(&["completions", "sh"]).code, 2);
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let made = polykv(&["man", path_str(&pages)]);
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    for command in &commands {
        let page = std::fs::read_to_string(pages.join(format!("polykv-{command}.1")));
        assert!(page.unwrap().contains(".SH SYNOPSIS"), "{command}");
        let help = polykv(&[command, "--help"]).stdout;
        // The device's own command and this one need none.
        if !["doctor", "man"].contains(command) {
            assert!(help.contains("Examples:\n  polykv "), "{command}: {help}");
        }
    }
}
