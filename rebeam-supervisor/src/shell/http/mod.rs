//! Health and metrics over HTTP: read-only, and only where somebody has asked for a port.
//!
//! It runs on a thread of its own, with an event loop of its own, and asks the engine's one for what it shows: whoever
//! asks slowly, or often, blocks nothing else. What is asked for stands in [`Query`]; [`metrics`] writes the figures down.

mod guard;
mod metrics;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rebeam_protocol::outside::Health;
use serde_json::json;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::AbortHandle;

use self::metrics::Readings;
use crate::shell::descriptors;
use crate::shell::engine::{Loading, Node, NodeFigures};
use crate::shell::sampler::look;
use crate::view::members::health_json;

/// How long the supervisor's loop may take for a turn before it is not alive.
const ALIVE: Duration = Duration::from_secs(2);

/// Connections at once, where descriptors are many; for another one the oldest makes room.
const CONNECTIONS: usize = 256;

/// How long a client may take for its request, and for all of it.
const PATIENCE: Duration = Duration::from_secs(3);
const LIFETIME: Duration = Duration::from_secs(15);

/// How long the figures are good for: whoever asks more often gets the same.
const FRESH: Duration = Duration::from_secs(1);

/// Where to listen and to whom.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) listener: TcpListener,
    /// Names under which clients may ask, beside addresses and `localhost`.
    pub(crate) hosts: Vec<String>,
}

/// What this thread asks the supervisor.
pub(crate) enum Query {
    /// Are you there?
    Alive(oneshot::Sender<()>),
    Health(oneshot::Sender<Health>),
    /// None, as long as the application is being imported.
    Figures(oneshot::Sender<Option<NodeFigures>>),
}

/// Starts the thread. It goes with the process.
///
/// # Errors
/// The thread's event loop cannot be made.
pub(crate) fn start(node: Loading, options: Options) -> std::io::Result<SocketAddr> {
    let (queries, mut asked) = mpsc::channel(16);
    tokio::task::spawn_local(async move {
        while let Some(query) = asked.recv().await {
            // Whoever has asked may have gone.
            match query {
                Query::Alive(answer) => drop(answer.send(())),
                Query::Health(answer) => drop(answer.send(node.health())),
                Query::Figures(answer) => drop(answer.send(node.node().map(Node::figures))),
            }
        }
    });
    options.listener.set_nonblocking(true)?;
    let address = options.listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("http".into()).spawn(move || {
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(options.listener)?;
            serve(listener, router(queries, options.hosts)).await;
            Ok::<_, std::io::Error>(())
        });
        drop(served);
    })?;
    Ok(address)
}

async fn serve(listener: tokio::net::TcpListener, router: Router) {
    let most = descriptors::clients(CONNECTIONS);
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others may go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        // Whoever holds a connection and says nothing keeps nobody out.
        while connections.len() >= most
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            // Whatever went wrong there is the client's business.
            let _ = tokio::time::timeout(LIFETIME, http.serve_connection(TokioIo::new(stream), service)).await;
        });
        connections.push_back(connection.abort_handle());
    }
}

/// Figures as text, and since when.
type Written = (Instant, String);

#[derive(Clone)]
struct Shared {
    queries: mpsc::Sender<Query>,
    readings: Arc<Readings>,
    /// The figures as they were written last. Who asks meanwhile waits for them, and not beside them.
    page: Arc<Mutex<Option<Written>>>,
    /// One question at a time.
    looking: Arc<Mutex<()>>,
}

impl Shared {
    /// Asks, and waits as long as a living supervisor may take.
    async fn ask<T>(&self, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let answer = async {
            self.queries.send(query(sender)).await.ok()?;
            receiver.await.ok()
        };
        tokio::time::timeout(ALIVE, answer).await.ok().flatten()
    }
}

fn router(queries: mpsc::Sender<Query>, hosts: Vec<String>) -> Router {
    let shared = Shared { queries, readings: Arc::default(), page: Arc::default(), looking: Arc::default() };
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n"))
        .layer(middleware::from_fn_with_state(Arc::new(hosts), guard::check))
        .with_state(shared)
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn silent() -> Response {
    json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "the supervisor does not answer" }))
}

async fn livez(State(shared): State<Shared>) -> Response {
    match shared.ask(Query::Alive).await {
        Some(()) => json(StatusCode::OK, &json!({ "alive": true })),
        None => silent(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let _alone = shared.looking.lock().await;
    let Some(health) = shared.ask(Query::Health).await else { return silent() };
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &health_json(&health))
}

fn figures_page(text: &str) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text.to_owned()).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut page = shared.page.lock().await;
    let known = page.as_ref().filter(|(at, _)| at.elapsed() < FRESH);
    if let Some((_, text)) = known {
        return figures_page(text);
    }
    let Some(figures) = shared.ask(Query::Figures).await else { return silent() };
    let Some(figures) = figures else {
        return json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "the application is still being imported" }));
    };
    let readings = shared.readings.clone();
    match look(move || metrics::encode(figures, &readings)).await {
        Ok(text) => figures_page(&page.insert((Instant::now(), text)).1),
        Err(_) => json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": "the figures could not be written" })),
    }
}
