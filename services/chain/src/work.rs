//! What a handler does: steps chosen by the request's seed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, propagation::TextMapPropagator};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::record::{NONE, Open, Request, Task, numbered};

/// Calls that one handler makes at most.
const CALLS: u32 = 2;
/// How deep steps go into steps.
const DEPTH: u32 = 2;
/// From the end of a handler on, until a task that outlives it makes its span.
const LATE: Duration = Duration::from_millis(300);

/// A request to the next service.
pub struct Call {
    pub path_and_query: String,
    pub headers: HeaderMap,
    /// A POST of these bytes, or a GET.
    pub body: Option<Vec<u8>>,
    /// Whether the answer's body is read to its end.
    pub read: bool,
}

/// How a service calls the next one.
pub trait Next: Send + Sync {
    /// Ready when the answer is there, whatever it is.
    fn call(
        &self,
        call: Call,
    ) -> BoxFuture<'_, Result<(), Box<dyn std::error::Error + Send + Sync>>>;
}

/// A service: what its handlers may do.
pub struct Service {
    pub tracer: SdkTracer,
    /// None for the last of the chain.
    pub next: Option<Arc<dyn Next>>,
    /// Its tasks run in a `LocalSet`, on one thread each.
    pub local: bool,
    /// It reads and writes `traceparent` itself.
    pub propagates: bool,
    pub worker: mpsc::UnboundedSender<Job>,
}

/// What the background worker is asked to do.
pub struct Job {
    number: i64,
    key: Arc<str>,
    call: Option<Call>,
    done: oneshot::Sender<()>,
}

/// A task that serves many requests, one after the other: what it does belongs to none of them.
pub async fn background_worker(
    tracer: SdkTracer,
    next: Option<Arc<dyn Next>>,
    mut jobs: mpsc::UnboundedReceiver<Job>,
) {
    use opentelemetry::trace::{Span as _, Tracer};
    while let Some(job) = jobs.recv().await {
        let mut span = tracer.build(numbered(&tracer, "job", job.number, &job.key, NONE));
        if let (Some(next), Some(call)) = (&next, job.call) {
            report(next.call(call).await);
        }
        span.end();
        // Who asked may have been cancelled.
        let _ = job.done.send(());
    }
}

/// A call as its path and query say it.
pub struct Incoming {
    pub key: String,
    pub number: i64,
    pub seed: u64,
    pub unread: u8,
    pub body: usize,
}

impl Incoming {
    /// None for what is not a call.
    pub fn parse(path: &str, query: &str) -> Option<Self> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let key = segments.next()?.to_owned();
        let (_from, _carries) = (segments.next()?, segments.next()?);
        let number = segments.next()?.parse().ok()?;
        let mut incoming = Self {
            key,
            number,
            seed: 0,
            unread: 0,
            body: 0,
        };
        for pair in query.split('&') {
            match pair.split_once('=')? {
                ("seed", value) => incoming.seed = value.parse().ok()?,
                ("unread", value) => incoming.unread = value.parse().ok()?,
                ("body", value) => incoming.body = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(incoming)
    }
}

/// Handles a call; the answer's body.
pub async fn handle(service: Arc<Service>, incoming: Incoming, headers: HeaderMap) -> Vec<u8> {
    let mut rng = Rng::with_seed(incoming.seed);
    let size = rng.usize(0..=incoming.body);
    let task = Task::of(Arc::new(Request::new(
        &service.tracer,
        incoming.number,
        &incoming.key,
    )));
    let work = Work {
        service: Arc::clone(&service),
        task: task.clone(),
        calls_left: Arc::new(AtomicU32::new(CALLS)),
        local: service.local,
        unread: incoming.unread,
        body: incoming.body,
    };
    let open = service.propagates.then(|| {
        let propagator = TraceContextPropagator::new();
        task.continued("continued", &propagator.extract(&HeaderExtractor(&headers)))
    });
    work.steps(rng.fork(), DEPTH).await;
    work.call(&mut rng).await;
    drop(open);
    vec![b'x'; size]
}

/// What a task needs for its steps. A clone works in the same task.
#[derive(Clone)]
struct Work {
    service: Arc<Service>,
    task: Task,
    calls_left: Arc<AtomicU32>,
    /// The task runs in a `LocalSet`.
    local: bool,
    unread: u8,
    body: usize,
}

impl Work {
    /// For a task that this one is about to spawn.
    fn spawns(&self, local: bool) -> Self {
        Self {
            task: self.task.spawns(),
            local,
            ..self.clone()
        }
    }

