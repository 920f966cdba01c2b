//! Sessions of `polykv generate` and `chat`: where a sequence goes on, and under which plan.

use crate::args::{CompressionArgs, GenerateArgs, SessionArgs};
use crate::compression::{Placed, Source};
use crate::output::{ResumedSession, Reuse, describe_codes, progress};
use crate::registry::registry;
use polykv::models::conversation::Conversation;
use polykv::models::{Generator, LoadedModel, ModelConfig, digest};
use polykv::{At, Error, Plan, Result, Session};
use std::path::Path;

/// A session that a generation goes on from.
pub struct Resumed {
    place: String,
    session: Session,
}

impl SessionArgs {
    /// Whether anything is read or written.
    pub fn is_given(&self) -> bool {
        self.session.is_some() || self.save_session.is_some()
    }
}

/// The session of the flags.
///
/// # Errors
/// A file that is no session, and flags that are about the start of a sequence.
pub fn read(args: &GenerateArgs) -> Result<Option<Resumed>> {
    let Some(path) = &args.session.session else {
        return Ok(None);
    };
    let protection = &args.protection;
    let refused = [
        ("--system", args.prompt.system.is_some()),
        ("--protect-prefix", protection.protect_prefix > 0),
    ];
    if let Some((flag, _)) = refused.into_iter().find(|(_, given)| *given) {
        let found = "given beside --session";
        let allowed = "without it: the session has the start of the sequence";
        return Err(Error::invalid("command line", flag, found, allowed));
    }
    Resumed::read(path).map(Some)
}

/// What identifies a model: its shape, the number format of its weights, and the content of its files.
///
/// # Errors
/// Files that cannot be read.
pub fn identity(path: &Path, model: &LoadedModel) -> Result<String> {
    let reading = progress::spinner("reading the model's files");
    let digest = digest(path)?;
    reading.finish_and_clear();
    let model = &model.model;
    let fingerprint = model.config().fingerprint();
    Ok(format!("{fingerprint} {} {digest}", model.storage()))
}

impl Resumed {
    /// # Errors
    /// A file that is no session.
    pub fn read(path: &Path) -> Result<Self> {
        let session = Session::read(path)?;
        let place = path.display().to_string();
        Ok(Self { place, session })
    }

    /// The session's plan, which the flags must not contradict.
    ///
    /// # Errors
    /// A plan that cannot be built, is for another model, or differs from the one of the flags.
    pub fn plan(
        &self,
        flags: &CompressionArgs,
        given: Source,
        config: &ModelConfig,
    ) -> Result<Placed> {
        let file = self.session.info().plan.clone();
        let plan = file.build(registry()).at(&self.place)?;
        file.check_model(config.layers.len(), &config.fingerprint())
            .at(&self.place)?;
        let flag = match (&flags.plan, &flags.policy) {
            (Some(_), _) => Some("--plan"),
            (None, Some(_)) => Some("--policy, with its budget"),
            (None, None) => flags.allow_full_extra.then_some("--allow-full-extra"),
        };
        if let Some(format) = flags.kv_dtype {
            let codes = format.codes();
            let same = plan.layers.iter().all(|layer| layer.kv == codes);
            if !same {
                let allowed = format!("entries {}, as the session's", describe_codes(&file));
                return Err(Error::invalid(
                    "command line",
                    "--kv-dtype",
                    format,
                    allowed,
                ));
            }
        }
        if let Some(every) = flags.every.filter(|&every| every != plan.every) {
            let allowed = format!("{}, as the session's", plan.every);
            return Err(Error::invalid("command line", "--every", every, allowed));
        }
        if let Some(least) = flags.at_least.filter(|&least| least != plan.at_least) {
            let allowed = format!("{}, as the session's", plan.at_least);
            return Err(Error::invalid("command line", "--at-least", least, allowed));
        }
        if let Some(flag) = flag {
            let given = given.plan(config)?;
            let [found, own] = [&given.plan, &plan].map(Plan::fingerprint);
            if found != own || flags.allow_full_extra && !plan.allow_full_extra {
                let found = format!("a plan ({}) other than the session's", given.file.hash());
                let allowed = format!("the session's plan ({}), or no flag", file.hash());
                return Err(Error::invalid("command line", flag, found, allowed));
            }
        }
        Ok(Placed {
            place: self.place.clone(),
            file,
            plan,
        })
    }

    /// The last token of the answer before, which has not been fed yet.
    pub fn pending(&self) -> Option<u32> {
        self.session.info().pending.first().copied()
    }

    /// A generator that goes on from the session.
    ///
    /// # Errors
    /// What [`Generator::resume`] refuses.
    pub fn resume(&self, model: LoadedModel, plan: Plan, identity: &str) -> Result<Generator> {
        Generator::resume(model, plan, &self.session, identity).at(&self.place)
    }

    /// Goes on from the session in a conversation.
    ///
    /// # Errors
    /// What [`Conversation::load`] refuses.
    pub fn load(&self, conversation: &mut Conversation, identity: &str) -> Result<()> {
        conversation.load(&self.session, identity).at(&self.place)
    }

    /// What it gives to the sequence.
    pub fn report(&self) -> ResumedSession {
        ResumedSession {
            tokens: self.session.seen(),
            reuse: match self.session.is_complete() {
                true => Reuse::Exact,
                false => Reuse::Compressed,
            },
        }
    }
}
