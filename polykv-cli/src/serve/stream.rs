//! Answers as they go out: as a whole, or part by part as server-sent events.

use super::answer::{Delta, Frame, kept, usage};
use super::fault::Fault;
use super::plans::Named;
use super::request::random;
use super::worker::Ticket;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use polykv::models::LoadedModel;
use polykv::models::chat::{Call, CallReader, Said};
use polykv::models::engine::{Answer, EngineEvent, Token};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Parts of a stream that wait for a client to read.
const PARTS: usize = 64;

/// What the answers of a request are told with.
#[derive(Debug)]
pub struct Told {
    pub frame: Frame,
    pub model: Arc<LoadedModel>,
    pub plan: Arc<Named>,
    pub prompt: Vec<u32>,
    pub choices: usize,
    /// The names of the tools that an answer may call.
    pub tools: Option<Vec<String>>,
}

/// One choice as it comes.
#[derive(Debug)]
struct Choice {
    text: String,
    calls: Vec<Call>,
    /// Finds the calls of tools.
    reader: Option<CallReader>,
    /// Those that have not been told of yet.
    tokens: Vec<Token>,
    /// Whether a part of it has gone out.
    begun: bool,
}

impl Choice {
    /// What a piece of the answer says.
    fn read(&mut self, text: &str) -> Vec<Said> {
        match &mut self.reader {
            Some(reader) => reader.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Said::Text(text.to_string())],
        }
    }

    /// What the last piece says, and what was held back before.
    fn end(&mut self, text: &str) -> Vec<Said> {
        let mut said = self.read(text);
        said.extend(
            self.reader
                .as_mut()
                .map(CallReader::finish)
                .unwrap_or_default(),
        );
        said
    }

    /// Takes what was said, for an answer as a whole.
    fn take(&mut self, said: Vec<Said>) {
        for one in said {
            match one {
                Said::Text(text) => self.text.push_str(&text),
                Said::Call(call) => self.calls.push(identified(call)),
            }
        }
    }
}

fn identified(call: Call) -> Call {
    Call {
        id: Some(format!("call_{:016x}", random())),
        ..call
    }
}

impl Told {
    fn begin(&self) -> Vec<Choice> {
        let choice = |_| Choice {
            text: String::new(),
            calls: Vec::new(),
            reader: self.tools.clone().map(CallReader::new),
            tokens: Vec::new(),
            begun: false,
        };
        (0..self.choices).map(choice).collect()
    }

    /// All choices in one object.
    ///
    /// # Errors
    /// A request that failed.
    pub async fn whole(self, mut ticket: Ticket) -> Result<Response, Fault> {
        let mut choices = self.begin();
        let mut answers = Vec::new();
        let mut kept = None;
        while answers.len() < self.choices {
            match ticket.events.recv().await {
                Some(EngineEvent::Token(token)) => {
                    if let Some(choice) = choices.get_mut(token.choice) {
                        let said = choice.read(&token.text);
                        choice.take(said);
                        choice.tokens.push(token);
                    }
                }
                Some(EngineEvent::Prompt(prompted)) => kept = self.kept(prompted.kept),
                Some(EngineEvent::Done(answer)) => answers.push(*answer),
                Some(EngineEvent::Failed { error, .. }) => return Err(error.into()),
                Some(_) => {}
                None => return Err(Fault::ended()),
            }
        }
        answers.sort_by_key(|answer: &Answer| answer.choice);
        let told = answers.iter().zip(&mut choices).map(|(answer, choice)| {
            let said = choice.end(&answer.text);
            choice.take(said);
            let logprobs = self.frame.logprobs(&choice.tokens, &self.model, 0);
            let (text, calls) = (&choice.text, &choice.calls);
            self.frame
                .choice(answer.choice, text, calls, logprobs, answer.finish)
        });
        let mut whole = self.frame.whole(told.collect(), self.usage(&answers));
        if let (Some(kept), Some(whole)) = (kept, whole.as_object_mut()) {
            whole.insert("polykv".into(), kept);
        }
        Ok(Json(whole).into_response())
    }

