//! Connections, and the threads that serve them.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Tracer};
use opentelemetry_sdk::trace::{SdkTracer, Span};

use crate::client::{Client, Peer};
use crate::http::{Answer, CONTINUE, Head};
use crate::io::{Epoll, Input, Output, accept, dup, interrupted, set_nodelay, sleep};

/// How much is read first with `--peek`: as much as an HTTP/2 preface has.
const PEEK: usize = 24;

#[derive(Clone, Copy, Debug)]
pub enum Mode {
    Thread,
    Epoll,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "thread" => Ok(Self::Thread),
            "epoll" => Ok(Self::Epoll),
            _ => Err(format!("no such mode: {name}")),
        }
    }
}

#[derive(Debug)]
pub struct Options {
    pub mode: Mode,
    pub input: Input,
    pub output: Output,
    pub work: Duration,
    pub peek: bool,
    pub dup: bool,
    pub peer: Option<Peer>,
}

pub struct Server {
    options: Options,
    client: Option<Client>,
    tracer: SdkTracer,
}

struct Connection {
    fd: OwnedFd,
    /// What was read and not served yet.
    unread: Vec<u8>,
    said_continue: bool,
}

/// What becomes of a connection.
#[derive(PartialEq)]
enum Next {
    ReadMore,
    Close,
}

/// The client may be gone, or there may be no descriptor left: then some may be closed soon.
fn not_accepted(error: &io::Error) {
    eprintln!("sockets: accept: {error}");
    thread::sleep(Duration::from_millis(10));
}

impl Server {
    pub fn new(options: Options, tracer: SdkTracer) -> Self {
        let client = options
            .peer
            .clone()
            .map(|peer| Client::new(peer, options.input, options.output));
        Self {
            options,
            client,
            tracer,
        }
    }

    /// Serves for ever.
    pub fn run(self: &Arc<Self>, listener: &TcpListener) -> io::Result<()> {
        match self.options.mode {
            Mode::Thread => self.run_threads(listener),
            Mode::Epoll => self.run_epoll(listener),
        }
    }

    fn run_threads(self: &Arc<Self>, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut connection = match self.accept(listener) {
                Ok(connection) => connection,
                Err(error) => {
                    not_accepted(&error);
                    continue;
                }
            };
            let server = Arc::clone(self);
            thread::Builder::new()
                .name("connection".to_owned())
                .spawn(move || {
                    // An error is that of one connection, which it ends.
                    while let Ok(Next::ReadMore) = server.turn(&mut connection) {}
                })?;
        }
    }

    fn run_epoll(&self, listener: &TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(listener.as_fd())?;
        let mut connections = HashMap::new();
        loop {
            for ready in epoll.wait()? {
                if ready == listener.as_raw_fd() {
                    match self.accept(listener) {
                        Ok(connection) => {
                            epoll.add(connection.fd.as_fd())?;
                            connections.insert(connection.fd.as_raw_fd(), connection);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => not_accepted(&error),
                    }
                } else if let Some(connection) = connections.get_mut(&ready) {
                    match self.turn(connection) {
                        Ok(Next::ReadMore) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Ok(Next::Close) | Err(_) => drop(connections.remove(&ready)),
                    }
                }
            }
        }
    }

    fn accept(&self, listener: &TcpListener) -> io::Result<Connection> {
        let nonblocking = matches!(self.options.mode, Mode::Epoll);
        let accepted = accept(listener.as_fd(), nonblocking)?;
        let fd = match self.options.dup {
            true => dup(accepted.as_fd())?,
            false => accepted,
        };
        set_nodelay(fd.as_fd())?;
        Ok(Connection {
            fd,
            unread: Vec::new(),
            said_continue: false,
        })
    }

    /// Reads once and serves every request that is complete then.
    fn turn(&self, connection: &mut Connection) -> io::Result<Next> {
        let mut buffer = [0; 16 * 1024];
        let room = match self.options.peek && connection.unread.is_empty() {
            true => &mut buffer[..PEEK],
            false => &mut buffer[..],
        };
        match self.options.input.read(connection.fd.as_fd(), room)? {
            0 => return Ok(Next::Close),
            length => connection.unread.extend_from_slice(&room[..length]),
        }
        loop {
            let head = match Head::parse(&connection.unread) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(Next::ReadMore),
                Err(malformed) => {
                    let answer = Answer::new(malformed.status(), String::new(), false);
                    self.send(connection, &answer)?;
                    return Ok(Next::Close);
                }
            };
            let length = head.length.saturating_add(head.body_length);
            if connection.unread.len() < length {
                if head.expects_continue && !connection.said_continue {
                    connection.said_continue = true;
                    self.options
                        .output
                        .write(connection.fd.as_fd(), CONTINUE, &[])?;
                }
                return Ok(Next::ReadMore);
            }
            connection.unread.drain(..length);
            connection.said_continue = false;

            self.serve(connection, &head)?;
            if !head.keep_alive {
                return Ok(Next::Close);
            }
        }
    }

    /// Answers one request, with a span around its work if it has a number.
    fn serve(&self, connection: &Connection, head: &Head) -> io::Result<()> {
        let number = head.path.strip_prefix("/n/").and_then(|n| n.parse().ok());
        let (status, body) = match (number, head.path.as_str()) {
            (Some(number), _) => {
                self.work(number);
                ("200 OK", format!("{number}\n"))
            }
            (None, path) if path.starts_with("/ask/") => match self.ask(path) {
                Ok(status) => ("200 OK", format!("{status}\n")),
                Err(error) => ("502 Bad Gateway", format!("{error}\n")),
            },
            (None, "/healthz") => ("200 OK", "ok\n".to_owned()),
            (None, "/interrupted") => ("200 OK", format!("{}\n", interrupted())),
            _ => ("404 Not Found", "not found\n".to_owned()),
        };
        let mut answer = Answer::new(status, body, head.keep_alive);
        if head.is_head_request {
            answer.body.clear();
        }
        self.send(connection, &answer)
    }

    fn work(&self, number: i64) {
        let mut span = self.span("work", number);
        if !self.options.work.is_zero() {
            sleep(self.options.work);
        }
        span.end();
    }

    /// Asks the peer for what `/ask/{what}/{n}` says; the status of its answer.
    fn ask(&self, path: &str) -> io::Result<u16> {
        let parts = path
            .strip_prefix("/ask/")
            .and_then(|rest| rest.split_once('/'));
        let parsed = parts.and_then(|(what, n)| Some((what, n.parse::<i64>().ok()?)));
        let (Some((what, number)), Some(client)) = (parsed, &self.client) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut work = self.span("work", number);
        let answer = client.ask(what, number, || self.span("meanwhile", number).end());
        work.end();
        answer
    }

    fn span(&self, name: &'static str, number: i64) -> Span {
        let mut span = self.tracer.start(name);
        span.set_attribute(KeyValue::new("request.number", number));
        span
    }

    fn send(&self, connection: &Connection, answer: &Answer) -> io::Result<()> {
        let fd = connection.fd.as_fd();
        self.options.output.write(fd, &answer.head, &answer.body)
    }
}