    /// One or two steps.
    fn steps(&self, mut rng: Rng, depth: u32) -> BoxFuture<'static, ()> {
        let work = self.clone();
        async move {
            for _ in 0..rng.u32(1..=2) {
                work.step(&mut rng, depth).await;
            }
        }
        .boxed()
    }

    /// The steps of a span; none at the bottom.
    async fn inner(&self, rng: &mut Rng, depth: u32) {
        if depth > 0 {
            self.steps(rng.fork(), depth - 1).await;
        }
        pause(rng).await;
    }

    async fn step(&self, rng: &mut Rng, depth: u32) {
        match rng.u32(0..16) {
            0..=2 => self.call(rng).await,
            3 => {
                let _root = self.task.root("root");
                self.inner(rng, depth).await;
            }
            4 => {
                let root = self.task.root("root");
                let _child = self.task.child("child", &root);
                self.inner(rng, depth).await;
            }
            5 => self.two_calls_at_once(rng).await,
            6 => self.cancelled_call(rng).await,
            7 => self.spawned(rng, depth).await,
            8 => self.first_of_spawned(rng, depth).await,
            9 => self.all_of_spawned(rng, depth).await,
            10 => self.blocking(rng).await,
            11 => self.joined(rng).await,
            12 => self.cancelled(rng, depth).await,
            13 => self.ended_elsewhere(rng).await,
            14 => self.job(rng).await,
            _ => self.outlives(),
        }
    }

    /// A call to the next service, if there is one and not too many were made.
    async fn call(&self, rng: &mut Rng) {
        let (Some(next), Some(call)) = (&self.service.next, self.next_call(rng)) else {
            return;
        };
        report(next.call(call).await);
    }

    fn next_call(&self, rng: &mut Rng) -> Option<Call> {
        self.service.next.as_ref()?;
        self.calls_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .ok()?;
        let active = self.task.active();
        let mut headers = HeaderMap::new();
        let own = self.service.propagates && active.context.is_valid();
        if own {
            let context = Context::new().with_remote_span_context(active.context);
            TraceContextPropagator::new()
                .inject_context(&context, &mut HeaderInjector(&mut headers));
        }
        let carries = if own { "own" } else { "wire" };
        Some(self.call_of(rng, &active.key, carries, headers))
    }

    fn call_of(&self, rng: &mut Rng, from: &str, carries: &str, headers: HeaderMap) -> Call {
        let key = self.task.request.next_key();
        let number = self.task.request.number;
        let seed = rng.u64(..);
        let (unread, body) = (self.unread, self.body);
        Call {
            path_and_query: format!(
                "/{key}/{from}/{carries}/{number}?seed={seed}&unread={unread}&body={body}"
            ),
            headers,
            body: (rng.u32(0..3) == 0).then(|| vec![b'x'; rng.usize(0..=body)]),
            read: rng.u8(0..100) >= unread,
        }
    }

    async fn two_calls_at_once(&self, rng: &mut Rng) {
        let (mut one, mut other) = (rng.fork(), rng.fork());
        tokio::join!(self.call(&mut one), self.call(&mut other));
    }

    async fn cancelled_call(&self, rng: &mut Rng) {
        let patience = Duration::from_micros(rng.u64(0..4000));
        tokio::select! {
            () = self.call(rng) => {}
            () = tokio::time::sleep(patience) => {}
        }
    }

    /// One task, spawned in one of the ways there are, and waited for.
    async fn spawned(&self, rng: &mut Rng, depth: u32) {
        let local = self.local && rng.bool();
        let work = self.spawns(local);
        let mut inner = rng.fork();
        let task = async move {
            if inner.bool() {
                let _root = work.task.root("root");
                work.inner(&mut inner, depth).await;
            } else {
                work.inner(&mut inner, depth).await;
            }
        };
        let task = if local {
            tokio::task::spawn_local(task)
        } else {
            tokio::spawn(task)
        };
        AbortOnDrop(task).joined().await;
    }

