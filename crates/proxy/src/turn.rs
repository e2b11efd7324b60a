//! Turns of a worker's tasks.
//!
//! Invariant: who gives way goes on in the same round, behind all who are ready now. What has come is read before anything is written:
//! whoever waits for it on another processor is woken once, and finds the rest when it looks again.

use std::future::poll_fn;
use std::task::Poll;

/// Lets the others that are ready go first.
pub(crate) async fn give_way() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[tokio::test]
    async fn all_read_before_anybody_writes() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let set = tokio::task::LocalSet::new();
        let all = [("a", Rc::clone(&seen)), ("b", Rc::clone(&seen))].map(|(name, seen)| {
            set.spawn_local(async move {
                seen.borrow_mut().push(("reads", name));
                give_way().await;
                seen.borrow_mut().push(("writes", name));
            })
        });
        set.await;
        for task in all {
            task.await.unwrap();
        }
        assert_eq!(*seen.borrow(), [("reads", "a"), ("reads", "b"), ("writes", "a"), ("writes", "b")]);
    }
}
