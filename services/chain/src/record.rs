//! What the services know themselves of their spans.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, TraceContextExt, Tracer,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tokio::sync::watch;

/// The key of what is outside any request.
pub const NONE: &str = "none";

/// What can be a parent: a manual span, or the call that is served (whose context nobody here knows).
#[derive(Clone)]
pub struct Entry {
    pub key: Arc<str>,
    pub context: SpanContext,
}

/// One call that is served.
pub struct Request {
    pub number: i64,
    pub key: Arc<str>,
    pub tracer: SdkTracer,
    keys: AtomicU32,
    /// Dropped with the handler: late tasks wait for that.
    handled: watch::Sender<()>,
}

impl Request {
    pub fn new(tracer: &SdkTracer, number: i64, key: &str) -> Self {
        Self {
            number,
            key: key.into(),
            tracer: tracer.clone(),
            keys: AtomicU32::new(0),
            handled: watch::Sender::new(()),
        }
    }

    pub fn next_key(&self) -> Arc<str> {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.key).into()
    }

    pub fn builder(&self, name: &'static str, key: &str, expected_parent: &str) -> SpanBuilder {
        numbered(&self.tracer, name, self.number, key, expected_parent)
    }

    /// Changes (to an error) when the handler has ended. Holds nothing of the request.
    pub fn handled(&self) -> watch::Receiver<()> {
        self.handled.subscribe()
    }
}

/// A span that says to which request it belongs, and whose child it should be.
pub fn numbered(
    tracer: &SdkTracer,
    name: &'static str,
    number: i64,
    key: &str,
    expected_parent: &str,
) -> SpanBuilder {
    tracer.span_builder(name).with_attributes([
        KeyValue::new("request.number", number),
        KeyValue::new("key", key.to_owned()),
        KeyValue::new("expected.parent", expected_parent.to_owned()),
    ])
}

/// A task, or a thread, and what is open in it. A clone is the same task.
#[derive(Clone)]
pub struct Task {
    pub request: Arc<Request>,
    /// What was active where the task was spawned.
    base: Entry,
    open: Arc<Mutex<Vec<Entry>>>,
}

impl Task {
    /// The task that handles a request.
    pub fn of(request: Arc<Request>) -> Self {
        let base = Entry {
            key: Arc::clone(&request.key),
            context: SpanContext::empty_context(),
        };
        Self::with_base(request, base)
    }

    fn with_base(request: Arc<Request>, base: Entry) -> Self {
        Self {
            request,
            base,
            open: Arc::default(),
        }
    }

    /// For a task that this one is about to spawn.
    pub fn spawns(&self) -> Self {
        Self::with_base(Arc::clone(&self.request), self.active())
    }

    /// The span that started last of those open in this task.
    pub fn active(&self) -> Entry {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.last().unwrap_or(&self.base).clone()
    }

    /// A span that the SDK is told no parent of.
    pub fn root(&self, name: &'static str) -> Open {
        self.start(
            name,
            &self.active().key,
            SpanKind::Internal,
            &Context::new(),
        )
    }

    /// A child of a span of this service, given by hand.
    pub fn child(&self, name: &'static str, parent: &Open) -> Open {
        let context = Context::new().with_remote_span_context(parent.entry.context.clone());
        self.start(name, &parent.entry.key, SpanKind::Internal, &context)
    }

    /// The span of a service that reads the caller's context from the headers itself.
    pub fn continued(&self, name: &'static str, caller: &Context) -> Open {
        self.start(name, &self.base.key, SpanKind::Server, caller)
    }

    fn start(
        &self,
        name: &'static str,
        expected_parent: &str,
        kind: SpanKind,
        parent: &Context,
    ) -> Open {
        let key = self.request.next_key();
        let builder = self
            .request
            .builder(name, &key, expected_parent)
            .with_kind(kind);
        let span = self.request.tracer.build_with_context(builder, parent);
        let entry = Entry {
            key,
            context: span.span_context().clone(),
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(entry.clone());
        Open {
            span,
            entry,
            task: self.clone(),
        }
    }
}

/// A span that is open; it ends when this is dropped, in whatever task.
pub struct Open {
    span: Span,
    entry: Entry,
    task: Task,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.span.end();
        let open = &self.task.open;
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|entry| entry.key != self.entry.key);
    }
}
