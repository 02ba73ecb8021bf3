//! Requests to a peer, sent and answered in the thread that serves the request which is their reason.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use crate::http::ResponseHead;
use crate::io::{Input, Output};

/// Whom the requests are sent to: `ADDRESS:PORT` or `unix:PATH`.
#[derive(Clone, Debug)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("no address: {text}")),
        }
    }
}

impl Peer {
    fn connect(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Tcp(address) => TcpStream::connect(address)?.into(),
            Self::Unix(path) => UnixStream::connect(path)?.into(),
        })
    }

    fn host(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

pub struct Client {
    peer: Peer,
    input: Input,
    output: Output,
    /// A connection whose last answer was read to its end.
    idle: Mutex<Option<OwnedFd>>,
}

const BODY: &[u8] = b"body\n";

impl Client {
    pub fn new(peer: Peer, input: Input, output: Output) -> Self {
        Self {
            peer,
            input,
            output,
            idle: Mutex::new(None),
        }
    }

    /// Asks for `/{what}/{number}`, calls `meanwhile`, and returns the status of the answer once that
    /// was read to its end.
    ///
    /// The request is a HEAD, a POST with a body that waits for `100 Continue`, or a GET, as `what` is `head`,
    /// `continue` or anything else.
    pub fn ask(&self, what: &str, number: i64, meanwhile: impl FnOnce()) -> io::Result<u16> {
        let pooled = self.idle.lock().expect("nobody panics").take();
        let connection = pooled.map_or_else(|| self.peer.connect(), Ok)?;
        let fd = connection.as_fd();
        let (method, more) = match what {
            "head" => ("HEAD", ""),
            "continue" => ("POST", "Expect: 100-continue\r\nContent-Length: 5\r\n"),
            _ => ("GET", ""),
        };
        let host = self.peer.host();
        let head = format!("{method} /{what}/{number} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
        self.output.write(fd, head.as_bytes(), &[])?;
        meanwhile();

        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = self.input.read(fd, &mut buffer)?;
            read.extend_from_slice(&buffer[..length]);
            while let Some(answer) = ResponseHead::parse(&read, method == "HEAD") {
                if answer.status < 200 {
                    read.drain(..answer.length);
                    if answer.status == 100 {
                        self.output.write(fd, BODY, &[])?;
                    }
                    continue;
                }
                let complete = answer.body_length.map(|body| answer.length + body);
                if complete.is_some_and(|complete| read.len() >= complete) {
                    *self.idle.lock().expect("nobody panics") = Some(connection);
                    return Ok(answer.status);
                }
                if complete.is_none() && length == 0 {
                    return Ok(answer.status);
                }
                break;
            }
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
