//! The `date` of responses that come without one.
//!
//! Invariant: the text is made once a second for each thread.

use carrick_proxy_core::format::time;
use http::HeaderValue;
use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

thread_local! {
    static NOW: RefCell<(Option<Instant>, String)> = const { RefCell::new((None, String::new())) };
}

/// Appends the date of now, as of at most a second ago.
pub fn write(out: &mut Vec<u8>) {
    now(|text| out.extend_from_slice(text.as_bytes()));
}

/// The same as a value.
pub fn value() -> HeaderValue {
    now(HeaderValue::from_str).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn now<R>(with: impl FnOnce(&str) -> R) -> R {
    NOW.with_borrow_mut(|(made, text)| {
        let now = Instant::now();
        if made.is_none_or(|made| now.duration_since(made) >= Duration::from_millis(500)) {
            *made = Some(now);
            text.clear();
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            time::write(since, "%a, %d %b %Y %H:%M:%S GMT", text);
        }
        with(text)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_date_has_its_length() {
        let mut out = Vec::new();
        super::write(&mut out);
        assert_eq!(out.len(), "Sun, 06 Nov 1994 08:49:37 GMT".len());
        assert!(out.ends_with(b" GMT"));
        assert_eq!(super::value().len(), out.len());
    }
}
