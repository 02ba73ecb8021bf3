//! What a service of the chain is started with: options, spans, the next service, the worker.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::sync::mpsc;

use crate::work::{Next, Service, background_worker};

pub struct Options {
    pub listen: SocketAddr,
    pub workers: Option<usize>,
    pub next: Option<String>,
    pub through: Option<String>,
    pub propagates: bool,
}

impl Options {
    /// From the command line; `usage` names the options that this service has.
    pub fn from_args(usage: &str) -> Result<Self, Box<dyn Error>> {
        let has = |option: &str| usage.contains(&format!("\n  {option} "));
        common::options(usage, |args| {
            Ok(Self {
                listen: common::listen_address(args)?,
                workers: args.opt_value_from_str("--workers")?,
                next: match has("--next") {
                    true => Some(args.value_from_str("--next")?),
                    false => None,
                },
                through: match has("--through") {
                    true => args.opt_value_from_str("--through")?,
                    false => None,
                },
                propagates: has("--propagate") && args.contains("--propagate"),
            })
        })
    }
}

/// Spans go out by OTLP, in batches.
pub fn provider(name: &'static str) -> Result<SdkTracerProvider, Box<dyn Error>> {
    Ok(SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name(name).build())
        .with_batch_exporter(SpanExporter::builder().with_http().build()?)
        .build())
}

/// A service and its background worker. Within a runtime, outside of any request.
pub fn start(
    provider: &SdkTracerProvider,
    next: Option<Arc<dyn Next>>,
    local: bool,
    propagates: bool,
) -> Arc<Service> {
    let tracer = provider.tracer("chain");
    let (worker, jobs) = mpsc::unbounded_channel();
    tokio::spawn(background_worker(tracer.clone(), next.clone(), jobs));
    Arc::new(Service {
        tracer,
        next,
        local,
        propagates,
        worker,
    })
}

/// Exports what is left. Outside of a runtime: the exporter's client blocks.
pub fn shutdown(name: &str, provider: &SdkTracerProvider) {
    if let Err(error) = provider.shutdown() {
        eprintln!("{name}: the last spans were not exported: {error}");
    }
}
