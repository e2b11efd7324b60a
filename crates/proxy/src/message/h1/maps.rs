//! Maps of fields that are used again, so that messages between HTTP/1 and HTTP/1 need no new ones.
//!
//! Invariant: a map that is taken is empty. A thread keeps few of them, and none that a message of many fields has made large.

use http::HeaderMap;
use std::cell::RefCell;

/// Maps that a thread keeps.
const KEPT: usize = 16;
/// Fields that a kept map has room for, at most.
const MOST: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map with room for so many fields.
pub fn take(fields: usize) -> HeaderMap {
    let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
    spare.filter(|map| map.capacity() >= fields).unwrap_or_else(|| HeaderMap::with_capacity(fields))
}

/// Takes back what a message needs no more.
pub fn give_back(mut map: HeaderMap) {
    if map.capacity() > MOST {
        return;
    }
    map.clear();
    // A thread that is ending has no use for it.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < KEPT {
            spare.push(map);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HOST;

    #[test]
    fn a_map_comes_back_empty_and_a_large_one_not_at_all() {
        let mut map = take(8);
        map.insert(HOST, "a".parse().unwrap());
        let room = map.capacity();
        give_back(map);
        let again = take(room);
        assert!(again.is_empty());
        assert_eq!(again.capacity(), room);
        give_back(HeaderMap::with_capacity(10 * MOST));
        assert!(take(1).capacity() < 10 * MOST);
        assert!(take(MOST + 1).capacity() > MOST);
    }
}
