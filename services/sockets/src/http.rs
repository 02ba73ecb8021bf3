//! As much of HTTP/1.1 as the server and its client need.

use std::str;

/// What a server says to a client that waits for leave to send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const MAX_HEAD: usize = 64 * 1024;

/// The head of a request.
#[derive(Debug, Eq, PartialEq)]
pub struct Head {
    pub length: usize,
    pub body_length: usize,
    pub is_head_request: bool,
    pub path: String,
    pub keep_alive: bool,
    pub expects_continue: bool,
}

/// Why the bytes are no request that can be served; the connection is closed after the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    Request,
    HeadTooLarge,
    TransferEncoding,
}

impl Malformed {
    pub fn status(self) -> &'static str {
        match self {
            Self::Request => "400 Bad Request",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::TransferEncoding => "501 Not Implemented",
        }
    }
}

impl Head {
    /// Parses the head at the start of `bytes`; `None` when more bytes are needed.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return match bytes.len() {
                0..MAX_HEAD => Ok(None),
                _ => Err(Malformed::HeadTooLarge),
            };
        };
        let text = str::from_utf8(&bytes[..end]).map_err(|_| Malformed::Request)?;
        let mut lines = text.split("\r\n");
        let mut request_line = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version), None) = (
            request_line.next(),
            request_line.next(),
            request_line.next(),
            request_line.next(),
        ) else {
            return Err(Malformed::Request);
        };

        let mut head = Self {
            length: end + 4,
            body_length: 0,
            is_head_request: method == "HEAD",
            path: target.split('?').next().unwrap_or_default().to_owned(),
            keep_alive: version != "HTTP/1.0",
            expects_continue: false,
        };
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(Malformed::Request)?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    head.body_length = value.parse().map_err(|_| Malformed::Request)?;
                }
                "connection" if value.eq_ignore_ascii_case("close") => head.keep_alive = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => head.keep_alive = true,
                "expect" => head.expects_continue = value.eq_ignore_ascii_case("100-continue"),
                "transfer-encoding" => return Err(Malformed::TransferEncoding),
                _ => {}
            }
        }
        Ok(Some(head))
    }
}

/// Head and body of an answer.
pub struct Answer {
    pub head: Vec<u8>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: &str, body: String, keep_alive: bool) -> Self {
        let connection = if keep_alive {
            ""
        } else {
            "Connection: close\r\n"
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{connection}\r\n",
            body.len(),
        );
        Self {
            head: head.into_bytes(),
            body: body.into_bytes(),
        }
    }
}

/// The head of a response.
#[derive(Debug, Eq, PartialEq)]
pub struct ResponseHead {
    pub length: usize,
    pub status: u16,
    /// `None`: until the connection is closed.
    pub body_length: Option<usize>,
}

impl ResponseHead {
    /// Parses the head at the start of `bytes`; `None` when there is none yet.
    pub fn parse(bytes: &[u8], to_head_request: bool) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let text = str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = text.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let body_length = match status {
            100..200 | 204 | 304 => Some(0),
            _ if to_head_request => Some(0),
            _ => lines
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, value)| value.trim().parse().ok()),
        };
        Some(Self {
            length: end + 4,
            status,
            body_length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_in_pieces_needs_more() {
        let request = b"GET /n/1 HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..request.len() {
            assert_eq!(Head::parse(&request[..end]), Ok(None));
        }
        let head = Head::parse(request).unwrap().unwrap();
        assert_eq!(head.length, request.len());
        assert!(head.keep_alive);
    }

    #[test]
    fn headers_are_heeded() {
        let request = b"POST /n/2?x=y HTTP/1.1\r\ncontent-length: 12\r\nEXPECT: 100-continue\r\n\
                        Connection: Close\r\n\r\nbody";
        let head = Head::parse(request).unwrap().unwrap();
        assert_eq!((head.path.as_str(), head.body_length), ("/n/2", 12));
        assert!(head.expects_continue && !head.keep_alive);
        assert_eq!(head.length, request.len() - 4);
    }

    #[test]
    fn what_cannot_be_served_is_malformed() {
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(Head::parse(chunked), Err(Malformed::TransferEncoding));
        assert_eq!(Head::parse(b"GET /\r\n\r\n"), Err(Malformed::Request));
        assert_eq!(Head::parse(&[b'a'; MAX_HEAD]), Err(Malformed::HeadTooLarge));
    }
}
