//! `polykv serve`: OpenAI's interface over HTTP, for many callers at once.

#![warn(clippy::indexing_slicing)]

mod answer;
mod fault;
mod fields;
mod format;
mod messages;
mod metrics;
mod page;
mod plans;
mod request;
mod sessions;
mod state;
mod stream;
mod tools;
mod worker;

use crate::args::ServeArgs;
use crate::compression::Source;
use crate::model;
use crate::output::console;
use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, State as Shared};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use fault::Fault;
use plans::Plans;
use polykv::models::engine::EngineOptions;
use request::{Asked, Kind};
use serde_json::{Value, json};
use sessions::Sessions;
use state::{Ready, State};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use worker::Worker;

/// How long a request's body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);
/// Threads for the connections; the model has its own.
const THREADS: usize = 2;
/// The description of the interface.
const OPENAPI: &str = include_str!("serve/openapi.json");

/// # Errors
/// An address that cannot be listened on, and what the model or a plan refuses.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let source = Source::read(&args.compression)?;
    polykv::machine::let_threads_allocate_apart();
    let state = Arc::new(State {
        ready: OnceLock::new(),
        draining: AtomicBool::new(false),
        api_key: args.api_key.clone(),
        max_body: args.max_body,
    });
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("the server's threads")?;
    let address = (args.host, args.port);
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .with_context(|| format!("{}:{}", args.host, args.port))?;
    let address = listener.local_addr().context("the server's address")?;
    let grace = Duration::from_secs(args.grace);
    let serving = runtime.spawn(listen(listener, state.clone(), grace));
    console::note(&format!("listening on http://{address}, loading the model"))?;
    load(args, source, &state)?;
    console::note(&format!("ready: http://{address}"))?;
    runtime
        .block_on(serving)
        .context("the server")?
        .context("the server")
}

/// Loads the model and starts its engine.
fn load(args: &ServeArgs, source: Source, state: &State) -> anyhow::Result<()> {
    let (_, path, model) = model::open(&args.model)?;
    let model = Arc::new(model::with_template_arguments(model, &args.template_arg)?);
    let plans = Plans::read(source, args.plans.as_deref(), model.model.config())?;
    if !plans.others.is_empty() {
        console::note(&format!(
            "plans for other models: {}",
            plans.others.join(", ")
        ))?;
    }
    let (worker, run) = Worker::new(EngineOptions {
        kv_memory: args.kv_memory,
        queue: args.queue,
        rows: args.rows,
        chunk: args.chunk,
        ..EngineOptions::default()
    });
    let of_engine = model.clone();
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || run(&of_engine))
        .context("the engine's thread")?;
    let ready = Ready {
        name: args
            .model_name
            .clone()
            .unwrap_or_else(|| args.model.model.clone()),
        model,
        plans,
        worker,
        sessions: Sessions::new(path, args.sessions.clone(), args.most_sessions),
        max_new_tokens: args.max_new_tokens,
        since: answer::now(),
        guides: OnceLock::new(),
    };
    // There is one loading.
    let _ = state.ready.set(Arc::new(ready));
    Ok(())
}

/// Serves until a signal, and then until the answers at hand are done, but not for longer than `grace`.
async fn listen(listener: TcpListener, state: Arc<State>, grace: Duration) -> std::io::Result<()> {
    let (tell, mut told) = tokio::sync::watch::channel(());
    let draining = state.clone();
    let ended = async move {
        signal().await;
        draining.draining.store(true, Ordering::Relaxed);
        tell.send_replace(());
    };
    let serving = axum::serve(listener, router(state)).with_graceful_shutdown(ended);
    let out_of_time = async move {
        // An error is a teller that is gone, after which there is nothing to wait for either.
        let _ = told.changed().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = serving => served,
        () = out_of_time => Ok(()),
    }
}

/// Waits for Ctrl-C, or what asks a process to end.
async fn signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler the signal ends the process by itself.
    let _ = interrupt.await;
}

fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/plans", get(all_plans))
        .route("/v1/sessions", get(all_sessions))
        .route("/v1/sessions/{name}", get(session).delete(delete_session))
        .route("/v1/sessions/{name}/save", post(save_session))
        .route("/v1/sessions/{name}/load", post(load_session))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .method_not_allowed_fallback(async || Fault::method())
        .fallback(async || Fault::not_found("such path"))
        .with_state(state)
}

/// A request with the server's key, at a server that has its model.
struct Allowed(Arc<Ready>);