    /// A response that streams; `with_usage` ends it with the usage. Generation ends when nobody reads any more.
    pub fn streamed(self, ticket: Ticket, with_usage: bool) -> Response {
        let (parts, sent) = channel(PARTS);
        tokio::spawn(async move {
            tokio::select! {
                () = self.stream(ticket, with_usage, &parts) => {}
                // Dropping the ticket cancels the request.
                () = parts.closed() => {}
            }
        });
        let parts = ReceiverStream::new(sent).map(Ok::<Bytes, Infallible>);
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::from_stream(parts)).into_response()
    }

    async fn stream(&self, mut ticket: Ticket, with_usage: bool, parts: &Sender<Bytes>) {
        let mut choices = self.begin();
        let mut answers = Vec::new();
        let mut fault = None;
        while answers.len() < self.choices && fault.is_none() {
            match ticket.events.recv().await {
                Some(EngineEvent::Token(token)) => {
                    let Some(choice) = choices.get_mut(token.choice) else {
                        continue;
                    };
                    let index = token.choice;
                    let mut said = choice.read(&token.text);
                    // Probabilities are told of as they come, also where no text is certain yet.
                    if said.is_empty() && token.probability.is_some() {
                        said.push(Said::Text(String::new()));
                    }
                    choice.tokens.push(token);
                    for one in said {
                        send(parts, &self.part(index, choice, one)).await;
                    }
                }
                Some(EngineEvent::Prompt(prompted)) => {
                    if let Some(kept) = self.kept(prompted.kept) {
                        send(parts, &self.frame.kept_part(kept)).await;
                    }
                }
                Some(EngineEvent::Done(answer)) => {
                    if let Some(choice) = choices.get_mut(answer.choice) {
                        let mut said = choice.end(&answer.text);
                        let last = said.pop().unwrap_or(Said::Text(String::new()));
                        for one in said {
                            send(parts, &self.part(answer.choice, choice, one)).await;
                        }
                        let part = self.part(answer.choice, choice, last);
                        let part = Frame::ended(part, answer.finish, choice.calls.len());
                        send(parts, &part).await;
                    }
                    answers.push(*answer);
                }
                Some(EngineEvent::Failed { error, .. }) => fault = Some(Fault::from(error)),
                Some(_) => {}
                None => fault = Some(Fault::ended()),
            }
        }
        match fault {
            Some(fault) => send(parts, &fault.object()).await,
            None if with_usage => {
                let usage = self.frame.usage_part(self.usage(&answers));
                send(parts, &usage).await;
            }
            None => {}
        }
        send_text(parts, "[DONE]").await;
    }

    fn part(&self, index: usize, choice: &mut Choice, said: Said) -> Value {
        let tokens = std::mem::take(&mut choice.tokens);
        let offset = choice.text.chars().count();
        let logprobs = self.frame.logprobs(&tokens, &self.model, offset);
        let first = !std::mem::replace(&mut choice.begun, true);
        let part = |delta| self.frame.part(index, &delta, logprobs, first);
        match said {
            Said::Text(text) => {
                choice.text.push_str(&text);
                part(Delta::Text(&text))
            }
            Said::Call(call) => {
                let call = identified(call);
                let part = part(Delta::Call(choice.calls.len(), &call));
                choice.calls.push(call);
                part
            }
        }
    }

    fn kept(&self, shares: Option<Vec<f32>>) -> Option<Value> {
        let shares = shares?;
        Some(kept(&self.prompt, &shares, &self.model))
    }

    fn usage(&self, answers: &[Answer]) -> Value {
        usage(self.prompt.len(), answers, &self.plan.name, &self.plan.hash)
    }
}

async fn send(parts: &Sender<Bytes>, part: &Value) {
    send_text(parts, &part.to_string()).await;
}

/// A client that is gone does not want to know.
async fn send_text(parts: &Sender<Bytes>, text: &str) {
    let _ = parts.send(format!("data: {text}\n\n").into()).await;
}
