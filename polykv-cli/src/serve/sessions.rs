//! Sequences that callers come back to, by name.

use super::fault::Fault;
use super::plans::Named;
use super::state::Ready;
use crate::registry::registry;
use crate::session;
use polykv::models::engine::Held;
use polykv::{At, Session};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

const MOST_NAME_BYTES: usize = 64;
const ENDING: &str = "session";

/// The sessions of a server.
#[derive(Debug)]
pub struct Sessions {
    /// Where the model's files lie.
    pub model: PathBuf,
    /// Where sessions are saved; without it they cannot be.
    pub folder: Option<PathBuf>,
    /// The most sessions.
    pub most: usize,
    /// What identifies the model, once its files have been read.
    pub identity: OnceLock<String>,
    by_name: Mutex<BTreeMap<String, Entry>>,
}

/// A session between two requests, or of one that is running.
#[derive(Debug)]
struct Entry {
    plan: Arc<Named>,
    held: Option<Box<Held>>,
}

/// The right to a session while a request runs with it. Dropping it without [`Lease::end`] leaves the session as it was, or ends one
/// whose sequence is gone.
#[derive(Debug)]
pub struct Lease {
    ready: Arc<Ready>,
    name: String,
    plan: Arc<Named>,
    /// The sequence so far, until the request has it.
    held: Option<Box<Held>>,
    /// Whether the session has been given back. From then on it may be another request's.
    over: bool,
}

impl Lease {
    pub fn plan(&self) -> &Arc<Named> {
        &self.plan
    }

    /// The sequence so far; `None` for a session that begins.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_deref()
    }

    /// Takes the sequence out of the session, to go on with it.
    pub fn take(&mut self) -> Option<Box<Held>> {
        self.held.take()
    }

    /// Gives the session back with what it has from now on.
    pub fn end(mut self, held: Box<Held>) {
        self.put(held);
    }

    fn put(&mut self, held: Box<Held>) {
        self.over = true;
        let mut by_name = self.ready.sessions.locked();
        if let Some(entry) = by_name.get_mut(&self.name) {
            entry.held = Some(held);
        }
        tell(&self.ready, &by_name);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.put(held);
        }
        if !self.over {
            self.ready.sessions.locked().remove(&self.name);
        }
    }
}

/// Tells the engine how much memory the sessions hold.
fn tell(ready: &Ready, by_name: &BTreeMap<String, Entry>) {
    let held = by_name.values().filter_map(|entry| entry.held.as_ref());
    ready.worker.set_aside(held.map(|held| held.bytes()).sum());
}

