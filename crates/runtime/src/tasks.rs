//! Tasks with a name and an owner.
//!
//! Invariant: a task ends no later than its [`TaskSet`] is dropped, and a panic in it is logged with its name.
//! Restarting is the owner's decision.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tracing::{debug, error};

/// Owns a group of tasks; aborts them when dropped.
#[derive(Debug, Default)]
pub struct TaskSet {
    set: JoinSet<()>,
    names: HashMap<Id, String>,
}

/// Why a task ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It returned.
    Returned,
    /// It panicked (already logged).
    Panicked,
    /// It was aborted.
    Aborted,
}

impl TaskSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `future` under `name`. Must be called within a tokio runtime.
    pub fn spawn(&mut self, name: impl Into<String>, future: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        debug!(task = %name, "started");
        let handle = self.set.spawn(future);
        self.names.insert(handle.id(), name);
    }

    /// The number of tasks whose end has not been taken by [`TaskSet::join_next`].
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Waits for the next task to end; `None` when there is none. Cancel safe.
    pub async fn join_next(&mut self) -> Option<(String, Ended)> {
        let result = self.set.join_next_with_id().await?;
        let (id, ended) = match result {
            Ok((id, ())) => (id, Ended::Returned),
            Err(err) if err.is_panic() => (err.id(), Ended::Panicked),
            Err(err) => (err.id(), Ended::Aborted),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        match ended {
            Ended::Panicked => error!(task = %name, "panicked"),
            _ => debug!(task = %name, ?ended, "ended"),
        }
        Some((name, ended))
    }

    /// Waits at most `deadline` for all tasks, then aborts the rest.
    pub async fn finish(mut self, deadline: Duration) {
        let all = async { while self.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, all).await.is_err() {
            self.set.abort_all();
            while self.join_next().await.is_some() {}
        }
    }

    /// Aborts every task and waits for their ends.
    pub async fn abort(mut self) {
        self.set.abort_all();
        while self.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_panics_by_name() {
        let mut set = TaskSet::new();
        set.spawn("boom", async { panic!("on purpose") });
        assert_eq!(set.join_next().await, Some(("boom".to_owned(), Ended::Panicked)));
        assert_eq!(set.join_next().await, None);
    }

    #[tokio::test]
    async fn dropping_the_set_aborts() {
        let (tx, mut rx) = tokio::sync::mpsc::channel::<()>(1);
        let mut set = TaskSet::new();
        set.spawn("holds", async move {
            let _tx = tx;
            std::future::pending::<()>().await;
        });
        drop(set);
        assert_eq!(rx.recv().await, None);
    }

    #[tokio::test]
    async fn finish_aborts_after_the_deadline() {
        let mut set = TaskSet::new();
        set.spawn("forever", std::future::pending());
        set.finish(Duration::from_millis(20)).await;
    }
}
