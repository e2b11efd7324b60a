//! Lets hyper spawn on this worker.
//!
//! Invariant: what is spawned stays on the thread, so it need not be `Send`.

use std::future::Future;

/// Spawns locally.
#[derive(Debug, Clone, Copy)]
pub struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
