//! What the services share: their command line, their runtime, their ready line and their end.

use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use pico_args::Arguments;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// How long requests in progress may take once the service was told to end.
const GRACE: Duration = Duration::from_secs(2);

/// What `read` makes of the command line, of which nothing may be left. `--help` prints `usage` and ends
/// the process.
pub fn options<T>(
    usage: &str,
    read: impl FnOnce(&mut Arguments) -> Result<T, Box<dyn Error>>,
) -> Result<T, Box<dyn Error>> {
    let mut arguments = Arguments::from_env();
    if arguments.contains("--help") {
        print!("{usage}");
        std::process::exit(0);
    }
    let options = read(&mut arguments)?;
    match arguments.finish().as_slice() {
        [] => Ok(options),
        [unknown, ..] => Err(format!("unknown option {unknown:?}").into()),
    }
}

/// `--listen`, or any port of 127.0.0.1.
pub fn listen_address(arguments: &mut Arguments) -> Result<SocketAddr, pico_args::Error> {
    let address = arguments.opt_value_from_str("--listen")?;
    Ok(address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))))
}

/// On which threads a service's tasks run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Threads {
    Current,
    /// So many worker threads; `None` is tokio's default, one for each core.
    Workers(Option<usize>),
}

/// A tokio runtime on these threads.
pub fn runtime(threads: Threads) -> io::Result<Runtime> {
    let mut builder = match threads {
        Threads::Current => Builder::new_current_thread(),
        Threads::Workers(_) => Builder::new_multi_thread(),
    };
    if let Threads::Workers(Some(workers)) = threads {
        builder.worker_threads(workers);
    }
    builder.enable_all().build()
}

/// Serves `router` until SIGTERM or SIGINT, then lets requests in progress finish.
pub async fn serve(listen: SocketAddr, router: Router) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let ended = ended()?;
    announce(listener.local_addr()?)?;
    // Each chunk of an answer leaves at once. Where that fails, the connection is gone anyhow.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));

    let (end, mut end_seen) = tokio::sync::watch::channel(());
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // An error says that the sender is gone, which is the signal as well.
        let _ = end_seen.changed().await;
    });
    tokio::select! {
        result = server => result,
        // Connections that never end (a WebSocket, say) must not hold the service.
        () = async {
            ended.await;
            drop(end);
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
    }
}

/// Says on standard output that connections are accepted, and where.
pub fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

/// Ready when SIGTERM or SIGINT arrives; both are caught from this call on.
pub fn ended() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
