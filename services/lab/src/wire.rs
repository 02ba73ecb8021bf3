//! Ways to read a request and to answer it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream;
use opentelemetry::trace::Span as _;
use serde::Deserialize;
use tokio::time::sleep;

use crate::telemetry::{Spans, Telemetry};

type Lab = State<Arc<Telemetry>>;
type Number = Path<i64>;

const CHUNKS: usize = 5;

/// Answers with the request's body.
pub async fn echo(State(lab): Lab, Path(n): Number, body: Bytes) -> Bytes {
    let mut root = Spans::new(&lab.tracer, "echo", n).start("root");
    sleep(Duration::from_millis(1)).await;
    root.end();
    body
}

/// Answers in chunks; the root is open until the last of them.
pub async fn stream(State(lab): Lab, Path(n): Number) -> Body {
    let root = Spans::new(&lab.tracer, "stream", n).start("root");
    let chunks = stream::unfold((root, 0), async |(mut root, sent)| {
        if sent == CHUNKS {
            root.end();
            return None;
        }
        sleep(Duration::from_millis(2)).await;
        let chunk = Ok::<_, Infallible>(format!("chunk {sent}\n"));
        Some((chunk, (root, sent + 1)))
    });
    Body::from_stream(chunks)
}

/// Answers without a look at the request's body.
pub async fn early(State(lab): Lab, Path(n): Number, _unread: Request) -> StatusCode {
    let mut root = Spans::new(&lab.tracer, "early", n).start("root");
    root.end();
    StatusCode::ACCEPTED
}

#[derive(Deserialize)]
pub struct Code {
    code: Option<u16>,
}

/// Answers with the final status `code`, 200 unless it is said, and without a body.
pub async fn status_code(State(lab): Lab, Path(n): Number, Query(code): Query<Code>) -> StatusCode {
    let mut root = Spans::new(&lab.tracer, "status-code", n).start("root");
    sleep(Duration::from_millis(1)).await;
    root.end();
    match StatusCode::from_u16(code.code.unwrap_or(200)) {
        Ok(status) if !status.is_informational() => status,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// Becomes a WebSocket that echoes: one root for the request, then one for each message.
pub async fn websocket(State(lab): Lab, Path(n): Number, upgrade: WebSocketUpgrade) -> Response {
    let spans = Spans::new(&lab.tracer, "ws", n);
    spans.start("root").end();
    upgrade.on_upgrade(async move |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(_) | Message::Binary(_) = message {
                let mut span = spans.start("message");
                let sent = socket.send(message).await;
                span.end();
                if sent.is_err() {
                    break;
                }
            }
        }
    })
}
