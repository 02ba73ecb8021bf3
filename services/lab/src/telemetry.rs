//! The tracers, each from a provider of its own kind, and how their spans are exported.

use std::error::Error;
use std::thread;
use std::time::Duration;

use opentelemetry::trace::{SpanBuilder, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, TracerProviderBuilder,
};
use tokio::sync::mpsc;

use crate::ids::Counting;
use crate::panics::{PanickingProcessor, PanickingSampler};
use crate::sampling::ByName;
use crate::tasks::Job;

#[derive(Clone, Copy, Debug)]
pub enum Exporter {
    HttpInBatches,
    HttpOneByOne,
    GrpcInBatches,
}

pub struct Telemetry {
    pub tracer: SdkTracer,
    /// Samples nothing.
    pub unsampled: SdkTracer,
    pub sampled_by_name: SdkTracer,
    pub with_own_ids: SdkTracer,
    /// Of a provider that was shut down before the first request.
    pub shut_down: SdkTracer,
    pub panics_in_sampler: SdkTracer,
    pub panics_in_on_start: SdkTracer,
    pub panics_in_on_end: SdkTracer,
    /// To the worker that serves all requests.
    pub jobs: mpsc::Sender<Job>,
    providers: Vec<SdkTracerProvider>,
}

impl Telemetry {
    pub fn new(exporter: Exporter, jobs: mpsc::Sender<Job>) -> Result<Self, Box<dyn Error>> {
        let usual = exporting(exporter)?.build();
        let unsampled = exporting(exporter)?
            .with_sampler(Sampler::AlwaysOff)
            .build();
        let sampled_by_name = exporting(exporter)?.with_sampler(ByName).build();
        let with_own_ids = exporting(exporter)?
            .with_id_generator(Counting::default())
            .build();
        let panics_in_sampler = exporting(exporter)?.with_sampler(PanickingSampler).build();
        // These panic after the exporting processor had its turn: their spans are exported.
        let panics_in_on_start = exporting(exporter)?
            .with_span_processor(PanickingProcessor::OnStart)
            .build();
        let panics_in_on_end = exporting(exporter)?
            .with_span_processor(PanickingProcessor::OnEnd)
            .build();

        let shut_down = exporting(exporter)?.build();
        // Before the shutdown; afterwards there is only a tracer of another, inert provider.
        let shut_down_tracer = shut_down.tracer("lab");
        shut_down.shutdown()?;

        Ok(Self {
            tracer: usual.tracer("lab"),
            unsampled: unsampled.tracer("lab"),
            sampled_by_name: sampled_by_name.tracer("lab"),
            with_own_ids: with_own_ids.tracer("lab"),
            shut_down: shut_down_tracer,
            panics_in_sampler: panics_in_sampler.tracer("lab"),
            panics_in_on_start: panics_in_on_start.tracer("lab"),
            panics_in_on_end: panics_in_on_end.tracer("lab"),
            jobs,
            providers: vec![
                usual,
                unsampled,
                sampled_by_name,
                with_own_ids,
                panics_in_sampler,
                panics_in_on_start,
                panics_in_on_end,
            ],
        })
    }

    /// Exports what is left; blocks.
    pub fn shutdown(&self) {
        for provider in &self.providers {
            if let Err(error) = provider.shutdown() {
                eprintln!("lab: the last spans were not exported: {error}");
            }
        }
    }
}

fn exporting(exporter: Exporter) -> Result<TracerProviderBuilder, ExporterBuildError> {
    let builder = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("lab").build());
    let http = || SpanExporter::builder().with_http().build();
    let grpc = || SpanExporter::builder().with_tonic().build();
    Ok(match exporter {
        Exporter::HttpInBatches => builder.with_batch_exporter(http()?),
        Exporter::HttpOneByOne => builder.with_simple_exporter(OnThread(http()?)),
        Exporter::GrpcInBatches => builder.with_batch_exporter(grpc()?),
    })
}

/// Exports on a thread made for it: the exporter's client may not block on one of the runtime.
#[derive(Debug)]
struct OnThread(SpanExporter);

impl opentelemetry_sdk::trace::SpanExporter for OnThread {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let export = || futures_executor::block_on(self.0.export(batch));
        thread::scope(|scope| scope.spawn(export).join()).unwrap_or_else(|_| {
            let what = "the exporter panicked".to_owned();
            Err(OTelSdkError::InternalFailure(what))
        })
    }

    fn shutdown_with_timeout(&mut self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

/// Makes the spans of one request, which all say to which they belong.
#[derive(Clone)]
pub struct Spans {
    tracer: SdkTracer,
    scenario: &'static str,
    number: i64,
}

impl Spans {
    pub fn new(tracer: &SdkTracer, scenario: &'static str, number: i64) -> Self {
        Self {
            tracer: tracer.clone(),
            scenario,
            number,
        }
    }

    pub fn builder(&self, name: &'static str) -> SpanBuilder {
        self.tracer.span_builder(name).with_attributes([
            KeyValue::new("request.number", self.number),
            KeyValue::new("scenario", self.scenario),
        ])
    }

    /// A span in the context of the moment; a root where there is none.
    pub fn start(&self, name: &'static str) -> Span {
        self.tracer.build(self.builder(name))
    }

    pub fn start_in(&self, name: &'static str, parent: &Context) -> Span {
        self.tracer.build_with_context(self.builder(name), parent)
    }

    pub fn tracer(&self) -> &SdkTracer {
        &self.tracer
    }
}
