//! `GET /work/{number}` by hyper, a task for each connection, on several threads.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// More threads than the tests' machines have cores, so that tasks move.
const THREADS: usize = 4;

pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
}

/// Waits 1 to 3 ms: the task may go on in another thread.
pub async fn pause(number: i64) {
    let milliseconds = 1 + number.unsigned_abs() % 3;
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// Says where it listens, and does `work` for each request until SIGTERM.
pub async fn serve<W, F>(work: W) -> io::Result<()>
where
    W: Fn(i64) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = terminate.recv() => return Ok(()),
        };
        stream.set_nodelay(true)?;
        let work = work.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &work));
            // An error is the client's: it closed, or did not speak HTTP.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer<W, F>(
    request: Request<Incoming>,
    work: &W,
) -> Result<Response<Empty<Bytes>>, Infallible>
where
    W: Fn(i64) -> F,
    F: Future<Output = ()>,
{
    let number = request.uri().path().strip_prefix("/work/");
    let mut response = Response::new(Empty::new());
    match number.and_then(|number| number.parse().ok()) {
        Some(number) => work(number).await,
        None => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    Ok(response)
}