    fn spawn_two(&self, rng: &mut Rng, depth: u32) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let local = self.local && rng.bool();
            let work = self.spawns(local);
            let mut inner = rng.fork();
            let task = async move {
                let _root = work.task.root("root");
                work.inner(&mut inner, depth).await;
            };
            if local {
                tasks.spawn_local(task);
            } else {
                tasks.spawn(task);
            }
        }
        tasks
    }

    async fn all_of_spawned(&self, rng: &mut Rng, depth: u32) {
        let mut tasks = self.spawn_two(rng, depth);
        while tasks.join_next().await.is_some() {}
    }

    async fn first_of_spawned(&self, rng: &mut Rng, depth: u32) {
        let mut tasks = self.spawn_two(rng, depth);
        tasks.join_next().await;
        tasks.shutdown().await;
    }

    /// Work that blocks its thread.
    async fn blocking(&self, rng: &mut Rng) {
        let in_place = !self.service.local && rng.bool();
        let task = if in_place {
            self.task.clone()
        } else {
            self.task.spawns()
        };
        let time = Duration::from_micros(rng.u64(0..500));
        let work = move || {
            let root = task.root("root");
            let _child = task.child("child", &root);
            std::thread::sleep(time);
        };
        if in_place {
            tokio::task::block_in_place(work);
        } else if let Err(error) = tokio::task::spawn_blocking(work).await {
            eprintln!("blocking work: {error}");
        }
    }

    /// Roots in branches of one task. Which is the other's parent is decided by who starts first.
    async fn joined(&self, rng: &mut Rng) {
        let branch = async |mut rng: Rng| {
            pause(&mut rng).await;
            let root = self.task.root("root");
            pause(&mut rng).await;
            let _child = self.task.child("child", &root);
            pause(&mut rng).await;
        };
        tokio::join!(branch(rng.fork()), branch(rng.fork()), branch(rng.fork()));
    }

    /// Steps in this task that are given up in the middle, with what they have open.
    async fn cancelled(&self, rng: &mut Rng, depth: u32) {
        let patience = Duration::from_micros(rng.u64(0..4000));
        let mut inner = rng.fork();
        let steps = async {
            let _root = self.task.root("root");
            self.inner(&mut inner, depth).await;
        };
        tokio::select! {
            () = steps => {}
            () = tokio::time::sleep(patience) => {}
        }
    }

    /// A root that another task ends. If this one is given up, it ends at once: what is active must be
    /// certain whenever a call begins.
    async fn ended_elsewhere(&self, rng: &mut Rng) {
        let root = EndOnDrop(Arc::new(Mutex::new(Some(self.task.root("root")))));
        let shared = Arc::clone(&root.0);
        let mut inner = rng.fork();
        let task = tokio::spawn(async move {
            pause(&mut inner).await;
            drop(EndOnDrop(shared));
        });
        AbortOnDrop(task).joined().await;
        drop(self.task.root("root"));
    }

    /// Something that the background worker does.
    async fn job(&self, rng: &mut Rng) {
        let _root = self.task.root("root");
        let (done, is_done) = oneshot::channel();
        let calls = self.service.next.is_some() && rng.bool();
        let job = Job {
            number: self.task.request.number,
            key: self.task.request.next_key(),
            call: calls.then(|| self.call_of(rng, NONE, "wire", HeaderMap::new())),
            done,
        };
        // Only at the end of the service nobody takes it.
        if self.service.worker.send(job).is_ok() {
            let _ = is_done.await;
        }
    }

    /// A task whose span starts long after the answer: no request is open then.
    fn outlives(&self) {
        let tracer = self.service.tracer.clone();
        let key = self.task.request.next_key();
        let number = self.task.request.number;
        let mut handled = self.task.request.handled();
        tokio::spawn(async move {
            use opentelemetry::trace::{Span as _, Tracer};
            // An error says that the handler is gone.
            let _ = handled.changed().await;
            tokio::time::sleep(LATE).await;
            tracer
                .build(numbered(&tracer, "late", number, &key, NONE))
                .end();
        });
    }
}

/// A task that ends with who waits for it.
struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    async fn joined(mut self) {
        if let Err(error) = (&mut self.0).await {
            eprintln!("a task: {error}");
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A span that ends with whichever of its owners goes first.
struct EndOnDrop(Arc<Mutex<Option<Open>>>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Nothing, a turn of the scheduler, or up to 2 ms.
async fn pause(rng: &mut Rng) {
    match rng.u32(0..4) {
        0 => {}
        1 => tokio::task::yield_now().await,
        _ => tokio::time::sleep(Duration::from_micros(rng.u64(0..2000))).await,
    }
}

fn report(called: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = called {
        eprintln!("a call: {error}");
    }
}
