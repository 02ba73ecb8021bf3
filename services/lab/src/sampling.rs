//! A sampler of the service's own, which decides by the span's name.

use std::sync::Arc;

use axum::extract::{Path, State};
use opentelemetry::trace::{
    Link, SamplingDecision, SamplingResult, Span as _, SpanId, SpanKind, TraceContextExt, TraceId,
    TraceState,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::ShouldSample;
use tokio::task;

use crate::telemetry::{Spans, Telemetry};

/// `dropped` and `recorded` (but not sampled) are what their names say; all others are sampled.
#[derive(Clone, Debug)]
pub struct ByName;

impl ShouldSample for ByName {
    fn should_sample(
        &self,
        _parent: Option<&Context>,
        _trace_id: TraceId,
        name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        SamplingResult {
            decision: match name {
                "dropped" => SamplingDecision::Drop,
                "recorded" => SamplingDecision::RecordOnly,
                _ => SamplingDecision::RecordAndSample,
            },
            attributes: Vec::new(),
            trace_state: TraceState::default(),
        }
    }
}

/// A root of each kind, one after the other, and under each of them a child that is sampled.
pub async fn by_name(State(telemetry): State<Arc<Telemetry>>, Path(n): Path<i64>) -> &'static str {
    let spans = Spans::new(&telemetry.sampled_by_name, "by-name", n);
    for (name, below) in [
        ("kept", "below-kept"),
        ("dropped", "below-dropped"),
        ("recorded", "below-recorded"),
    ] {
        let cx = Context::new().with_span(spans.start(name));
        let mut child = spans.start_in(below, &cx);
        task::yield_now().await;
        child.end();
        cx.span().end();
    }
    "by-name"
}

/// Roots with ids set by hand, each right after one that was dropped.
pub async fn by_hand(State(telemetry): State<Arc<Telemetry>>, Path(n): Path<i64>) -> &'static str {
    let spans = Spans::new(&telemetry.sampled_by_name, "by-hand", n);
    for (name, first) in [("a", 0xaaaa), ("b", 0xbbbb)] {
        spans.start("dropped").end();
        let id = first << 48 | n.unsigned_abs();
        let builder = spans.builder(name);
        builder
            .with_trace_id(TraceId::from(u128::from(id)))
            .with_span_id(SpanId::from(id))
            .start_with_context(spans.tracer(), &Context::new())
            .end();
    }
    "by-hand"
}
