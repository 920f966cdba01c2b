//! The `polykv` command as a library: [`main`] with a registry of policies and allocators, PolyKV's own or one that has
//! others beside them.

#![cfg_attr(
    not(test),
    deny(clippy::print_stderr, clippy::print_stdout),
    warn(clippy::expect_used, clippy::unwrap_used, missing_docs)
)]

mod args;
mod bench;
mod calibrate;
mod chat;
mod compression;
mod doctor;
#[doc(hidden)]
pub mod doors;
mod eval;
mod generate;
mod kept;
mod model;
mod output;
mod plan;
mod prompt;
#[cfg(feature = "hub")]
mod pull;
mod reference;
mod registry;
#[cfg(feature = "serve")]
mod serve;
mod session;

use args::{Cli, Command};
use clap::Parser;
use output::console;
use polykv::Registry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

/// A command, flag or name that does not exist.
const USAGE: u8 = 2;
/// Content that is refused: a file, a prompt, a plan, a limit of the model.
const REFUSED: u8 = 3;
const FAILED: u8 = 4;

/// What the last panic of any thread said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the command line of this process: reads the arguments, prints, and gives the exit code.
///
/// `registry` is what plan files and flags can name. Only the first call's counts.
pub fn main(registry: Registry) -> ExitCode {
    registry::set(registry);
    polykv::machine::keep_freed_memory();
    let cli = match Cli::try_parse().and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // A user gets one line whatever happens, so the text of panics waits for the end.
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut last) = PANIC.lock() {
            *last = Some(panic.to_string());
        }
    }));
    let result = catch_unwind(AssertUnwindSafe(|| run(&cli)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("an error in polykv itself")));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

/// Drops what the last panic said, after one that was foreseen.
fn forget_panic() {
    if let Ok(mut last) = PANIC.lock() {
        *last = None;
    }
}

/// Threads that the CPU's kernels may be given.
const MOST_THREADS: usize = 1024;

/// The pool of threads starts with the first kernel, and takes for ever to start too many.
fn check_threads() -> polykv::Result<()> {
    const NAME: &str = "RAYON_NUM_THREADS";
    let Some(found) = std::env::var(NAME).ok() else {
        return Ok(());
    };
    match found.trim().parse::<usize>() {
        Ok(threads) if threads > MOST_THREADS => {
            let allowed = format!("at most {MOST_THREADS}");
            Err(polykv::Error::invalid("environment", NAME, found, allowed))
        }
        _ => Ok(()),
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    check_threads()?;
    match &cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Eval(args) => eval::run(args),
        #[cfg(feature = "hub")]
        Command::Pull(args) => pull::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions { shell } => reference::completions(*shell),
        Command::Man(args) => reference::man(args),
        Command::Reference => reference::reference(),
    }
}

fn failure(error: &anyhow::Error) -> ExitCode {
    if console::is_closed_pipe(error) {
        return ExitCode::from(FAILED);
    }
    let refused = error.chain().any(|cause| {
        cause
            .downcast_ref::<polykv::Error>()
            .is_some_and(polykv::Error::is_refusal)
    });
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors spell out their cause themselves.
        if !text.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    if !refused && let Some(panic) = PANIC.lock().ok().and_then(|mut last| last.take()) {
        text.push_str(&format!(" ({panic})"));
    }
    say(&text);
    ExitCode::from(if refused { REFUSED } else { FAILED })
}

/// One line on standard error; who has closed that does not want to know.
fn say(text: &str) {
    let _ = console::note(&output::one_line(text));
}

/// Help as clap prints it; errors in one line like all others.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return match error.print() {
            Ok(()) => ExitCode::from(if error.use_stderr() { USAGE } else { 0 }),
            Err(_) => ExitCode::from(FAILED),
        };
    }
    let rendered = error.render().to_string();
    let facts: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .collect();
    say(&facts.join(" "));
    ExitCode::from(USAGE)
}
