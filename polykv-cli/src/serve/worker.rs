//! The thread that runs the engine, and how requests reach it.

use super::metrics::Metrics;
use super::sessions::Lease;
use polykv::models::LoadedModel;
use polykv::models::engine::{
    Engine, EngineEvent, EngineOptions, Held, Refusal, Request, RequestId,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// What the engine's thread is told.
enum Command {
    Submit {
        request: Box<Request>,
        lease: Option<Lease>,
        events: UnboundedSender<EngineEvent>,
        taken: oneshot::Sender<Result<RequestId, Refusal>>,
    },
    Forget(RequestId),
    SetAside(u64),
}

/// The way to the engine's thread, which ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Worker {
    commands: Sender<Command>,
    metrics: Arc<Mutex<Metrics>>,
    alive: Arc<AtomicBool>,
}

/// Tells of the end of the thread, whatever ends it.
struct Life(Arc<AtomicBool>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A request that the engine has taken. Dropping it cancels what is left of the request.
#[derive(Debug)]
pub struct Ticket {
    id: RequestId,
    commands: Sender<Command>,
    pub events: UnboundedReceiver<EngineEvent>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Without the thread there is nothing to cancel.
        let _ = self.commands.send(Command::Forget(self.id));
    }
}

impl Worker {
    /// The worker, and what its thread has to run.
    pub fn new(options: EngineOptions) -> (Self, impl FnOnce(&LoadedModel) + Send + use<>) {
        let (commands, received) = channel();
        let metrics = Arc::new(Mutex::new(Metrics::new(options.kv_memory)));
        let alive = Arc::new(AtomicBool::new(true));
        let (board, life) = (metrics.clone(), Life(alive.clone()));
        let run = move |model: &LoadedModel| {
            let _life = life;
            Loop::new(model, options, &board).run(&received);
        };
        let worker = Self {
            commands,
            metrics,
            alive,
        };
        (worker, run)
    }

    /// Whether the engine's thread is at work. It ends by an error in polykv itself only.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// What the engine refuses; `None` if its thread has ended.
    pub async fn submit(
        &self,
        request: Request,
        lease: Option<Lease>,
    ) -> Result<Ticket, Option<Refusal>> {
        let (events, received) = unbounded_channel();
        let (taken, answer) = oneshot::channel();
        let request = Box::new(request);
        let command = Command::Submit {
            request,
            lease,
            events,
            taken,
        };
        self.commands.send(command).map_err(|_| None)?;
        let id = answer.await.map_err(|_| None)?.map_err(Some)?;
        Ok(Ticket {
            id,
            commands: self.commands.clone(),
            events: received,
        })
    }

    /// Tells how many bytes are held beside the engine's own sequences.
    pub fn set_aside(&self, bytes: u64) {
        // Without the thread nobody needs to know.
        let _ = self.commands.send(Command::SetAside(bytes));
    }

    /// What has been measured so far.
    pub fn metrics(&self) -> Metrics {
        locked(&self.metrics).clone()
    }
}

fn locked(metrics: &Mutex<Metrics>) -> MutexGuard<'_, Metrics> {
    metrics.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sequence goes back to its session. Without one the session ends with its lease. Both come before the caller hears of it, who
/// may go on with the session at once.
fn give_back(lease: Option<Lease>, held: Option<Box<Held>>) {
    if let (Some(lease), Some(held)) = (lease, held) {
        lease.end(held);
    }
}

/// Who waits for the events of a request.
struct Listener {
    events: UnboundedSender<EngineEvent>,
    since: Instant,
    /// When each of its answers got its last token.
    latest: HashMap<usize, Instant>,
    /// Answers that have not ended.
    open: usize,
    /// The session that the sequence goes back to.
    lease: Option<Lease>,
}

struct Loop<'m> {
    engine: Engine<'m>,
    listeners: HashMap<RequestId, Listener>,
    metrics: &'m Mutex<Metrics>,
}

impl<'m> Loop<'m> {
    fn new(model: &'m LoadedModel, options: EngineOptions, metrics: &'m Mutex<Metrics>) -> Self {
        Self {
            engine: Engine::new(model, options),
            listeners: HashMap::new(),
            metrics,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.engine.is_idle() {
                locked(self.metrics).engine = self.engine.stats();
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.obey(command);
            }
            let events = self.engine.step();
            // Who has an answer may ask for the numbers at once.
            locked(self.metrics).engine = self.engine.stats();
            for (id, event) in events {
                self.pass(id, event);
            }
            locked(self.metrics).engine = self.engine.stats();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit {
                mut request,
                mut lease,
                events,
                taken,
            } => {
                request.after = lease.as_mut().and_then(Lease::take);
                let open = request.choices;
                let submitted = self.engine.submit(*request).map_err(|refused| {
                    locked(self.metrics).refused += 1;
                    give_back(lease.take(), refused.request.after);
                    refused.refusal
                });
                let id = submitted.as_ref().ok().copied();
                if let Some(id) = id {
                    locked(self.metrics).requests += 1;
                    let listener = Listener {
                        events,
                        since: Instant::now(),
                        latest: HashMap::new(),
                        open,
                        lease,
                    };
                    self.listeners.insert(id, listener);
                }
                // Whoever asked may be gone already.
                if let (Err(_), Some(id)) = (taken.send(submitted), id) {
                    self.forget(id);
                }
            }
            Command::Forget(id) => self.forget(id),
            Command::SetAside(bytes) => self.engine.set_aside(bytes),
        }
    }

    fn forget(&mut self, id: RequestId) {
        if let Some(listener) = self.listeners.remove(&id) {
            let held = self.engine.cancel(id);
            give_back(listener.lease, held);
            locked(self.metrics).cancelled += 1;
        }
    }

    fn pass(&mut self, id: RequestId, mut event: EngineEvent) {
        let Some(listener) = self.listeners.get_mut(&id) else {
            return;
        };
        let mut metrics = locked(self.metrics);
        let now = Instant::now();
        match &mut event {
            EngineEvent::Token(token) => match listener.latest.insert(token.choice, now) {
                Some(before) => metrics.gap((now - before).as_secs_f64()),
                None => metrics.first_token((now - listener.since).as_secs_f64()),
            },
            EngineEvent::Done(answer) => {
                listener.open = listener.open.saturating_sub(1);
                let cache = &answer.cache;
                let kept = cache.kept.iter().map(|kept| *kept as u64);
                let gone = kept.map(|kept| (cache.seen as u64).saturating_sub(kept));
                metrics.evicted += gone.sum::<u64>();
                if listener.open == 0 {
                    give_back(listener.lease.take(), answer.held.take());
                }
            }
            EngineEvent::Failed { held, .. } => {
                listener.open = 0;
                metrics.failed += 1;
                give_back(listener.lease.take(), held.take());
            }
            _ => {}
        }
        drop(metrics);
        let over = listener.open == 0;
        let gone = listener.events.send(event).is_err();
        if over {
            self.listeners.remove(&id);
        } else if gone {
            self.forget(id);
        }
    }
}
