//! The downstream of `users`: takes a document, waits a little and says that it was stored.
//!
//! It makes no spans at all.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use common::Threads;
use serde_json::{Value, json};

const USAGE: &str = "\
usage: store [--listen ADDRESS] [--delay-ms N] [--workers N]

  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --delay-ms N      how long it takes to store (default 5)
  --workers N       worker threads (default: one for each core)
";

struct Options {
    listen: SocketAddr,
    delay: Duration,
    workers: Option<usize>,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        common::options(USAGE, |args| {
            Ok(Self {
                listen: common::listen_address(args)?,
                delay: Duration::from_millis(args.opt_value_from_str("--delay-ms")?.unwrap_or(5)),
                workers: args.opt_value_from_str("--workers")?,
            })
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/store", post(store))
        .with_state(options.delay);
    common::runtime(Threads::Workers(options.workers))?
        .block_on(common::serve(options.listen, router))?;
    Ok(())
}

async fn store(
    State(delay): State<Duration>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Json<Value>) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    // The caller can see which trace its request arrived with.
    let traceparent = headers.get("traceparent").and_then(|v| v.to_str().ok());
    let answer = json!({ "stored": body.len(), "traceparent": traceparent });
    (StatusCode::CREATED, Json(answer))
}
