//! Panics: in a handler, in a sampler, in a span processor.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use opentelemetry::trace::{Link, SamplingResult, Span as _, SpanKind, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{ShouldSample, Span, SpanData, SpanProcessor};
use serde::Deserialize;
use tokio::time::sleep;

use crate::telemetry::{Spans, Telemetry};

#[derive(Clone, Debug)]
pub struct PanickingSampler;

impl ShouldSample for PanickingSampler {
    fn should_sample(
        &self,
        _parent: Option<&Context>,
        _trace_id: TraceId,
        _name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        panic!("in should_sample, on purpose")
    }
}

#[derive(Debug, Eq, PartialEq)]
pub enum PanickingProcessor {
    OnStart,
    OnEnd,
}

impl SpanProcessor for PanickingProcessor {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {
        assert_ne!(*self, Self::OnStart, "in on_start, on purpose");
    }

    fn on_end(&self, _span: SpanData) {
        assert_ne!(*self, Self::OnEnd, "in on_end, on purpose");
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Panics while a root is open; the router makes 500 of it.
pub async fn handler(State(telemetry): State<Arc<Telemetry>>, Path(n): Path<i64>) -> &'static str {
    let spans = Spans::new(&telemetry.tracer, "panic", n);
    let _root = spans.start("root");
    sleep(Duration::from_millis(1)).await;
    panic!("in a handler, on purpose")
}

pub async fn sampler(State(telemetry): State<Arc<Telemetry>>, Path(n): Path<i64>) -> &'static str {
    let panicking = Spans::new(&telemetry.panics_in_sampler, "panic-sampler", n);
    let said = catch(|| panicking.start("root").end());
    after(&telemetry, "panic-sampler", n).await;
    said
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum On {
    Start,
    End,
}

#[derive(Deserialize)]
pub struct Processor {
    /// Where the processor panics; `start` unless it is said.
    on: Option<On>,
}

pub async fn processor(
    State(telemetry): State<Arc<Telemetry>>,
    Path(n): Path<i64>,
    Query(processor): Query<Processor>,
) -> &'static str {
    let tracer = match processor.on.unwrap_or(On::Start) {
        On::Start => &telemetry.panics_in_on_start,
        On::End => &telemetry.panics_in_on_end,
    };
    let panicking = Spans::new(tracer, "panic-processor", n);
    let said = catch(|| panicking.start("root").end());
    after(&telemetry, "panic-processor", n).await;
    said
}

/// The request goes on and makes another root.
async fn after(telemetry: &Telemetry, scenario: &'static str, n: i64) {
    let mut span = Spans::new(&telemetry.tracer, scenario, n).start("after");
    sleep(Duration::from_millis(1)).await;
    span.end();
}

fn catch(work: impl FnOnce()) -> &'static str {
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => "did not panic",
        Err(_) => "caught",
    }
}
