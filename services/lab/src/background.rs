//! Work of the service that belongs to no request.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, Tracer};
use opentelemetry_sdk::trace::SdkTracer;
use tokio::time;

pub async fn run(tracer: SdkTracer) {
    let mut ticks = time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let mut span = tracer.start("background");
        span.set_attribute(KeyValue::new("scenario", "background"));
        time::sleep(Duration::from_millis(1)).await;
        span.end();
    }
}
