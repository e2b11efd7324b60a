//! Edge-triggered epoll, and sockets that never wait. The one file here with `unsafe` code.
//!
//! Invariant: a descriptor is watched from when it is added until it is closed; which one an event is about is the caller's number.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// What happened to a watched descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    /// The number it was added with.
    pub(crate) number: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has ended its side: what is there is to be read to the end.
    pub(crate) ended: bool,
}

pub(crate) struct Epoll {
    fd: OwnedFd,
    raw: Vec<libc::epoll_event>,
}

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const GONE: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP) as u32;
const ERROR: u32 = libc::EPOLLERR as u32;
const EDGE: u32 = libc::EPOLLET as u32;

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointer; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, raw: vec![libc::epoll_event { events: 0, u64: 0 }; 512] })
    }

    /// Watches a socket for everything, at edges.
    pub(crate) fn add(&self, socket: &impl AsRawFd, number: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: IN | OUT | libc::EPOLLRDHUP as u32 | EDGE, u64: number };
        // SAFETY: both descriptors are open, and `event` lives through the call.
        let done = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for events, for so long at most, and puts them into `events`.
    pub(crate) fn wait(&mut self, events: &mut Vec<Event>, within: Option<Duration>) -> io::Result<()> {
        events.clear();
        let room = i32::try_from(self.raw.len()).unwrap_or(i32::MAX);
        let (fd, raw) = (self.fd.as_raw_fd(), self.raw.as_mut_ptr());
        let count = match within {
            // SAFETY: `raw` has room for `room` events.
            None => unsafe { libc::epoll_wait(fd, raw, room, -1) },
            Some(within) => {
                let within = libc::timespec {
                    tv_sec: libc::time_t::try_from(within.as_secs()).unwrap_or(libc::time_t::MAX),
                    tv_nsec: libc::c_long::from(within.subsec_nanos()),
                };
                let none: *const libc::sigset_t = std::ptr::null();
                // SAFETY: `raw` has room for `room` events, the time lives through the call, and there is no mask. `epoll_wait` itself
                // counts in milliseconds.
                let count = unsafe { libc::syscall(libc::SYS_epoll_pwait2, fd, raw, room, &raw const within, none, 0) };
                i32::try_from(count).unwrap_or(-1)
            }
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        let all = self.raw.iter().take(usize::try_from(count).unwrap_or(0));
        events.extend(all.map(|event| {
            let bits = event.events;
            Event {
                number: event.u64,
                readable: bits & (IN | GONE | ERROR) != 0,
                writable: bits & OUT != 0,
                ended: bits & GONE != 0,
            }
        }));
        Ok(())
    }
}

/// Has this thread's timers fire when they are due, and not up to 50 µs later.
pub(crate) fn exact_timers() {
    // SAFETY: no pointer; where it is refused timers are as they were.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// A socket that accepts without waiting.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// A connection on its way.
pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// The next connection that waits at `listener`, if one does.
pub(crate) fn accept(listener: &TcpListener) -> Option<TcpStream> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(true).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}
