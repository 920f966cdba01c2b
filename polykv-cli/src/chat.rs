//! `polykv chat`: a conversation over one cache.

mod command;
mod input;

use crate::args::ChatArgs;
use crate::compression::{Placed, Source};
use crate::kept::{self, Snapshot};
use crate::output::kept::Moment;
use crate::output::{self, ResumedSession, Run, bytes, console, progress, stats};
use crate::session::{self, Resumed};
use crate::{generate, model, plan};
use anyhow::Context;
use command::{Command, HELP, Said};
use input::{Input, Line};
use polykv::models::conversation::{Conversation, Options};
use polykv::models::generate::Event;
use polykv::models::{Finish, GenerateOptions, Generation, Generator};
use polykv::{DeviceSpec, PlanFile, Result};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Tokens of an answer, if no flag says how many.
const NEW_TOKENS: usize = 1024;

/// A conversation and what its commands need.
struct Chat<'a> {
    args: &'a ChatArgs,
    device: DeviceSpec,
    /// Where the model lies.
    path: PathBuf,
    /// What states the cache's plan.
    file: PlanFile,
    conversation: Conversation,
    options: GenerateOptions,
    /// See [`session::identity`]; known once a session was read or written.
    identity: Option<String>,
    session: Option<ResumedSession>,
    /// The last answer.
    last: Option<Generation>,
    /// Whether it was said that the model's context has ended.
    packed: bool,
}

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &ChatArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    let options = generate::options(&args.sampling, NEW_TOKENS);
    options.sampling.validate()?;
    let source = Source::read(&args.compression)?;
    let earlier = match &args.session {
        Some(path) if path.exists() => Some(Resumed::read(path)?),
        Some(path) => kept::check_path(path).map(|()| None)?,
        None => None,
    };
    let mut input = Input::open()?;
    let mut chat = Chat::begin(args, options, source, earlier)?;
    if input.is_terminal() {
        console::note("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the conversation")?;
    }
    let talked = chat.talk(&mut input);
    // What was said before an error is worth keeping as well.
    let saved = match &args.session {
        Some(path) if chat.last.is_some() => chat.save(path),
        _ => Ok(()),
    };
    talked.and(saved)
}

impl<'a> Chat<'a> {
    fn begin(
        args: &'a ChatArgs,
        mut options: GenerateOptions,
        source: Source,
        earlier: Option<Resumed>,
    ) -> anyhow::Result<Self> {
        let (device, path, model) = model::open(&args.model)?;
        let model = model::with_template_arguments(model, &args.template_arg)?;
        let config = model.model.config();
        let Placed { file, plan, .. } = match &earlier {
            Some(session) => session.plan(&args.compression, source, config)?,
            None => source.plan(config)?,
        };
        let identity = match &earlier {
            Some(_) => Some(session::identity(&path, &model)?),
            None => None,
        };
        let mut generator = Generator::new(model, plan)?;
        match generator.check_packs() {
            Ok(()) => options.packed = true,
            Err(error) if options.packed => return Err(error.into()),
            // The conversation ends with the model's context then.
            Err(_) => {}
        }
        let system = Options {
            system: args.system.clone().filter(|_| earlier.is_none()),
            evict_system: args.evict_system,
        };
        let mut conversation = Conversation::new(generator, system)?;
        if let (Some(session), Some(identity)) = (&earlier, &identity) {
            session.load(&mut conversation, identity)?;
            let seen = conversation.generator().tokens().len();
            console::note(&format!("goes on after {seen} tokens"))?;
            if args.system.is_some() {
                console::note("the session has its own start: --system is not used")?;
            }
        }
        Ok(Self {
            args,
            device,
            path,
            file,
            conversation,
            options,
            identity,
            session: earlier.as_ref().map(Resumed::report),
            last: None,
            packed: false,
        })
    }

    fn talk(&mut self, input: &mut Input) -> anyhow::Result<()> {
        loop {
            let line = match input.next()? {
                Line::Text(line) => line,
                Line::Interrupted => continue,
                Line::End => return Ok(()),
            };
            let done = match Said::of(&line) {
                Said::Nothing => Ok(()),
                Said::Command(Command::Exit) => return Ok(()),
                Said::Command(command) => self.obey(command),
                Said::Unknown(name) => Err(command::unknown(name).into()),
                Said::Message(text) => self.answer(text),
            };
            match done {
                // Somebody who types can go on; a script cannot know.
                Err(error) if input.is_terminal() && !console::is_closed_pipe(&error) => {
                    console::note(&format!("error: {error:#}"))?;
                }
                done => done?,
            }
        }
    }

