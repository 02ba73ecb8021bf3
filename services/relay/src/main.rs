//! Sends what it is told to send: the service that the W3C trace-context suite tests.
//!
//! A POST of `[{"url": URL, "arguments": JSON}, …]`, on any path, makes it POST the arguments to each
//! URL in turn. It answers with what came last. Not a line here knows of tracing, and no header is handed on.

use std::error::Error;
use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use common::Threads;
use serde::Deserialize;
use serde_json::Value;

const USAGE: &str = "\
usage: relay [--listen ADDRESS] [--workers N]

  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --workers N       worker threads (default: one for each core)
";

struct Options {
    listen: SocketAddr,
    workers: Option<usize>,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        common::options(USAGE, |args| {
            Ok(Self {
                listen: common::listen_address(args)?,
                workers: args.opt_value_from_str("--workers")?,
            })
        })
    }
}

#[derive(Deserialize)]
struct Errand {
    url: String,
    arguments: Value,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let router = Router::new()
        .fallback(post(relay))
        .layer(DefaultBodyLimit::disable())
        .with_state(client);
    common::runtime(Threads::Workers(options.workers))?
        .block_on(common::serve(options.listen, router))?;
    Ok(())
}

/// 200 and the body of the last answer once all were sent and answered; 502 with the first error.
async fn relay(
    State(client): State<reqwest::Client>,
    Json(errands): Json<Vec<Errand>>,
) -> (StatusCode, Bytes) {
    let mut last = Bytes::new();
    for Errand { url, arguments } in errands {
        let answered = match client.post(url).json(&arguments).send().await {
            // Read to its end, so that the connection can be used again.
            Ok(response) => response.bytes().await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(body) => last = body,
            Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string().into()),
        }
    }
    (StatusCode::OK, last)
}