impl FromRequestParts<Arc<State>> for Allowed {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Fault> {
        authorize(state, &parts.headers)?;
        state.ready().cloned().map(Self)
    }
}

/// # Errors
/// Another key than the server's, or none.
fn authorize(state: &State, headers: &HeaderMap) -> Result<(), Fault> {
    let Some(key) = &state.api_key else {
        return Ok(());
    };
    let given = headers.get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    match given.is_some_and(|given| same(given.as_bytes(), key.as_bytes())) {
        true => Ok(()),
        false => Err(Fault::unauthorized()),
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differences == 0
}

async fn health(Shared(state): Shared<Arc<State>>) -> Response {
    match state.ready() {
        Ok(_) => Json(json!({"status": "ok"})).into_response(),
        Err(fault) => fault.into_response(),
    }
}

async fn metrics(Shared(state): Shared<Arc<State>>) -> Response {
    let Some(ready) = state.ready.get() else {
        return Fault::not_now("the model is being loaded").into_response();
    };
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, ready.worker.metrics().text(&ready.name)).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn models(Allowed(ready): Allowed) -> Result<Json<Value>, Fault> {
    let model = model_object(&ready);
    Ok(Json(json!({"object": "list", "data": [model]})))
}

async fn one_model(
    Allowed(ready): Allowed,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    match name == ready.name {
        true => Ok(Json(model_object(&ready))),
        false => Err(Fault::no_model(&name, &ready.name)),
    }
}

fn model_object(ready: &Ready) -> Value {
    json!({
        "id": ready.name,
        "object": "model",
        "created": ready.since,
        "owned_by": "polykv",
        "max_model_len": ready.model.model.config().max_positions,
    })
}

async fn all_plans(Allowed(ready): Allowed) -> Result<Json<Value>, Fault> {
    let plans: Vec<_> = ready.plans.all().map(|plan| plan.object()).collect();
    let default = &ready.plans.default.name;
    Ok(Json(
        json!({"object": "list", "default": default, "data": plans}),
    ))
}

async fn all_sessions(Allowed(ready): Allowed) -> Result<Json<Value>, Fault> {
    Ok(Json(sessions::all(&ready)))
}

async fn session(Allowed(ready): Allowed, Path(name): Path<String>) -> Result<Json<Value>, Fault> {
    sessions::show(&ready, &name).map(Json)
}

async fn delete_session(
    Allowed(ready): Allowed,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    sessions::delete(&ready, &name).map(Json)
}

async fn save_session(
    Allowed(ready): Allowed,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    blocking(move || sessions::save(&ready, &name))
        .await
        .map(Json)
}

async fn load_session(
    Allowed(ready): Allowed,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    blocking(move || sessions::load(&ready, &name))
        .await
        .map(Json)
}

/// Work that takes its time, beside the connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Fault::failed("an error in polykv itself"))?
}

async fn chat(
    allowed: Allowed,
    state: Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    complete(Kind::Chat, allowed, state, &headers, body).await
}

async fn completion(
    allowed: Allowed,
    state: Shared<Arc<State>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    complete(Kind::Completion, allowed, state, &headers, body).await
}

async fn complete(
    kind: Kind,
    Allowed(ready): Allowed,
    Shared(state): Shared<Arc<State>>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let body = arrived(&state, headers, body).await?;
    let reading = ready.clone();
    let asked = blocking(move || request::read(kind, &body, &reading)).await?;
    let Asked {
        kind,
        request,
        plan,
        lease,
        stream,
        usage,
        tools,
    } = asked;
    let prompt = request.prompt.clone();
    let choices = request.choices;
    let ticket = ready.worker.submit(request, lease).await;
    let ticket = ticket.map_err(|refusal| match refusal {
        Some(refusal) => refusal.into(),
        None => Fault::ended(),
    })?;
    let told = stream::Told {
        frame: answer::Frame::new(kind, &ready.name),
        model: ready.model.clone(),
        plan,
        prompt,
        choices,
        tools,
    };
    match stream {
        true => Ok(told.streamed(ticket, usage)),
        false => told.whole(ticket).await,
    }
}

/// The whole body.
async fn arrived(state: &State, headers: &HeaderMap, body: Body) -> Result<Bytes, Fault> {
    let most = usize::try_from(state.max_body).unwrap_or(usize::MAX);
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > state.max_body) {
        return Err(Fault::too_large(state.max_body));
    }
    let read = tokio::time::timeout(ARRIVAL, axum::body::to_bytes(body, most));
    let read = read.await.map_err(|_| Fault::slow())?;
    read.map_err(|_| Fault::too_large(state.max_body))
}