    fn answer(&mut self, text: &str) -> anyhow::Result<()> {
        input::forget_interrupt();
        let mut prefill = progress::Prefill::default();
        let mut written = Ok(());
        let mut packed = false;
        let turn = self.conversation.say(text, &self.options, &mut |event| {
            match event {
                Event::Prefill { done, total } => prefill.step(done, total),
                Event::Packed => packed = true,
                Event::Text(piece) => written = console::write(piece),
                _ => {}
            }
            match written.is_ok() && !input::interrupted() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        drop(prefill);
        let turn = turn?;
        written.context("standard output")?;
        console::print("")?;
        let generation = turn.generation;
        if turn.again {
            console::note(
                "the chat template changed what was said before: all of it was run again",
            )?;
        }
        if packed && !self.packed {
            self.packed = true;
            console::note(
                "the end of the model's context was met: what is kept moved to consecutive positions",
            )?;
        }
        let full = generation.finish == Finish::Length
            && generation.tokens.len() < self.options.max_new_tokens;
        if full {
            console::note(
                "the model's context is full: /clear or /undo; a plan with a budget goes on",
            )?;
        }
        self.last = Some(generation);
        match self.args.stats {
            true => self.stats(),
            false => Ok(()),
        }
    }

    fn obey(&mut self, command: Command<'_>) -> anyhow::Result<()> {
        match command {
            Command::Help => console::note(HELP),
            Command::Plan => console::note(&plan::as_table(&self.file)),
            Command::Stats => self.stats(),
            Command::Kept(path) => self.kept(path),
            Command::Save(path) => {
                kept::check_path(path)?;
                self.save(path)
            }
            Command::Load(path) => self.load(path),
            Command::Undo => console::note(match self.conversation.undo() {
                true => "the last turn is taken back",
                false => "there is no turn to take back; only the last one can be",
            }),
            Command::Clear => {
                self.conversation.clear();
                self.last = None;
                self.packed = false;
                self.session = None;
                console::note("the conversation begins anew")
            }
            Command::Exit => Ok(()),
        }
    }

    /// The last answer and where it ran.
    fn run_of<'b>(&'b self, generation: &'b Generation) -> Run<'b> {
        let generator = self.conversation.generator();
        Run {
            model: &self.args.model.model,
            device: self.device.to_string(),
            dtype: generator.model().model.storage().name(),
            plan: &self.file,
            generation,
            cache: generator.cache(),
            session: self.session,
            saved: None,
        }
    }

    fn stats(&self) -> anyhow::Result<()> {
        match &self.last {
            Some(generation) => console::note(&stats::block(&self.run_of(generation), false)),
            None => console::note("nothing was answered yet"),
        }
    }

    /// What the layers hold, or a page that shows it in the text.
    fn kept(&self, path: Option<&Path>) -> anyhow::Result<()> {
        let Some(generation) = &self.last else {
            return console::note("nothing was answered yet");
        };
        let generator = self.conversation.generator();
        let (cache, seen) = (generator.cache(), generator.tokens().len());
        let Some(path) = path else {
            let held: Vec<f64> = cache.layers().iter().map(|l| l.entries_mean()).collect();
            let full: usize = cache.layers().iter().map(|l| l.full_bytes()).sum();
            return console::note(&format!(
                "entries of {seen} tokens by layer: {}\n{} of {}",
                stats::by_layer(&held),
                bytes(cache.kv_bytes()),
                bytes(full)
            ));
        };
        kept::check_path(path)?;
        let counts = Snapshot::of(cache).read()?;
        let tokens = kept::tokens(&generator.model().tokenizer, generator.tokens(), &counts)?;
        let (run, moment) = (self.run_of(generation), Moment::after_an_answer(seen));
        let page = output::kept::page(&run, &moment, &tokens, self.conversation.protected())?;
        output::write_whole(path, page)?;
        console::note(&format!("written to {}", path.display()))
    }

    fn save(&mut self, path: &Path) -> anyhow::Result<()> {
        let identity = self.identity()?;
        let generator = self.conversation.generator_mut();
        let saved = generator.save(path, &self.file, &identity)?;
        console::note(&format!("{} saved to {}", bytes(saved), path.display()))
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let session = Resumed::read(path)?;
        let identity = self.identity()?;
        session.load(&mut self.conversation, &identity)?;
        self.session = Some(session.report());
        self.last = None;
        let seen = self.conversation.generator().tokens().len();
        console::note(&format!("goes on after {seen} tokens"))
    }

    /// Reads the model's files once.
    fn identity(&mut self) -> Result<String> {
        if let Some(identity) = &self.identity {
            return Ok(identity.clone());
        }
        let identity = session::identity(&self.path, self.conversation.generator().model())?;
        Ok(self.identity.insert(identity).clone())
    }
}
