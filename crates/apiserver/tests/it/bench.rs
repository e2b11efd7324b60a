//! A server in this process, for one test.

use carrick_apiserver::{ApiOptions, ApiServer};
use std::time::Duration;
use tempfile::TempDir;

/// A running server and its folder.
pub struct Bench {
    pub server: ApiServer,
    pub folder: TempDir,
}

impl Bench {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut ApiOptions)) -> Self {
        // In memory where there is such a folder: only the crash tests are about the disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut options = ApiOptions::new(folder.path(), 0);
        change(&mut options);
        let server = ApiServer::start(options).await.unwrap();
        Self { server, folder }
    }

    /// The same folder, with another server on it.
    pub async fn again(self) -> Self {
        let Self { server, folder } = self;
        server.drain(Duration::from_secs(5)).await;
        let server = ApiServer::start(ApiOptions::new(folder.path(), 0)).await.unwrap();
        Self { server, folder }
    }

    pub async fn stop(self) {
        self.server.drain(Duration::from_secs(5)).await;
    }
}
