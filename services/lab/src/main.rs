//! One endpoint for each way in which a request can make spans, read its body or answer.
//!
//! A path ends in the number of its request. Every span carries it as `request.number`, and the
//! name of its endpoint as `scenario`, so that a test can tell exactly what belongs to which request.

mod background;
mod calls;
mod ids;
mod panics;
mod sampling;
mod spans;
mod tasks;
mod telemetry;
mod wire;

use std::error::Error;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use common::Threads;
use futures_util::FutureExt;
use telemetry::{Exporter, Telemetry};
use tokio::sync::mpsc;

const USAGE: &str = "\
usage: lab [--listen ADDRESS] [--current-thread | --workers N] [--otlp-protocol http|grpc] [--simple]

  --listen ADDRESS      where to listen (default 127.0.0.1:0, port 0 = any)
  --current-thread      all tasks on one thread
  --workers N           worker threads (default: one for each core)
  --otlp-protocol NAME  how spans are exported: http (default) or grpc
  --simple              export each span as it ends, not in batches (http only)
";

struct Options {
    listen: SocketAddr,
    threads: Threads,
    exporter: Exporter,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        common::options(USAGE, |args| {
            let listen = common::listen_address(args)?;
            let workers = args.opt_value_from_str("--workers")?;
            let threads = match args.contains("--current-thread") {
                true => Threads::Current,
                false => Threads::Workers(workers),
            };
            let protocol: Option<String> = args.opt_value_from_str("--otlp-protocol")?;
            let exporter = match (protocol.as_deref(), args.contains("--simple")) {
                (None | Some("http"), false) => Exporter::HttpInBatches,
                (None | Some("http"), true) => Exporter::HttpOneByOne,
                (Some("grpc"), false) => Exporter::GrpcInBatches,
                // It would wait, on a thread of the runtime, for a connection that the runtime drives.
                (Some("grpc"), true) => return Err("--simple works with http only".into()),
                (Some(other), _) => return Err(format!("unknown protocol {other:?}").into()),
            };
            Ok(Self {
                listen,
                threads,
                exporter,
            })
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    common::runtime(options.threads)?.block_on(async {
        // Within the runtime, which drives the connection of the gRPC exporter.
        let (jobs, asked) = mpsc::channel(64);
        let telemetry = Arc::new(Telemetry::new(options.exporter, jobs)?);
        let worker = tokio::spawn(tasks::worker(asked));
        let background = tokio::spawn(background::run(telemetry.tracer.clone()));
        let served = common::serve(options.listen, router(Arc::clone(&telemetry))).await;
        background.abort();
        worker.abort();
        // On a thread of its own: it blocks until the last spans are exported.
        tokio::task::spawn_blocking(move || telemetry.shutdown()).await?;
        Ok(served?)
    })
}

fn router(telemetry: Arc<Telemetry>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/none/{n}", get(spans::none))
        .route("/nested/{n}", get(spans::nested))
        .route("/in-span/{n}", get(spans::in_span))
        .route("/roots/{n}", get(spans::roots))
        .route("/many/{n}", get(spans::many))
        .route("/open-roots/{n}", get(spans::open_roots))
        .route("/join/{n}", get(spans::join))
        .route("/drop/{n}", get(spans::drop_without_end))
        .route("/end-twice/{n}", get(spans::end_twice))
        .route("/end-at/{n}", get(spans::end_at))
        .route("/start-time/{n}", get(spans::start_time))
        .route("/unsampled/{n}", get(spans::unsampled))
        .route("/by-name/{n}", get(sampling::by_name))
        .route("/by-hand/{n}", get(sampling::by_hand))
        .route("/own-ids/{n}", get(ids::own_ids))
        .route("/shutdown/{n}", get(spans::shutdown))
        .route("/ended-elsewhere/{n}", get(spans::ended_elsewhere))
        .route("/outlives/{n}", get(spans::outlives))
        .route("/never-ends/{n}", get(spans::never_ends))
        .route("/local-parent/{n}", get(spans::local_parent))
        .route("/remote-parent/{n}", get(spans::remote_parent))
        .route("/status/{n}", get(spans::status))
        .route("/kinds/{n}", get(spans::kinds))
        .route("/slow/{n}", get(spans::slow))
        .route("/sync-blocking/{n}", get(spans::sync_blocking))
        .route("/spawn/{n}", get(tasks::spawn))
        .route("/join-set/{n}", get(tasks::join_set))
        .route("/spawn-local/{n}", get(tasks::spawn_local))
        .route("/nested-runtime/{n}", get(tasks::nested_runtime))
        .route("/block-in-place/{n}", get(tasks::block_in_place))
        .route("/thread/{n}", get(tasks::std_thread))
        .route("/select/{n}", get(tasks::select))
        .route("/worker/{n}", get(tasks::ask_worker))
        .route("/outlives-as-task/{n}", get(tasks::outlives_as_task))
        .route("/never-ends-in-task/{n}", get(tasks::never_ends_in_task))
        .route("/panic/{n}", get(panics::handler))
        .route("/panic-sampler/{n}", get(panics::sampler))
        .route("/panic-processor/{n}", get(panics::processor))
        .route("/ask/{n}", get(calls::ask))
        .route("/echo/{n}", post(wire::echo))
        .route("/stream/{n}", get(wire::stream))
        .route("/early/{n}", post(wire::early))
        .route("/status-code/{n}", get(wire::status_code))
        .route("/ws/{n}", get(wire::websocket))
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(catch_panic))
        .with_state(telemetry)
}

/// A handler that panics makes an answer as well, and its connection goes on.
async fn catch_panic(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| (StatusCode::INTERNAL_SERVER_ERROR, "panicked").into_response())
}
