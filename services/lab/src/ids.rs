//! An id generator of the service's own, in place of the SDK's random one.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Path, State};
use opentelemetry::Context;
use opentelemetry::trace::{Span as _, SpanId, TraceContextExt, TraceId};
use opentelemetry_sdk::trace::IdGenerator;
use tokio::task;

use crate::telemetry::{Spans, Telemetry};

/// Counts; what it hands out is told by its first bytes.
#[derive(Debug, Default)]
pub struct Counting {
    last: AtomicU64,
}

const PREFIX: u64 = 0xc0de << 48;

impl Counting {
    /// Goes a long way round, as generators that read clocks and hosts do.
    fn next(&self) -> u64 {
        let mut digits = String::new();
        let _ = write!(digits, "{}", self.last.fetch_add(1, Ordering::Relaxed) + 1);
        PREFIX | digits.parse::<u64>().unwrap_or(1)
    }
}

impl IdGenerator for Counting {
    fn new_trace_id(&self) -> TraceId {
        let high = self.next();
        TraceId::from(u128::from(high) << 64 | u128::from(self.next()))
    }

    fn new_span_id(&self) -> SpanId {
        SpanId::from(self.next())
    }
}

/// A root with a child.
pub async fn own_ids(State(telemetry): State<Arc<Telemetry>>, Path(n): Path<i64>) -> &'static str {
    let spans = Spans::new(&telemetry.with_own_ids, "own-ids", n);
    let cx = Context::new().with_span(spans.start("root"));
    let mut child = spans.start_in("child", &cx);
    task::yield_now().await;
    child.end();
    cx.span().end();
    "own-ids"
}
