//! A conversation whose turns append to one cache: what was said before is not run again, whether it was kept or evicted.

use crate::chat::Message;
use crate::generate::{Finish, GenerateOptions, Generation, Generator, Held, OnEvent};
use crate::tokenizer::Specials;
use polykv_core::{Error, Result, Session, Spans};

/// A conversation with a model under one plan.
#[derive(Debug)]
pub struct Conversation {
    generator: Generator,
    options: Options,
    /// What was said, the system message first. Of a session only what came after it is known.
    messages: Vec<Message>,
    /// Whether a session stands before the messages.
    resumed: bool,
    /// Positions that no policy may evict.
    protected: Spans,
    /// Where the last turn began.
    before: Option<Before>,
}

/// How a conversation begins.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What the model is told before the first message.
    pub system: Option<String>,
    /// Whether policies may evict the system message. Its tokens are charged to the budget if they may not.
    pub evict_system: bool,
}

#[derive(Debug)]
struct Before {
    mark: Held,
    messages: Vec<Message>,
    resumed: bool,
}

/// An answer.
#[derive(Debug)]
#[non_exhaustive]
pub struct Turn {
    /// The answer with what it took.
    pub generation: Generation,
    /// Whether the whole conversation was run again, because the chat template changed what was said before.
    pub again: bool,
}

impl Conversation {
    /// A conversation over an empty generator, or one that goes on after what the generator was given: that is then taken for
    /// turns which ended with an answer.
    ///
    /// # Errors
    /// A system message for a model without a chat template, or for a sequence that has begun.
    pub fn new(generator: Generator, options: Options) -> Result<Self> {
        let resumed = !generator.tokens().is_empty();
        if options.system.is_some() {
            let reason = match (&generator.model().chat, resumed) {
                (Some(_), false) => None,
                (Some(_), true) => Some("the sequence has begun"),
                (None, _) => Some("the model has no chat template to put it into"),
            };
            if let Some(reason) = reason {
                return Err(Error::unsupported("a system message", reason));
            }
        }
        let mut conversation = Self {
            generator,
            options,
            messages: Vec::new(),
            resumed,
            protected: Spans::default(),
            before: None,
        };
        if !resumed {
            conversation.begin();
        }
        Ok(conversation)
    }

    /// The generator, which has what was said so far in its cache.
    pub fn generator(&self) -> &Generator {
        &self.generator
    }

    /// What was said, the system message first. Of a session only what came after it is known.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The positions of the system message that no policy may evict; of a session they are not known.
    pub fn protected(&self) -> &Spans {
        &self.protected
    }

    /// Runs a message of the user and generates the answer. The last token of the answer before is run with it.
    ///
    /// After an error, and after an answer of which no token came, the conversation is as it was before the call.
    ///
    /// # Errors
    /// What the chat template and [`Generator::generate`] refuse.
    pub fn say(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Turn> {
        let before = Before {
            mark: self.generator.mark(),
            messages: self.messages.clone(),
            resumed: self.resumed,
        };
        self.messages.push(Message::new("user", text));
        let turn = self.turn(text, options, on_event);
        match &turn {
            Ok(Turn { generation, .. })
                if !generation.tokens.is_empty() || generation.finish == Finish::Stop =>
            {
                let answer = Message::new("assistant", &*generation.text);
                self.messages.push(answer);
                self.before = Some(before);
            }
            _ => self.restore(before),
        }
        turn
    }

    fn turn(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_event: &mut OnEvent<'_>,
    ) -> Result<Turn> {
        let model = self.generator.model();
        let tokenizer = &model.tokenizer;
        let started = !self.generator.tokens().is_empty();
        let mut again = false;
        let ids = match &model.chat {
            None if started => tokenizer.encode(text, Specials::AsText)?,
            None => [
                tokenizer.start(),
                &tokenizer.encode(text, Specials::AsText)?,
            ]
            .concat(),
            Some(chat) if started && (self.resumed || chat.continues(&self.messages)?) => {
                chat.next_turn(tokenizer, text, self.generator.pending())?
            }
            Some(chat) => {
                again = started;
                chat.encode(tokenizer, &self.messages, true)?
            }
        };
        if again {
            self.generator.clear();
        }
        if again || !started {
            self.protected = Spans::prefix(self.system_tokens()?);
            self.generator.protect(self.protected.clone());
        }
        let generation = self.generator.generate(&ids, options, on_event)?;
        Ok(Turn { generation, again })
    }

    /// Tokens of the system message that no policy may evict.
    fn system_tokens(&self) -> Result<usize> {
        let model = self.generator.model();
        match &model.chat {
            Some(chat) if self.options.system.is_some() && !self.options.evict_system => {
                chat.leading_tokens(&model.tokenizer, &self.messages, 1)
            }
            _ => Ok(0),
        }
    }

    /// Takes back the last turn; whether there was one to take back. Only the last one can be.
    pub fn undo(&mut self) -> bool {
        match self.before.take() {
            Some(before) => {
                self.restore(before);
                true
            }
            None => false,
        }
    }

    /// Begins anew, after the same system message.
    pub fn clear(&mut self) {
        self.generator.clear();
        self.before = None;
        self.begin();
    }

    /// Goes on from a session, see [`Generator::load`]; the system message is the session's own.
    ///
    /// # Errors
    /// What [`Generator::load`] refuses; the conversation is then as it was.
    pub fn load(&mut self, session: &Session, identity: &str) -> Result<()> {
        self.generator.load(session, identity)?;
        self.messages.clear();
        self.protected = Spans::default();
        self.resumed = true;
        self.before = None;
        Ok(())
    }

    /// The generator, for saving what it holds.
    pub fn generator_mut(&mut self) -> &mut Generator {
        &mut self.generator
    }

    fn begin(&mut self) {
        self.resumed = false;
        let system = self.options.system.iter();
        self.messages = system.map(|text| Message::new("system", text)).collect();
    }

    fn restore(&mut self, before: Before) {
        self.generator.back_to(before.mark);
        self.messages = before.messages;
        self.resumed = before.resumed;
    }
}
