//! Requests out, written and read by the task that handles the request which is their reason.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use opentelemetry::trace::Span as _;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::telemetry::{Spans, Telemetry};

#[derive(Deserialize)]
pub struct To {
    to: SocketAddr,
}

/// Asks `to` for `/a/{n}` and `/b/{n}` at once, and then, in a root `after`, for `/c/{n}`; before it all there is a root `before`.
pub async fn ask(
    State(lab): State<Arc<Telemetry>>,
    Path(n): Path<i64>,
    Query(To { to }): Query<To>,
) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "ask", n);
    spans.start("before").end();
    let both = tokio::join!(get(to, format!("/a/{n}")), get(to, format!("/b/{n}")));
    let mut after = spans.start("after");
    let last = get(to, format!("/c/{n}")).await;
    after.end();
    match [both.0, both.1, last]
        .into_iter()
        .all(|answer| answer.is_ok())
    {
        true => StatusCode::OK,
        false => StatusCode::BAD_GATEWAY,
    }
}

/// One request on a connection of its own, which the server closes after its answer.
async fn get(to: SocketAddr, path: String) -> io::Result<()> {
    let stream = TcpStream::connect(to).await?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    stream.writable().await?;
    if stream.try_write(head.as_bytes())? != head.len() {
        return Err(ErrorKind::WriteZero.into());
    }
    let mut buffer = [0; 4096];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
