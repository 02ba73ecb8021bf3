//! OTLP over HTTP with nothing but the standard library, so that no asynchronous runtime gets
//! into this executable, as it would with the clients that opentelemetry-otlp can use.

use std::env;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct HttpExporter {
    /// Host and port.
    authority: String,
    path: String,
    resource: ResourceAttributesWithSchema,
}

impl HttpExporter {
    /// To where the standard variables say, else to port 4318 of this host.
    pub fn from_env() -> Result<Self, Box<dyn Error>> {
        let url = match env::var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Ok(url) => url,
            Err(_) => {
                let base = env::var("OTEL_EXPORTER_OTLP_ENDPOINT")
                    .unwrap_or_else(|_| "http://localhost:4318".to_owned());
                format!("{}/v1/traces", base.trim_end_matches('/'))
            }
        };
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| format!("not an http:// endpoint: {url}"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = match host.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
            _ => format!("{host}:80"),
        };
        Ok(Self {
            authority,
            path: format!("/{path}"),
            resource: ResourceAttributesWithSchema::default(),
        })
    }

    /// Sends the body on a connection of its own; the answer is its status code.
    fn post(&self, body: &[u8]) -> io::Result<u16> {
        let mut stream = TcpStream::connect(&self.authority)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-protobuf\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.path,
            self.authority,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request)?;

        let mut status_line = String::new();
        BufReader::new(stream).read_line(&mut status_line)?;
        status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not an HTTP answer: {status_line:?}")))
    }
}

impl SpanExporter for HttpExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        match self.post(&request.encode_to_vec()) {
            Ok(200..=299) => Ok(()),
            Ok(code) => Err(OTelSdkError::InternalFailure(format!("status {code}"))),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}
