//! An HTTP/1.1 server by hand, without an asynchronous runtime: one thread for each connection, or
//! one thread with epoll for all of them, and a choice of system calls to read and to write with.
//!
//! `GET /n/{n}` makes one root span, `work`, with the attribute `request.number` = n.
//! `GET /ask/{what}/{n}` asks the peer for `/{what}/{n}` meanwhile, in the same thread, and makes a root `meanwhile`
//! while the answer is on its way.
//! `GET /interrupted` says how many system calls failed with EINTR until now.

mod client;
mod exporter;
mod http;
mod io;
mod server;

use std::error::Error;
use std::io::{self as std_io, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::exporter::HttpExporter;
use crate::io::{Input, Output, Signals};
use crate::server::{Mode, Server};

const USAGE: &str = "\
usage: sockets [--listen ADDRESS] [--mode thread|epoll]
               [--in read|readv|recvfrom|recvmsg] [--out write|writev|sendto|sendmsg|sendfile]
               [--work-us N] [--peek] [--dup] [--block-sigurg] [--peer ADDRESS|unix:PATH]

  --listen ADDRESS  where to listen (default 127.0.0.1:0, port 0 = any)
  --mode NAME       a thread for each connection (default), or one for all with epoll
  --in NAME         the system call that reads (default read)
  --out NAME        the system call that writes (default write; sendfile: write for the head)
  --work-us N       how long a request takes, in microseconds (default 100)
  --peek            read 24 bytes of a request first, then the rest
  --dup             serve a duplicate of each accepted descriptor, and close the original
  --block-sigurg    block SIGURG in all threads
  --peer ADDRESS    whom /ask/{what}/{n} asks
";

struct Options {
    listen: SocketAddr,
    block_sigurg: bool,
    server: server::Options,
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
            block_sigurg: args.contains("--block-sigurg"),
            server: server::Options {
                mode: args.opt_value_from_str("--mode")?.unwrap_or(Mode::Thread),
                input: args.opt_value_from_str("--in")?.unwrap_or(Input::Read),
                output: args.opt_value_from_str("--out")?.unwrap_or(Output::Write),
                work: Duration::from_micros(args.opt_value_from_str("--work-us")?.unwrap_or(100)),
                peek: args.contains("--peek"),
                dup: args.contains("--dup"),
                peer: args.opt_value_from_str("--peer")?,
            },
        };
        match args.finish().as_slice() {
            [] => Ok(options),
            [unknown, ..] => Err(format!("unknown option {unknown:?}").into()),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_args()?;
    // Before there are other threads, which inherit what is blocked here.
    let end = Signals::block(&[libc::SIGTERM, libc::SIGINT])?;
    if options.block_sigurg {
        Signals::block(&[libc::SIGURG])?;
    }

    let resource = Resource::builder().with_service_name("sockets").build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(HttpExporter::from_env()?)
        .with_resource(resource)
        .build();

    let listener = TcpListener::bind(options.listen)?;
    let address = listener.local_addr()?;
    let server = Arc::new(Server::new(options.server, provider.tracer("sockets")));
    thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || {
            if let Err(error) = server.run(&listener) {
                eprintln!("sockets: {error}");
                std::process::exit(1);
            }
        })?;
    let mut stdout = std_io::stdout();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()?;

    end.wait()?;
    if let Err(error) = provider.shutdown() {
        eprintln!("sockets: the last spans were not exported: {error}");
    }
    Ok(())
}
