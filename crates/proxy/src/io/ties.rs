//! Connections whose ends are known by certificate, so that those with a quarantined end can be cut.
//!
//! Invariant: a connection is in here from before its first byte is served until just before its socket is closed; what is
//! let in was compared with the newest list under the same lock that replaces the list, so that none slips between. One
//! registry per worker; its lock is contended only by connections that were handed to another task.

use super::sys;
use carrick_pki::Quarantine;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One end of a connection, as its certificate names it.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// URI names.
    pub uris: Vec<String>,
    /// Lower-case hexadecimal.
    pub serial: String,
}

#[derive(Debug, Default)]
struct Inner {
    list: Arc<Quarantine>,
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    ends: [End; 2],
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Ties(Arc<Mutex<Inner>>);

/// A connection's place; it is given up before the socket is closed.
#[derive(Debug)]
pub struct Tie {
    of: Ties,
    at: usize,
}

/// One of the ends is quarantined.
#[derive(Debug, thiserror::Error)]
#[error("TLS_error:|quarantined: {0}:TLS_error_end")]
pub struct Quarantined(pub String);

fn found<'a>(list: &'a Quarantine, ends: &'a [End; 2]) -> Option<&'a str> {
    ends.iter().find_map(|end| list.finds(end.uris.iter().map(String::as_str), &end.serial))
}

impl Ties {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in. `fd` is its socket, which stays open for as long as the [`Tie`] lives.
    ///
    /// # Errors
    /// One of the ends is quarantined.
    pub fn tie(&self, fd: RawFd, ends: [End; 2]) -> Result<Tie, Quarantined> {
        let mut inner = self.lock();
        if let Some(entry) = found(&inner.list, &ends) {
            return Err(Quarantined(entry.to_owned()));
        }
        let entry = Some(Entry { fd, ends });
        let at = match inner.free.pop() {
            Some(at) => {
                if let Some(slot) = inner.slots.get_mut(at) {
                    *slot = entry;
                }
                at
            }
            None => {
                inner.slots.push(entry);
                inner.slots.len().saturating_sub(1)
            }
        };
        Ok(Tie { of: self.clone(), at })
    }

    /// Takes a new list over and cuts every connection with an end on it. How many were cut.
    pub fn enforce(&self, list: &Arc<Quarantine>) -> usize {
        let mut inner = self.lock();
        if Arc::ptr_eq(&inner.list, list) {
            return 0;
        }
        inner.list = Arc::clone(list);
        let all = inner.slots.iter().flatten();
        let cut = all.filter(|entry| found(list, &entry.ends).is_some()).inspect(|entry| sys::cut(entry.fd));
        cut.count()
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        let mut inner = self.of.lock();
        if let Some(slot) = inner.slots.get_mut(self.at) {
            *slot = None;
        }
        inner.free.push(self.at);
        if inner.free.len() == inner.slots.len() {
            inner.slots = Vec::new();
            inner.free = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    fn end(uri: &str, serial: &str) -> End {
        End { uris: vec![uri.to_owned()], serial: serial.to_owned() }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_is_listed_is_cut_and_not_let_in_again() {
        const EVIL: &str = "spiffe://cluster.local/ns/a/sa/evil";
        let ties = Ties::default();
        let (mut good, mut bad, mut own) = (pair(), pair(), pair());
        let _good = ties.tie(good.1.as_raw_fd(), [end("spiffe://cluster.local/ns/a/sa/good", "1"), end("", "2")]);
        let bad_tie = ties.tie(bad.1.as_raw_fd(), [end(EVIL, "3"), end("", "2")]).unwrap();
        let _own = ties.tie(own.1.as_raw_fd(), [end("spiffe://cluster.local/ns/a/sa/good", "1"), end("", "4")]);
        let list = Arc::new(Quarantine::new([EVIL.to_owned()], ["4".to_owned()]));
        assert_eq!(ties.enforce(&list), 2);
        assert_eq!(ties.enforce(&list), 0);
        let mut byte = [0];
        assert!(matches!(bad.1.read(&mut byte), Ok(0)), "our side sees the end at once");
        assert!(matches!(own.1.read(&mut byte), Ok(0)));
        drop(bad_tie);
        drop(bad.1);
        assert!(bad.0.read(&mut byte).is_ok_and(|n| n == 0) || bad.0.take_error().is_ok());
        good.0.set_nonblocking(true).unwrap();
        assert_eq!(good.0.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert!(ties.tie(good.1.as_raw_fd(), [end(EVIL, "9"), End::default()]).is_err());
        assert_eq!(ties.enforce(&Arc::default()), 0);
        assert!(ties.tie(good.1.as_raw_fd(), [end(EVIL, "9"), End::default()]).is_ok());
    }
}
