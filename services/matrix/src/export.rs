//! The services' own export: one line of JSON a span, appended to the file that `MATRIX_SPANS` names.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::opentelemetry::Value;
#[cfg(feature = "sdk-0.17")]
use crate::opentelemetry::runtime;
#[cfg(all(
    feature = "to-0.27",
    not(any(feature = "sdk-0.17", feature = "sdk-0.25"))
))]
use crate::opentelemetry_sdk::runtime;
#[cfg(not(feature = "to-0.27"))]
use crate::opentelemetry_sdk::{
    error::OTelSdkResult as ExportResult,
    trace::{SdkTracerProvider as TracerProvider, SpanData, SpanExporter},
};
#[cfg(feature = "to-0.27")]
use crate::opentelemetry_sdk::{
    export::trace::{ExportResult, SpanData, SpanExporter},
    trace::TracerProvider,
};

/// Two providers, whose spans go to one file: in batches, and one by one.
pub struct Providers {
    pub batch: TracerProvider,
    pub simple: TracerProvider,
}

impl Providers {
    /// Called in a tokio runtime: up to 0.27 the batches are a task of it.
    pub fn new() -> io::Result<Self> {
        let path = env::var_os("MATRIX_SPANS")
            .ok_or_else(|| io::Error::other("MATRIX_SPANS names no file for the spans"))?;
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let exporter = FileExporter(Arc::new(file));
        let simple = TracerProvider::builder().with_simple_exporter(exporter.clone());
        let batch = TracerProvider::builder();
        #[cfg(all(feature = "to-0.27", not(feature = "sdk-0.25")))]
        let batch = batch.with_batch_exporter(exporter, runtime::Tokio);
        #[cfg(feature = "sdk-0.25")]
        let batch = batch.with_simple_exporter(exporter);
        #[cfg(not(feature = "to-0.27"))]
        let batch = batch.with_batch_exporter(exporter);
        Ok(Self {
            batch: batch.build(),
            simple: simple.build(),
        })
    }

    /// Exports what is left; blocks. The simple processors of the first versions need the drop for it.
    pub fn finish(self) {
        #[cfg(feature = "sdk-0.17")]
        use crate::opentelemetry::trace::TracerProvider as _;
        for provider in [self.batch, self.simple] {
            let result = provider.force_flush();
            if format!("{result:?}").contains("Err") {
                eprintln!("matrix: the last spans were not exported: {result:?}");
            }
        }
    }
}

#[derive(Clone, Debug)]
struct FileExporter(Arc<File>);

impl FileExporter {
    /// All of them in one write: appends by several threads do not mix.
    fn write(&self, batch: Vec<SpanData>) {
        let lines: String = batch.iter().map(line).collect();
        if let Err(error) = (&*self.0).write_all(lines.as_bytes()) {
            eprintln!("matrix: {} spans were not written: {error}", batch.len());
        }
    }
}

#[cfg(feature = "sdk-0.17")]
impl SpanExporter for FileExporter {
    /// An `async fn` of the crate async_trait, written out.
    fn export<'exporter, 'future>(
        &'exporter mut self,
        batch: Vec<SpanData>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ExportResult> + Send + 'future>>
    where
        'exporter: 'future,
        Self: 'future,
    {
        self.write(batch);
        Box::pin(async { Ok(()) })
    }
}

#[cfg(all(feature = "to-0.28", not(feature = "sdk-0.17")))]
impl SpanExporter for FileExporter {
    fn export(
        &mut self,
        batch: Vec<SpanData>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ExportResult> + Send>> {
        self.write(batch);
        Box::pin(async { Ok(()) })
    }
}

#[cfg(not(feature = "to-0.28"))]
impl SpanExporter for FileExporter {
    async fn export(&self, batch: Vec<SpanData>) -> ExportResult {
        self.write(batch);
        Ok(())
    }
}

/// Names are the services' own: nothing in them needs to be escaped.
fn line(span: &SpanData) -> String {
    #[cfg(feature = "to-0.20")]
    let mut attributes = span.attributes.iter();
    #[cfg(not(feature = "to-0.20"))]
    let mut attributes = span.attributes.iter().map(|pair| (&pair.key, &pair.value));
    let number = attributes.find_map(|(key, value)| match value {
        Value::I64(number) if key.as_str() == "request.number" => Some(*number),
        _ => None,
    });
    format!(
        concat!(
            r#"{{"trace_id": "{}", "span_id": "{}", "parent_span_id": "{}", "name": "{}", "#,
            r#""number": {}, "start_ns": {}, "end_ns": {}}}"#,
            "\n"
        ),
        span.span_context.trace_id(),
        span.span_context.span_id(),
        span.parent_span_id,
        span.name,
        number.map_or("null".to_owned(), |number| number.to_string()),
        nanoseconds(span.start_time),
        nanoseconds(span.end_time),
    )
}

fn nanoseconds(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos())
}