impl Sessions {
    pub fn new(model: PathBuf, folder: Option<PathBuf>, most: usize) -> Self {
        Self {
            model,
            folder,
            most,
            identity: OnceLock::new(),
            by_name: Mutex::default(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The identity of the model, whose files are read for it once.
    fn identity(&self, ready: &Ready) -> Result<&str, Fault> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let identity = session::identity(&self.model, &ready.model)?;
        Ok(self.identity.get_or_init(|| identity))
    }

    /// Where a session is saved.
    fn path(&self, name: &str) -> Result<PathBuf, Fault> {
        let folder = self.folder.as_deref();
        let folder = folder.ok_or_else(|| {
            Fault::body("the server saves no sessions: it has no --sessions folder")
        })?;
        Ok(folder.join(name).with_extension(ENDING))
    }
}

/// # Errors
/// Anything but 1 to 64 letters, digits, `_` and `-`.
pub fn check_name(name: &str) -> Result<(), Fault> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match !name.is_empty() && name.len() <= MOST_NAME_BYTES && name.chars().all(good) {
        true => Ok(()),
        false => {
            let reason = format!("allowed: 1 to {MOST_NAME_BYTES} letters, digits, _ and -");
            Err(Fault::field("polykv.session", reason))
        }
    }
}

/// The right to a session, which begins under `plan` if there is none of this name. `plan_given` is whether the request asks for
/// that plan itself.
///
/// # Errors
/// A name that is none, a session that another request has, one with another plan, and one too many.
pub fn lease(
    ready: &Arc<Ready>,
    name: &str,
    plan: Arc<Named>,
    plan_given: bool,
    resume: bool,
) -> Result<Lease, Fault> {
    check_name(name)?;
    let sessions = &ready.sessions;
    let mut by_name = sessions.locked();
    let count = by_name.len();
    let (plan, held) = match by_name.get_mut(name) {
        Some(Entry { held: None, .. }) => return Err(Fault::busy(name)),
        Some(entry) => {
            if plan_given && entry.plan.hash != plan.hash {
                let reason = format!(
                    "the session has plan {} ({})",
                    entry.plan.name, entry.plan.hash
                );
                return Err(Fault::field("polykv", reason));
            }
            (entry.plan.clone(), entry.held.take())
        }
        None if resume => return Err(missing(name)),
        None if count >= sessions.most => {
            let reason = format!("there are {}, as many as may be; delete one", sessions.most);
            return Err(Fault::field("polykv.session", reason));
        }
        None => {
            let entry = Entry {
                plan: plan.clone(),
                held: None,
            };
            by_name.insert(name.to_string(), entry);
            (plan, None)
        }
    };
    tell(ready, &by_name);
    drop(by_name);
    Ok(Lease {
        ready: ready.clone(),
        name: name.to_string(),
        plan,
        held,
        over: false,
    })
}

/// What is told of a session.
///
/// # Errors
/// A name that no session has.
pub fn show(ready: &Ready, name: &str) -> Result<Value, Fault> {
    let by_name = ready.sessions.locked();
    let entry = by_name.get(name).ok_or_else(|| missing(name))?;
    Ok(object(name, entry))
}

/// What is told of all sessions.
pub fn all(ready: &Ready) -> Value {
    let by_name = ready.sessions.locked();
    let all: Vec<_> = by_name
        .iter()
        .map(|(name, entry)| object(name, entry))
        .collect();
    json!({"object": "list", "data": all})
}

fn object(name: &str, entry: &Entry) -> Value {
    let held = entry.held.as_ref();
    let kept = held.map(|held| {
        let layers = held
            .cache()
            .layers()
            .iter()
            .map(|layer| layer.entries_mean());
        layers.sum::<f64>() / held.cache().layers().len().max(1) as f64
    });
    json!({
        "id": name,
        "object": "session",
        "plan": entry.plan.name,
        "plan_hash": entry.plan.hash,
        "running": held.is_none(),
        "tokens": held.map(|held| held.tokens().len()),
        "kept": kept,
        "kv_bytes": held.map(|held| held.cache().kv_bytes()),
    })
}

fn missing(name: &str) -> Fault {
    Fault::not_found(format!("session '{name}'"))
}

/// # Errors
/// A name that no session has, and a session that a request runs with.
pub fn delete(ready: &Ready, name: &str) -> Result<Value, Fault> {
    let mut by_name = ready.sessions.locked();
    match by_name.get(name) {
        None => return Err(missing(name)),
        Some(Entry { held: None, .. }) => return Err(Fault::busy(name)),
        Some(_) => by_name.remove(name),
    };
    tell(ready, &by_name);
    Ok(json!({"id": name, "object": "session.deleted", "deleted": true}))
}

/// Writes a session into the server's folder, from which this server or another one can load it.
///
/// # Errors
/// A server without such a folder, a name that no session has, one that a request runs with, a file that cannot be written.
pub fn save(ready: &Arc<Ready>, name: &str) -> Result<Value, Fault> {
    check_name(name)?;
    let path = ready.sessions.path(name)?;
    let identity = ready.sessions.identity(ready)?.to_string();
    let entry = {
        let by_name = ready.sessions.locked();
        let entry = by_name.get(name).ok_or_else(|| missing(name))?;
        let held = entry.held.as_deref().ok_or_else(|| Fault::busy(name))?;
        (entry.plan.clone(), held.clone())
    };
    let (plan, mut held) = entry;
    let bytes = held.save(&path, &plan.file, &identity)?;
    Ok(json!({"id": name, "object": "session.saved", "bytes": bytes}))
}

/// Reads a session from the server's folder, in place of one of the same name that it has.
///
/// # Errors
/// A server without such a folder, no such file, a file that is refused, a session that a request runs with, one too many.
pub fn load(ready: &Arc<Ready>, name: &str) -> Result<Value, Fault> {
    check_name(name)?;
    let path = ready.sessions.path(name)?;
    if !path.exists() {
        return Err(Fault::not_found(format!("saved session '{name}'")));
    }
    let identity = ready.sessions.identity(ready)?.to_string();
    let (plan, held) = read(ready, &path, name, &identity)?;
    let mut by_name = ready.sessions.locked();
    match by_name.get(name) {
        Some(Entry { held: None, .. }) => return Err(Fault::busy(name)),
        None if by_name.len() >= ready.sessions.most => {
            let reason = format!(
                "sessions are {}, as many as may be; delete one",
                by_name.len()
            );
            return Err(Fault::body(reason));
        }
        _ => {}
    }
    let entry = Entry {
        plan: Arc::new(plan),
        held: Some(Box::new(held)),
    };
    let told = object(name, &entry);
    by_name.insert(name.to_string(), entry);
    tell(ready, &by_name);
    Ok(told)
}

fn read(ready: &Ready, path: &Path, name: &str, identity: &str) -> Result<(Named, Held), Fault> {
    let place = format!("session {name}");
    let session = Session::read(path).at(&place)?;
    let file = session.info().plan.clone();
    let config = ready.model.model.config();
    let plan = file.build(registry()).at(&place)?;
    file.check_model(config.layers.len(), &config.fingerprint())
        .at(&place)?;
    let held = Held::load(&ready.model, plan.clone(), &session, identity).at(&place)?;
    let named = Named {
        name: file.name.clone().unwrap_or_else(|| place.clone()),
        hash: file.hash(),
        file,
        plan,
    };
    Ok((named, held))
}
