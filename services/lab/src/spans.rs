//! Ways to start, nest and end spans in a request.

use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    FutureExt, Span as _, SpanKind, Status, TraceContextExt, Tracer, mark_span_as_active,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use serde::Deserialize;
use tokio::task;
use tokio::time::sleep;

use crate::telemetry::{Spans, Telemetry};

type Lab = State<Arc<Telemetry>>;
type Number = Path<i64>;

/// How far from now `end-at` ends and `start-time` starts its span.
const AHEAD: Duration = Duration::from_secs(1);
const BEFORE: Duration = Duration::from_secs(3600);

/// Waits as real work does: more than once, each time perhaps going on in another thread.
async fn work(millis: u64) {
    task::yield_now().await;
    sleep(Duration::from_millis(millis)).await;
    task::yield_now().await;
}

/// No spans.
pub async fn none(Path(_): Number) -> &'static str {
    work(1).await;
    "none"
}

/// Root, child, grandchild, by contexts that are attached while their futures run.
pub async fn nested(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "nested", n);
    let root = Context::current_with_span(spans.start("root"));
    async {
        work(1).await;
        let child = Context::current_with_span(spans.start("child"));
        async {
            work(2).await;
            let mut grandchild = spans.start("grandchild");
            work(1).await;
            grandchild.end();
        }
        .with_context(child.clone())
        .await;
        work(1).await;
        child.span().end();
    }
    .with_context(root.clone())
    .await;
    root.span().end();
    "nested"
}

/// The same without waiting, by `in_span` and by a span marked as active in its thread.
pub async fn in_span(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "in-span", n);
    spans.tracer().in_span("root", |cx| {
        cx.span().set_attributes([
            KeyValue::new("request.number", n),
            KeyValue::new("scenario", "in-span"),
        ]);
        let _child = mark_span_as_active(spans.start("child"));
        spans.start("grandchild").end();
    });
    work(1).await;
    "in-span"
}

/// Three roots, one after the other.
pub async fn roots(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "roots", n);
    for name in ["a", "b", "c"] {
        let mut root = spans.start(name);
        work(1).await;
        root.end();
    }
    "roots"
}

#[derive(Deserialize)]
pub struct Many {
    spans: u32,
}

/// So many roots, one after the other, and nothing else.
pub async fn many(State(lab): Lab, Path(n): Number, Query(many): Query<Many>) -> &'static str {
    let spans = Spans::new(&lab.tracer, "many", n);
    for _ in 0..many.spans {
        spans.start("root").end();
    }
    "many"
}

/// Root a stays open while b, then c, start and end. None is in the context of another.
pub async fn open_roots(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "open-roots", n);
    let mut a = spans.start("a");
    for name in ["b", "c"] {
        work(1).await;
        let mut root = spans.start(name);
        work(1).await;
        root.end();
    }
    a.end();
    "open-roots"
}

/// Three roots in branches of one task, open at the same time, not ending in the order they started.
pub async fn join(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "join", n);
    let branch = async |name, before, within| {
        sleep(Duration::from_millis(before)).await;
        let mut root = spans.start(name);
        work(within).await;
        root.end();
    };
    tokio::join!(branch("a", 0, 8), branch("b", 2, 2), branch("c", 3, 10));
    "join"
}

/// A root that nobody ends is ended by its drop.
pub async fn drop_without_end(State(lab): Lab, Path(n): Number) -> &'static str {
    let root = Spans::new(&lab.tracer, "drop", n).start("root");
    work(1).await;
    drop(root);
    "drop"
}

/// The second end, and the drop after it, change nothing. Root b is open meanwhile.
pub async fn end_twice(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "end-twice", n);
    let mut a = spans.start("a");
    work(1).await;
    a.end();
    let mut b = spans.start("b");
    a.end();
    drop(a);
    spans.start("c").end();
    work(1).await;
    b.end();
    "end-twice"
}

/// Ends with a time of its own choice, in the future.
pub async fn end_at(State(lab): Lab, Path(n): Number) -> &'static str {
    let mut root = Spans::new(&lab.tracer, "end-at", n).start("root");
    work(1).await;
    root.end_with_timestamp(SystemTime::now() + AHEAD);
    "end-at"
}

/// Starts with a time of its own choice, long ago.
pub async fn start_time(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "start-time", n);
    let mut root = spans
        .builder("root")
        .with_start_time(SystemTime::now() - BEFORE)
        .start(spans.tracer());
    work(1).await;
    root.end();
    "start-time"
}

