//! What left a list of objects and what came to it.
//!
//! Invariant: an object that stayed the same value (`Arc`) at its place is in neither list. Lists in the order of their names give the
//! smallest answer; in any other order the answer is larger and still true, as long as what left is taken out before what came is put in.

use std::{cmp::Ordering, sync::Arc};

use carrick_api::Meta;

#[derive(Debug)]
pub(crate) struct Difference<'a, T> {
    pub gone: Vec<&'a Arc<T>>,
    pub come: Vec<&'a Arc<T>>,
}

pub(crate) fn difference<'a, T>(
    before: &'a [Arc<T>],
    now: &'a [Arc<T>],
    meta: impl Fn(&T) -> &Meta,
) -> Difference<'a, T> {
    let mut found = Difference { gone: Vec::new(), come: Vec::new() };
    let (mut old, mut new) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                old.next();
                new.next();
                continue;
            }
            (Some(a), Some(b)) => {
                let (a, b) = (meta(a), meta(b));
                (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name))
            }
        };
        if order != Ordering::Greater {
            found.gone.extend(old.next());
        }
        if order != Ordering::Less {
            found.come.extend(new.next());
        }
    }
}
