//! The system calls, each as it is: the standard library would choose for itself.

use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many system calls failed with EINTR.
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);

pub fn interrupted() -> u64 {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The system call that reads.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    Read,
    Readv,
    Recvfrom,
    Recvmsg,
}

impl FromStr for Input {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "read" => Ok(Self::Read),
            "readv" => Ok(Self::Readv),
            "recvfrom" => Ok(Self::Recvfrom),
            "recvmsg" => Ok(Self::Recvmsg),
            _ => Err(format!("no such way to read: {name}")),
        }
    }
}

/// The system call that writes.
#[derive(Clone, Copy, Debug)]
pub enum Output {
    Write,
    Writev,
    Sendto,
    Sendmsg,
    /// For the body; the head goes by `write`.
    Sendfile,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "write" => Ok(Self::Write),
            "writev" => Ok(Self::Writev),
            "sendto" => Ok(Self::Sendto),
            "sendmsg" => Ok(Self::Sendmsg),
            "sendfile" => Ok(Self::Sendfile),
            _ => Err(format!("no such way to write: {name}")),
        }
    }
}

/// Where the second of two buffers begins, for the calls that take several: within a request line.
const FIRST_BUFFER: usize = 10;

impl Input {
    /// Reads once; 0 is the end of the stream.
    pub fn read(self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        let raw = fd.as_raw_fd();
        let (first, second) = buffer.split_at_mut(FIRST_BUFFER.min(buffer.len()));
        let mut parts = [iovec(first), iovec(second)];
        retry(|| {
            // SAFETY: every pointer is to a part of `buffer`, with the length of that part.
            unsafe {
                match self {
                    Self::Read => libc::read(raw, buffer.as_mut_ptr().cast(), buffer.len()),
                    Self::Readv => libc::readv(raw, parts.as_ptr(), 2),
                    Self::Recvfrom => libc::recvfrom(
                        raw,
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        0,
                        ptr::null_mut(),
                        ptr::null_mut(),
                    ),
                    Self::Recvmsg => libc::recvmsg(raw, &mut message(&mut parts), 0),
                }
            }
        })
    }
}

impl Output {
    /// Writes all of head and body, in one call where the call can take both.
    pub fn write(self, fd: BorrowedFd<'_>, head: &[u8], body: &[u8]) -> io::Result<()> {
        match self {
            Self::Write | Self::Sendto => {
                let bytes = [head, body].concat();
                write_all(fd, &[&bytes], |raw, parts| {
                    let (base, length) = (parts[0].iov_base, parts[0].iov_len);
                    // SAFETY: the pointer is to `length` bytes of `bytes`.
                    unsafe {
                        match self {
                            Self::Write => libc::write(raw, base, length),
                            _ => libc::sendto(raw, base, length, NO_SIGNAL, ptr::null(), 0),
                        }
                    }
                })
            }
            Self::Writev | Self::Sendmsg => write_all(fd, &[head, body], |raw, parts| {
                // SAFETY: `parts` are parts of `head` and `body`.
                unsafe {
                    match self {
                        Self::Writev => libc::writev(raw, parts.as_ptr(), parts.len() as i32),
                        _ => libc::sendmsg(raw, &message(parts), NO_SIGNAL),
                    }
                }
            }),
            Self::Sendfile => {
                Self::Write.write(fd, head, &[])?;
                let file = memory_file(body)?;
                let mut offset = 0;
                write_all(fd, &[body], |raw, parts| {
                    // SAFETY: plain descriptors, and a pointer to a local variable.
                    unsafe { libc::sendfile(raw, file.as_raw_fd(), &mut offset, parts[0].iov_len) }
                })
            }
        }
    }
}

const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;

/// Calls `send` with what is left of `parts` until nothing is.
fn write_all(
    fd: BorrowedFd<'_>,
    parts: &[&[u8]],
    mut send: impl FnMut(i32, &mut [libc::iovec]) -> isize,
) -> io::Result<()> {
    let mut left: Vec<&[u8]> = parts.to_vec();
    loop {
        left.retain(|part| !part.is_empty());
        if left.is_empty() {
            return Ok(());
        }
        let mut vectors: Vec<_> = left.iter().copied().map(const_iovec).collect();
        match retry(|| send(fd.as_raw_fd(), &mut vectors)) {
            Ok(mut sent) => {
                for part in &mut left {
                    let taken = sent.min(part.len());
                    *part = &part[taken..];
                    sent -= taken;
                }
            }
            // A connection served by epoll: the answer is finished before the next one is looked at.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(fd)?,
            Err(error) => return Err(error),
        }
    }
}