/// A root and a child that the sampler drops, then a root that it keeps.
pub async fn unsampled(State(lab): Lab, Path(n): Number) -> &'static str {
    let dropped = Spans::new(&lab.unsampled, "unsampled", n);
    let cx = Context::current_with_span(dropped.start("dropped"));
    dropped.start_in("dropped-child", &cx).end();
    let mut kept = Spans::new(&lab.tracer, "unsampled", n).start("kept");
    work(1).await;
    kept.end();
    cx.span().end();
    "unsampled"
}

/// A root of a provider that was shut down, then one of a provider that works.
pub async fn shutdown(State(lab): Lab, Path(n): Number) -> &'static str {
    let mut lost = Spans::new(&lab.shut_down, "shutdown", n).start("lost");
    let mut kept = Spans::new(&lab.tracer, "shutdown", n).start("kept");
    work(1).await;
    kept.end();
    lost.end();
    "shutdown"
}

/// A root that another task ends, while the request waits for it.
pub async fn ended_elsewhere(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "ended-elsewhere", n);
    let mut root = spans.start("root");
    let elsewhere = tokio::spawn(async move {
        work(2).await;
        root.end();
    });
    if elsewhere.await.is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    let mut after = spans.start("after");
    work(1).await;
    after.end();
    StatusCode::OK
}

/// A root that another task ends, long after the answer.
pub async fn outlives(State(lab): Lab, Path(n): Number) -> &'static str {
    let mut root = Spans::new(&lab.tracer, "outlives", n).start("root");
    tokio::spawn(async move {
        sleep(Duration::from_millis(300)).await;
        root.end();
    });
    "outlives"
}

/// A root that is neither ended nor dropped.
pub async fn never_ends(State(lab): Lab, Path(n): Number) -> &'static str {
    let root = Spans::new(&lab.tracer, "never-ends", n).start("root");
    work(1).await;
    mem::forget(root);
    "never-ends"
}

/// A root, and a child that is given its parent by hand.
pub async fn local_parent(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "local-parent", n);
    let cx = Context::new().with_span(spans.start("root"));
    let mut child = spans.start_in("child", &cx);
    work(1).await;
    child.end();
    cx.span().end();
    "local-parent"
}

/// A span whose parent is what the request's `traceparent` says, and a child of it.
pub async fn remote_parent(State(lab): Lab, Path(n): Number, headers: HeaderMap) -> &'static str {
    let spans = Spans::new(&lab.tracer, "remote-parent", n);
    let remote = TraceContextPropagator::new().extract(&HeaderExtractor(&headers));
    let server = spans
        .builder("server")
        .with_kind(SpanKind::Server)
        .start_with_context(spans.tracer(), &remote);
    let cx = Context::new().with_span(server);
    let mut child = spans.start_in("child", &cx);
    work(1).await;
    child.end();
    cx.span().end();
    "remote-parent"
}

/// A root with an event and an error.
pub async fn status(State(lab): Lab, Path(n): Number) -> &'static str {
    let mut root = Spans::new(&lab.tracer, "status", n).start("root");
    work(1).await;
    root.add_event("went wrong", vec![KeyValue::new("request.number", n)]);
    root.set_status(Status::error("on purpose"));
    root.end();
    "status"
}

/// A root of each kind, one after the other; of a client's first, whose value is 0.
pub async fn kinds(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "kinds", n);
    for (name, kind) in [
        ("client", SpanKind::Client),
        ("server", SpanKind::Server),
        ("producer", SpanKind::Producer),
        ("consumer", SpanKind::Consumer),
        ("internal", SpanKind::Internal),
    ] {
        let mut root = spans.builder(name).with_kind(kind).start(spans.tracer());
        work(1).await;
        root.end();
    }
    "kinds"
}

#[derive(Deserialize)]
pub struct Slow {
    ms: Option<u64>,
}

/// A root that is open for `ms` milliseconds (100 unless it is said).
pub async fn slow(State(lab): Lab, Path(n): Number, Query(slow): Query<Slow>) -> &'static str {
    let mut root = Spans::new(&lab.tracer, "slow", n).start("root");
    sleep(Duration::from_millis(slow.ms.unwrap_or(100))).await;
    root.end();
    "slow"
}

/// A root that starts and ends in a thread for blocking work, while the request waits for it.
pub async fn sync_blocking(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "sync-blocking", n);
    let blocking = task::spawn_blocking(move || {
        let mut root = spans.start("root");
        thread::sleep(Duration::from_millis(2));
        root.end();
    });
    match blocking.await {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
