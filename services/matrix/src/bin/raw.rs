//! Spans by the API. Indented is what has a parent in the service itself:
//!
//! ```text
//! root                 with_context on futures, across awaits
//!   child
//!     grandchild       in_span
//!   spawned            in a task of its own
//! outer                in no context, open while `inner` starts and ends
//! inner
//! in-span              in_span
//!   in-span-child
//! active               mark_span_as_active
//!   active-child
//! attached             Context::attach
//!   attached-child
//! by-hand              its ids given to the builder (up to 0.31, which was the last to take them)
//!   by-hand-child
//! other-provider       of a second provider, with a simple processor; dropped, not ended
//! last
//! ```

use std::error::Error;

use matrix::opentelemetry::trace::{
    FutureExt, Span, TraceContextExt, Tracer, TracerProvider, mark_span_as_active,
};
use matrix::opentelemetry::{Context, KeyValue};
use matrix::{Providers, SdkTracer, pause, runtime, serve};

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = runtime()?;
    let _in_runtime = runtime.enter();
    let providers = Providers::new()?;
    let tracer = providers.batch.tracer("matrix");
    let other = providers.simple.tracer("matrix");
    runtime.block_on(serve(move |number| {
        work(tracer.clone(), other.clone(), number)
    }))?;
    providers.finish();
    Ok(())
}

async fn work(tracer: SdkTracer, other: SdkTracer, number: i64) {
    let attribute = KeyValue::new("request.number", number);
    let start = |tracer: &SdkTracer, name: &'static str| {
        let mut span = tracer.start(name);
        span.set_attribute(attribute.clone());
        span
    };

    let root = Context::current_with_span(start(&tracer, "root"));
    async {
        pause(number).await;
        let child = Context::current_with_span(start(&tracer, "child"));
        async {
            pause(number).await;
            tracer.in_span("grandchild", |context| {
                context.span().set_attribute(attribute.clone());
            });
            pause(number).await;
        }
        .with_context(child)
        .await;

        let spawned = Context::current_with_span(start(&tracer, "spawned"));
        // An error would be a panic in it, which prints itself.
        let _ = tokio::spawn(pause(number).with_context(spawned)).await;
    }
    .with_context(root)
    .await;

    let mut outer = start(&tracer, "outer");
    pause(number).await;
    let mut inner = start(&tracer, "inner");
    pause(number).await;
    inner.end();
    outer.end();

    tracer.in_span("in-span", |context| {
        context.span().set_attribute(attribute.clone());
        tracer.in_span("in-span-child", |context| {
            context.span().set_attribute(attribute.clone());
        });
    });

    {
        let _active = mark_span_as_active(start(&tracer, "active"));
        start(&tracer, "active-child").end();
    }

    {
        let _attached = Context::current_with_span(start(&tracer, "attached")).attach();
        start(&tracer, "attached-child").end();
    }

    #[cfg(feature = "to-0.31")]
    {
        use matrix::opentelemetry::trace::{SpanId, TraceId};
        let by_hand = tracer
            .span_builder("by-hand")
            .with_trace_id(TraceId::from_bytes(
                (0xabcd << 64 | number as u128).to_be_bytes(),
            ))
            .with_span_id(SpanId::from_bytes(
                (0xef << 48 | number as u64).to_be_bytes(),
            ))
            .with_attributes(vec![attribute.clone()])
            .start(&tracer);
        let by_hand = Context::current_with_span(by_hand);
        pause(number).with_context(by_hand.clone()).await;
        let _attached = by_hand.attach();
        start(&tracer, "by-hand-child").end();
    }

    let dropped = start(&other, "other-provider");
    pause(number).await;
    drop(dropped);

    let mut last = start(&tracer, "last");
    pause(number).await;
    last.end();
}
