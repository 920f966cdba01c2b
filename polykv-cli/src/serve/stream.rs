//! Answers as they go out: as a whole, or part by part as server-sent events.

use super::answer::{Frame, kept, usage};
use super::fault::Fault;
use super::plans::Named;
use super::worker::Ticket;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use polykv::models::LoadedModel;
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
}

/// One choice as it comes.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    /// Those that have not been told of yet.
    tokens: Vec<Token>,
    /// Whether a part of it has gone out.
    begun: bool,
}

impl Told {
    /// All choices in one object.
    ///
    /// # Errors
    /// A request that failed.
    pub async fn whole(self, mut ticket: Ticket) -> Result<Response, Fault> {
        let mut choices: Vec<Choice> = (0..self.choices).map(|_| Choice::default()).collect();
        let mut answers = Vec::new();
        let mut kept = None;
        while answers.len() < self.choices {
            match ticket.events.recv().await {
                Some(EngineEvent::Token(token)) => {
                    if let Some(choice) = choices.get_mut(token.choice) {
                        choice.text.push_str(&token.text);
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
        let told = answers.iter().zip(&choices).map(|(answer, choice)| {
            let text = [choice.text.as_str(), &answer.text].concat();
            let logprobs = self.frame.logprobs(&choice.tokens, &self.model, 0);
            self.frame
                .choice(answer.choice, &text, logprobs, answer.finish)
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
        let mut choices: Vec<Choice> = (0..self.choices).map(|_| Choice::default()).collect();
        let mut answers = Vec::new();
        let mut fault = None;
        while answers.len() < self.choices && fault.is_none() {
            match ticket.events.recv().await {
                Some(EngineEvent::Token(token)) => {
                    let Some(choice) = choices.get_mut(token.choice) else {
                        continue;
                    };
                    let (index, text) = (token.choice, token.text.clone());
                    let tells = token.probability.is_some();
                    choice.tokens.push(token);
                    if !text.is_empty() || tells {
                        let part = self.part(index, choice, &text, None);
                        send(parts, &part).await;
                    }
                }
                Some(EngineEvent::Prompt(prompted)) => {
                    if let Some(kept) = self.kept(prompted.kept) {
                        send(parts, &self.frame.kept_part(kept)).await;
                    }
                }
                Some(EngineEvent::Done(answer)) => {
                    if let Some(choice) = choices.get_mut(answer.choice) {
                        let finish = Some(answer.finish);
                        let part = self.part(answer.choice, choice, &answer.text, finish);
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

    fn part(
        &self,
        index: usize,
        choice: &mut Choice,
        text: &str,
        finish: Option<polykv::models::Finish>,
    ) -> Value {
        let tokens = std::mem::take(&mut choice.tokens);
        let offset = choice.text.chars().count();
        let logprobs = self.frame.logprobs(&tokens, &self.model, offset);
        choice.text.push_str(text);
        let first = !std::mem::replace(&mut choice.begun, true);
        self.frame.part(index, text, logprobs, first, finish)
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