fn wait_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd.
    retry(|| unsafe { libc::poll(&mut poll, 1, -1) } as isize).map(drop)
}

fn memory_file(content: &[u8]) -> io::Result<std::fs::File> {
    // SAFETY: the name ends in 0; the new descriptor belongs to nobody else.
    let mut file = unsafe {
        let raw = retry(|| libc::memfd_create(c"body".as_ptr(), libc::MFD_CLOEXEC) as isize)?;
        std::fs::File::from_raw_fd(raw as i32)
    };
    file.write_all(content)?;
    Ok(file)
}

/// `accept4(2)`, with `SOCK_NONBLOCK` if it is said.
pub fn accept(listener: BorrowedFd<'_>, nonblocking: bool) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
    let raw = listener.as_raw_fd();
    // SAFETY: no address is asked for; the new descriptor belongs to nobody else.
    unsafe {
        let fd = retry(|| libc::accept4(raw, ptr::null_mut(), ptr::null_mut(), flags) as isize)?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// `dup(2)`, which the standard library does with `fcntl`.
pub fn dup(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the new descriptor belongs to nobody else.
    unsafe {
        let copy = retry(|| libc::dup(fd.as_raw_fd()) as isize)?;
        Ok(OwnedFd::from_raw_fd(copy as i32))
    }
}

/// Answers leave at once, also those that take two calls.
pub fn set_nodelay(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    let (raw, pointer) = (fd.as_raw_fd(), ptr::from_ref(&on).cast());
    // SAFETY: a pointer to a local variable, with its length.
    retry(|| unsafe {
        libc::setsockopt(raw, libc::IPPROTO_TCP, libc::TCP_NODELAY, pointer, length) as isize
    })
    .map(drop)
}

/// `nanosleep(2)`; the standard library would not say when it is interrupted.
pub fn sleep(time: Duration) {
    let mut left = libc::timespec {
        tv_sec: time.as_secs() as libc::time_t,
        tv_nsec: time.subsec_nanos().into(),
    };
    let left = &raw mut left;
    // SAFETY: one local variable, both as what to wait and as what is left of it.
    let slept = retry(|| unsafe { libc::nanosleep(left, left) } as isize);
    debug_assert!(slept.is_ok());
}

/// The descriptors to read from, level-triggered.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the new descriptor belongs to nobody else.
        unsafe {
            let raw = retry(|| libc::epoll_create1(libc::EPOLL_CLOEXEC) as isize)?;
            Ok(Self(OwnedFd::from_raw_fd(raw as i32)))
        }
    }

    /// Watches `fd` until it is closed.
    pub fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: fd.as_raw_fd() as u64,
        };
        let (epoll, raw) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: a pointer to a local variable.
        retry(|| unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, raw, &mut event) } as isize)
            .map(drop)
    }

    /// Waits for some that can be read from.
    pub fn wait(&self) -> io::Result<Vec<i32>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let (epoll, room) = (self.0.as_raw_fd(), events.len() as i32);
        // SAFETY: `events` has room for as many as are asked for.
        let ready =
            retry(|| unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, -1) as isize })?;
        Ok(events[..ready]
            .iter()
            .map(|event| event.u64 as i32)
            .collect())
    }
}

/// Signals that no thread takes unless it waits for them.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them in this thread and in those that it starts.
    pub fn block(numbers: &[i32]) -> io::Result<Self> {
        // SAFETY: the set is initialised before it is used.
        unsafe {
            let mut set = mem::zeroed();
            libc::sigemptyset(&mut set);
            for number in numbers {
                libc::sigaddset(&mut set, *number);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) {
                0 => Ok(Self(set)),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) -> io::Result<()> {
        let mut number = 0;
        // SAFETY: pointers to an initialised set and to a local variable.
        match unsafe { libc::sigwait(&self.0, &mut number) } {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Calls again what a signal interrupted, and counts it.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let result = call();
        if let Ok(result) = usize::try_from(result) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    }
}

fn iovec(part: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    }
}

/// Only for calls that read from it.
fn const_iovec(part: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    }
}

fn message(parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zero is a message without address, data and control data.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message
}
