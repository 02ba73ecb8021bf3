//! Ways to hand the work of a request on to other tasks and threads, and to one that is no request's.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use opentelemetry::Context;
use opentelemetry::trace::{Span as _, TraceContextExt};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{self, JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use crate::telemetry::{Spans, Telemetry};

type Lab = State<Arc<Telemetry>>;
type Number = Path<i64>;

/// How long after its request `outlives-as-task` goes on.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// What a request asks the worker to do, and where it waits for that.
pub struct Job {
    spans: Spans,
    done: oneshot::Sender<()>,
}

/// Serves all requests that ask it, one after the other; was begun by none of them.
pub async fn worker(mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.recv().await {
        let mut root = job.spans.start("job");
        work(1).await;
        root.end();
        // Whoever asked may have gone.
        let _ = job.done.send(());
    }
}

async fn work(millis: u64) {
    task::yield_now().await;
    sleep(Duration::from_millis(millis)).await;
    task::yield_now().await;
}

fn status<E>(result: &Result<(), E>) -> StatusCode {
    match result {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A root, and a child of it.
async fn root_and_child(spans: &Spans, root: &'static str, child: &'static str) {
    let cx = Context::new().with_span(spans.start(root));
    work(1).await;
    spans.start_in(child, &cx).end();
    work(1).await;
    cx.span().end();
}

/// A task that is spawned under a root, and one that is spawned by that under a root of its own.
pub async fn spawn(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "spawn", n);
    let mut outer = spans.start("outer");
    let within = spans.clone();
    let spawned = task::spawn(async move {
        work(1).await;
        root_and_child(&within, "first", "first-child").await;
        let mut inner = within.start("inner");
        let deeper = within.clone();
        let deep = task::spawn(async move { root_and_child(&deeper, "deep", "deep-child").await });
        work(1).await;
        inner.end();
        within.start("last").end();
        // With what came of it: the JoinError of a task that panicked.
        deep.await
    });
    work(1).await;
    outer.end();
    let result = spawned.await.and_then(|deep| deep);
    spans.start("after").end();
    status(&result)
}

/// Three tasks of a set, at once.
pub async fn join_set(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "join-set", n);
    let mut set = JoinSet::new();
    for (name, child) in [("a", "a-child"), ("b", "b-child"), ("c", "c-child")] {
        let within = spans.clone();
        set.spawn(async move { root_and_child(&within, name, child).await });
    }
    let mut result = Ok(());
    while let Some(joined) = set.join_next().await {
        result = result.and(joined);
    }
    status(&result)
}

/// A thread for blocking work with a runtime of its own, whose tasks stay on it.
pub async fn spawn_local(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "spawn-local", n);
    let result = task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let local = LocalSet::new();
        runtime.is_ok_and(|runtime| {
            local.block_on(&runtime, async {
                work(1).await;
                let within = spans.clone();
                let spawned = task::spawn_local(async move {
                    root_and_child(&within, "local", "local-child").await;
                });
                let result = spawned.await;
                spans.start("after").end();
                result.is_ok()
            })
        })
    });
    match result.await {
        Ok(true) => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The same with threads of its own for the tasks.
pub async fn nested_runtime(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "nested-runtime", n);
    let result = task::spawn_blocking(move || {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        runtime.is_ok_and(|runtime| {
            runtime.block_on(async {
                work(1).await;
                let within = spans.clone();
                let spawned = task::spawn(async move {
                    root_and_child(&within, "inside", "inside-child").await;
                });
                let result = spawned.await;
                spans.start("after").end();
                result.is_ok()
            })
        })
    });
    match result.await {
        Ok(true) => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The task goes on where it is; other tasks of its thread go elsewhere.
pub async fn block_in_place(State(lab): Lab, Path(n): Number) -> &'static str {
    let spans = Spans::new(&lab.tracer, "block-in-place", n);
    let mut outer = spans.start("outer");
    task::block_in_place(|| {
        let mut inside = spans.start("inside");
        thread::sleep(Duration::from_millis(2));
        inside.end();
    });
    work(1).await;
    outer.end();
    spans.start("after").end();
    "block-in-place"
}

/// A thread, and one that is started by it.
pub async fn std_thread(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "thread", n);
    let mut outer = spans.start("outer");
    let (done, waits) = oneshot::channel();
    let within = spans.clone();
    thread::spawn(move || {
        let mut inside = within.start("inside");
        thread::sleep(Duration::from_millis(1));
        let deeper = within.clone();
        let deep = thread::spawn(move || deeper.start("deep").end());
        let result = deep.join();
        inside.end();
        within.start("last").end();
        // Fails where the request was given up.
        let _ = done.send(result.is_ok());
    });
    outer.end();
    match waits.await {
        Ok(true) => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Two tasks, of which the one that is slower is aborted while its root is open.
pub async fn select(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "select", n);
    let within = spans.clone();
    let mut slow = task::spawn(async move {
        let _loser = within.start("loser");
        sleep(Duration::from_secs(60)).await;
    });
    let within = spans.clone();
    let fast = task::spawn(async move { root_and_child(&within, "winner", "winner-child").await });
    let branch = async {
        let _cancelled = spans.start("cancelled");
        sleep(Duration::from_secs(60)).await;
    };
    let result = tokio::select! {
        result = fast => result,
        _ = &mut slow => Ok(()),
        () = branch => Ok(()),
    };
    slow.abort();
    let aborted = slow.await.is_err_and(|error| error.is_cancelled());
    spans.start("after").end();
    if aborted {
        status(&result)
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

/// Asks a task that was there before, by a channel.
pub async fn ask_worker(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "worker", n);
    let mut outer = spans.start("outer");
    let (done, waits) = oneshot::channel();
    let sent = lab
        .jobs
        .send(Job {
            spans: spans.clone(),
            done,
        })
        .await;
    let result = waits.await;
    outer.end();
    if sent.is_ok() {
        status(&result)
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

/// A task that goes on after the answer, with a root that is open all the time, and begins others.
pub async fn outlives_as_task(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "outlives-as-task", n);
    let (started, waits) = oneshot::channel();
    task::spawn(async move {
        let cx = Context::new().with_span(spans.start("early"));
        let _ = started.send(());
        sleep(AFTERWARDS).await;
        spans.start("late").end();
        spans.start_in("early-child", &cx).end();
        cx.span().end();
        let within = spans.clone();
        // Spawned when the request had ended.
        let _ = task::spawn(async move { within.start("later").end() }).await;
    });
    status(&timeout(Duration::from_secs(10), waits).await.map(drop))
}

/// A task whose root never ends.
pub async fn never_ends_in_task(State(lab): Lab, Path(n): Number) -> StatusCode {
    let spans = Spans::new(&lab.tracer, "never-ends-in-task", n);
    let spawned = task::spawn(async move { std::mem::forget(spans.start("root")) });
    status(&spawned.await)
}
