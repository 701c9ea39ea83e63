//! Connections, and how they end.
//!
//! Invariant: no client holds anything for ever. Headers and bodies have to arrive in time, answers have to be read in time,
//! and a client that goes away takes its request with it: hyper drops the handler or the body, which drops the generation.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use gemma4_model::output::MissingMarker;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;

use crate::http::router;
use crate::service::{Service, State};

/// Threads that move bytes. The engine needs the rest of the cores.
const IO_THREADS: usize = 2;
/// Threads that read requests: JSON, templates, tokens.
const WORK_THREADS: usize = 2;
/// How long the last bytes of answers may take to go out once nothing is in flight.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pause after a connection could not be taken, for instance since there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were cut off since they did not end within the grace.
    pub cut_off: usize,
}

impl Outcome {
    /// Whether every request was answered to its end.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.cut_off == 0
    }
}

/// A service that cannot run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The system gives no threads, or the socket is of no use.
    #[error("cannot serve on the socket")]
    Io(#[from] std::io::Error),
    /// The vocabulary lacks what a parser goes by.
    #[error("cannot tell tool calls and reasoning apart")]
    Markers(#[from] MissingMarker),
    /// A metric cannot be registered.
    #[error("cannot set the metrics up")]
    Metrics(#[from] prometheus::Error),
}

/// Serves until `shutdown` ends; then lets running requests finish within the grace. Blocks, on threads of its own.
///
/// # Errors
/// [`ServeError`] if it cannot begin.
pub fn serve(
    listener: std::net::TcpListener,
    service: Service,
    shutdown: impl Future<Output = ()>,
) -> Result<Outcome, ServeError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(IO_THREADS).max_blocking_threads(WORK_THREADS).thread_name("serve").enable_all();
    let runtime = builder.build()?;
    let state = State::new(service)?;
    let of_thread = Arc::clone(&state);
    // So that the first request with a grammar does not wait for it; whether it can be made, that request is told.
    std::thread::Builder::new().name("grammars".to_owned()).spawn(move || of_thread.grammars().is_ok())?;
    let outcome = runtime.block_on(run(listener, &state, shutdown));
    // Whatever still runs was given its time.
    runtime.shutdown_background();
    outcome
}

async fn run(
    listener: std::net::TcpListener,
    state: &Arc<State>,
    shutdown: impl Future<Output = ()>,
) -> Result<Outcome, ServeError> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let server = Server::new(state);
    tokio::select! {
        () = server.accept(&listener) => {}
        () = shutdown => {}
    }
    tracing::info!(in_flight = state.in_flight(), grace_seconds = state.options.grace.as_secs(), "shutting down");
    state.drain();
    // New connections are still taken, to be told to go elsewhere.
    tokio::select! {
        () = server.accept(&listener) => {}
        () = state.idle() => {}
        () = tokio::time::sleep(state.options.grace) => {}
    }
    let cut_off = state.in_flight();
    state.engine.close();
    drop(listener);
    // What is written already still goes out.
    let _ = tokio::time::timeout(FAREWELL, server.graceful.shutdown()).await;
    tracing::info!(cut_off, "shut down");
    Ok(Outcome { cut_off })
}

struct Server {
    router: Router,
    connection: http1::Builder,
    write_timeout: Duration,
    graceful: GracefulShutdown,
}

impl Server {
    fn new(state: &Arc<State>) -> Self {
        let options = &state.options;
        let mut connection = http1::Builder::new();
        connection
            .timer(TokioTimer::new())
            .header_read_timeout(options.header_timeout)
            .max_headers(options.max_headers)
            // hyper's least.
            .max_buf_size(options.max_header_bytes.max(8192));
        Self {
            router: router(Arc::clone(state)),
            connection,
            write_timeout: options.write_timeout,
            graceful: GracefulShutdown::new(),
        }
    }

    /// Takes connections, for ever.
    async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.connect(stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connect(&self, stream: TcpStream) {
        // Tokens are small and must not wait for more of them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection has gone already");
            return;
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.connection.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            // Clients that go away, are too slow or speak no HTTP.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}
