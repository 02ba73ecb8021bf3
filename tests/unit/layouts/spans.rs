//! A crate with the names of opentelemetry_sdk 0.31 (src/trace/span.rs), compiled with one rustc and one
//! set of options: it prints the memory of some spans, and its debug information says what is where.

use std::fmt::Write;

pub mod trace {
    pub mod span {
        use std::borrow::Cow;
        use std::time::SystemTime;

        #[derive(Clone, Copy)]
        pub struct TraceId(pub u128);
        #[derive(Clone, Copy)]
        pub struct SpanId(pub u64);
        #[derive(Clone, Copy)]
        pub struct TraceFlags(pub u8);
        #[derive(Clone)]
        pub struct TraceState(pub Option<Vec<(String, String)>>);

        #[derive(Clone)]
        pub struct SpanContext {
            pub trace_id: TraceId,
            pub span_id: SpanId,
            pub trace_flags: TraceFlags,
            pub is_remote: bool,
            pub trace_state: TraceState,
        }

        #[derive(Clone, Copy)]
        pub enum SpanKind {
            Client,
            Server,
            Producer,
            Consumer,
            Internal,
        }

        pub enum Status {
            Unset,
            Error { description: Cow<'static, str> },
            Ok,
        }

        pub struct SpanData {
            pub parent_span_id: SpanId,
            pub parent_span_is_remote: bool,
            pub span_kind: SpanKind,
            pub name: Cow<'static, str>,
            pub start_time: SystemTime,
            pub end_time: SystemTime,
            pub attributes: Vec<u64>,
            pub dropped_attributes_count: u32,
            pub status: Status,
        }

        pub struct Span {
            pub span_context: SpanContext,
            pub data: Option<SpanData>,
            pub tracer: std::sync::Arc<str>,
            pub span_limits: [u32; 5],
        }

        impl Span {
            #[inline(never)]
            pub fn ensure_ended_and_exported(&mut self, timestamp: Option<SystemTime>) {
                if let Some(data) = &mut self.data {
                    if let Some(time) = timestamp {
                        data.end_time = time;
                    }
                }
            }
        }
    }
}

use std::borrow::Cow;
use std::time::{Duration, SystemTime};
use trace::span::*;

fn span(name: Cow<'static, str>, kind: SpanKind, status: Status) -> Span {
    Span {
        span_context: SpanContext {
            trace_id: TraceId(0x0102030405060708_090a0b0c0d0e0f10),
            span_id: SpanId(0x1112131415161718),
            trace_flags: TraceFlags(0x7e),
            is_remote: true,
            trace_state: TraceState(None),
        },
        data: Some(SpanData {
            parent_span_id: SpanId(0x2122232425262728),
            parent_span_is_remote: true,
            span_kind: kind,
            name,
            start_time: SystemTime::UNIX_EPOCH + Duration::new(0x31323334, 123_456_789),
            end_time: SystemTime::UNIX_EPOCH + Duration::new(0x41424344, 987_654_321),
            attributes: vec![1, 2],
            dropped_attributes_count: 0,
            status,
        }),
        tracer: "tracer".into(),
        span_limits: [1, 2, 3, 4, 5],
    }
}

/// One line: label, memory, and where name and description are.
fn show(label: &str, span: &Span) {
    let mut text = String::new();
    for place in 0..std::mem::size_of::<Span>() {
        let byte = unsafe { std::ptr::read_volatile((span as *const Span as *const u8).add(place)) };
        write!(text, "{byte:02x}").unwrap();
    }
    let (name, description) = match &span.data {
        Some(data) => match &data.status {
            Status::Error { description } => (&*data.name, &**description),
            _ => (&*data.name, ""),
        },
        None => ("", ""),
    };
    let texts = (name.as_ptr() as usize, name.len(), description.as_ptr() as usize, description.len());
    println!("{label} {text} {} {} {} {}", texts.0, texts.1, texts.2, texts.3);
}

fn main() {
    let owned = |text: &str| {
        let mut result = String::with_capacity(64);
        result.push_str(text);
        Cow::Owned(result)
    };
    let mut ended = span("ended".into(), SpanKind::Server, Status::Ok);
    ended.ensure_ended_and_exported(Some(SystemTime::now()));
    ended.data = None;
    show("ended", &ended);
    show("unset", &span("borrowed".into(), SpanKind::Client, Status::Unset));
    show("ok", &span(owned("owned name"), SpanKind::Internal, Status::Ok));
    let failed = Status::Error { description: "static description".into() };
    show("error", &span("borrowed".into(), SpanKind::Producer, failed));
    let failed = Status::Error { description: owned("built description") };
    show("built", &span(owned("owned name"), SpanKind::Consumer, failed));
}
