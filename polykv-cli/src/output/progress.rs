//! Bars on standard error, on a terminal only; elsewhere they are hidden.

#[cfg(feature = "hub")]
use super::console;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
#[cfg(feature = "hub")]
use polykv::models::hub::Step;
use std::io::IsTerminal;
#[cfg(feature = "hub")]
use std::sync::Arc;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(100);

fn bar(total: u64, template: &str) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Something that takes a while of unknown length.
pub fn spinner(message: &'static str) -> ProgressBar {
    let spinner = bar(0, "{spinner} {msg}").with_message(message);
    spinner.enable_steady_tick(TICK);
    spinner
}

/// The steps of fetching a model.
#[cfg(feature = "hub")]
#[derive(Default)]
pub struct Pull {
    spinner: Option<ProgressBar>,
    unpacking: Option<ProgressBar>,
    /// The file on its way.
    file: Option<(Arc<str>, ProgressBar)>,
}

#[cfg(feature = "hub")]
impl Pull {
    /// Shows where the pull is.
    pub fn step(&mut self, step: Step) {
        match step {
            // A standard error that is gone ends the command where something else is said.
            Step::Terms(terms) => drop(console::note(terms)),
            Step::Downloading => self.spinner = Some(spinner("downloading the model")),
            Step::File { name, done, total } => {
                self.clear_spinner();
                self.file(name, done, total);
            }
            Step::Unpacking { done, total } => {
                self.clear_spinner();
                self.unpacking
                    .get_or_insert_with(|| bar(total, "unpacking {bar:30} {bytes}/{total_bytes}"))
                    .set_position(done);
            }
            _ => {}
        }
    }

    fn file(&mut self, name: Arc<str>, done: u64, total: u64) {
        match &self.file {
            Some((known, bar)) if *known == name => bar.set_position(done),
            _ => {
                self.clear_file();
                let bar = bar(
                    total,
                    "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}",
                );
                let bar = bar.with_message(name.to_string());
                bar.set_position(done);
                // Of a file that is resumed, only what comes now counts for the speed.
                bar.reset_eta();
                self.file = Some((name, bar));
            }
        }
    }

    fn clear_file(&mut self) {
        if let Some((_, bar)) = self.file.take() {
            bar.finish_and_clear();
        }
    }

    fn clear_spinner(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(feature = "hub")]
impl Drop for Pull {
    fn drop(&mut self) {
        self.clear_spinner();
        self.clear_file();
        if let Some(bar) = &self.unpacking {
            bar.finish_and_clear();
        }
    }
}

/// Steps of a long piece of work, with the time that is left.
pub struct Steps {
    /// What is done, and what a step is.
    label: String,
    unit: &'static str,
    bar: Option<ProgressBar>,
}

impl Steps {
    pub fn new(label: impl Into<String>, unit: &'static str) -> Self {
        Self {
            label: label.into(),
            unit,
            bar: None,
        }
    }

    /// Shows the steps done.
    pub fn step(&mut self, done: usize, total: usize) {
        let (label, unit) = (&self.label, self.unit);
        self.bar
            .get_or_insert_with(|| {
                let bar = bar(
                    total as u64,
                    &format!("{label} {{bar:30}} {unit} {{pos}}/{{len}}, {{eta}} left"),
                );
                // Of work that is resumed, only what comes now counts for the time left.
                bar.set_position(done as u64);
                bar.reset_eta();
                bar
            })
            .set_position(done as u64);
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The samples of an evaluation, with the time that is left by their tokens, the speed and the scores so far.
pub struct Evaluation {
    bar: ProgressBar,
    done: usize,
    samples: usize,
}

impl Evaluation {
    /// What is still to be done: samples, and the tokens of their prompts.
    pub fn new(samples: usize, tokens: usize) -> Self {
        let template = "evaluating {bar:20} {prefix}, {eta} left, {per_sec}{msg}";
        let bar = bar(tokens as u64, template);
        let per_second = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A line that cannot be written is not shown.
            let _ = write!(out, "{:.0} prompt tok/s", state.per_sec());
        };
        let style = bar.style().with_key("per_sec", per_second);
        bar.set_style(style);
        bar.set_prefix(format!("0/{samples}"));
        bar.enable_steady_tick(TICK);
        Self {
            bar,
            done: 0,
            samples,
        }
    }

    /// Shows a finished sample.
    pub fn step(&mut self, tokens: usize, scores: &str) {
        self.done += 1;
        self.bar
            .set_prefix(format!("{}/{}", self.done, self.samples));
        self.bar.set_message(format!("; {scores}"));
        self.bar.inc(tokens as u64);
    }
}

impl Drop for Evaluation {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Layers of the prompt; gone before the first text is printed.
#[derive(Default)]
pub struct Prefill(Option<ProgressBar>);

impl Prefill {
    /// Shows the layers done.
    pub fn step(&mut self, done: usize, total: usize) {
        let bar = self
            .0
            .get_or_insert_with(|| bar(total as u64, "prompt {bar:30} layer {pos}/{len}"));
        bar.set_position(done as u64);
        if done == total {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Prefill {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
