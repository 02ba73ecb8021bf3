//! The smallest HTTP service: hyper, no framework, no spans. Every GET is answered with `ok`.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

const USAGE: &str = "\
usage: minimal [--listen ADDRESS] [--workers N]

  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --workers N       worker threads (default: one for each core)
";

struct Options {
    listen: SocketAddr,
    workers: Option<usize>,
}

impl Options {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        let mut args = pico_args::Arguments::from_env();
        if args.contains("--help") {
            print!("{USAGE}");
            std::process::exit(0);
        }
        let options = Self {
            listen: args
                .opt_value_from_str("--listen")?
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            workers: args.opt_value_from_str("--workers")?,
        };
        match args.finish().as_slice() {
            [] => Ok(options),
            [unknown, ..] => Err(format!("unknown option {unknown:?}").into()),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    let mut builder = runtime::Builder::new_multi_thread();
    if let Some(workers) = options.workers {
        builder.worker_threads(workers);
    }
    builder.enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = serve(options.listen) => result?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

async fn serve(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;

    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("minimal: accept: {error}");
                // There may be no descriptor left: some may be closed soon.
                time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        tokio::spawn(async move {
            // An error is the client's: it closed, or did not speak HTTP.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"ok")));
    if request.method() != Method::GET && request.method() != Method::HEAD {
        *response.body_mut() = Full::default();
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    }
    Ok(response)
}
