//! A worker's thread: its event loop, the commands it takes, the sockets it accepts on.
//!
//! Invariant: what crosses threads is the command channel, the shared configuration and counters. A connection stays on
//! the worker that accepted it.

use crate::local::Local;
use crate::shared::Shared;
use crate::stats::WorkerStats;
use crate::worker::Worker;
use crate::{connection, deliver};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// What the engine asks of a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept on this socket, instead of any other of this address.
    Listen(SocketAddr, TcpListener),
    /// Stop accepting here.
    Unlisten(SocketAddr),
    /// The configuration was replaced.
    Swapped,
    /// End in order.
    Drain { deadline: Duration, done: oneshot::Sender<()> },
    /// End now.
    Stop,
}

/// Time between sweeps of idle pooled connections.
const SWEEP: Duration = Duration::from_secs(5);

/// The body of a worker's thread.
pub(crate) fn run(shared: Arc<Shared>, stats: Arc<WorkerStats>, commands: mpsc::UnboundedReceiver<Command>) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(2))
        .build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => runtime.block_on(serve(shared, stats, commands)),
        Err(e) => tracing::error!("a proxy worker has no event loop: {e}"),
    }
}

async fn serve(shared: Arc<Shared>, stats: Arc<WorkerStats>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut secrets = shared.secrets.clone();
    secrets.mark_changed();
    let worker = Worker::new(Local::new(shared, stats));
    let mut door = Door { worker: Rc::clone(&worker), accepting: HashMap::new() };
    worker.spawn(deliver::run(Rc::clone(&worker)));
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Listen(address, socket)) => door.listen(address, socket),
                Some(Command::Unlisten(address)) => door.unlisten(address),
                Some(Command::Swapped) => {
                    worker.live();
                }
                Some(Command::Drain { deadline, done }) => {
                    door.close();
                    let draining = Rc::clone(&worker);
                    worker.spawn(async move {
                        draining.drain(deadline).await;
                        deliver::last(&draining).await;
                        let _ = done.send(());
                    });
                }
                Some(Command::Stop) | None => return,
            },
            Ok(()) = secrets.changed() => {
                let list = Arc::clone(&secrets.borrow_and_update().quarantine);
                match worker.ties.enforce(&list) {
                    0 => {}
                    cut => tracing::warn!(connections = cut, "cut: an end of each is quarantined"),
                }
            }
            _ = sweep.tick() => worker.sweep(),
        }
    }
}

/// The listening sockets.
struct Door {
    worker: Rc<Worker>,
    accepting: HashMap<SocketAddr, JoinHandle<()>>,
}

impl Door {
    fn listen(&mut self, address: SocketAddr, socket: TcpListener) {
        let socket = match tokio::net::TcpListener::from_std(socket) {
            Ok(s) => s,
            Err(e) => {
                tracing::error!(%address, "cannot accept: {e}");
                return;
            }
        };
        let task = self.worker.spawn(accept(Rc::clone(&self.worker), address, socket));
        if let Some(old) = self.accepting.insert(address, task) {
            old.abort();
        }
    }

    fn unlisten(&mut self, address: SocketAddr) {
        if let Some(task) = self.accepting.remove(&address) {
            task.abort();
        }
    }

    fn close(&mut self) {
        for (_, task) in self.accepting.drain() {
            task.abort();
        }
    }
}

async fn accept(worker: Rc<Worker>, address: SocketAddr, socket: tokio::net::TcpListener) {
    let mut pause = Duration::from_millis(5);
    loop {
        match socket.accept().await {
            Ok((tcp, peer)) => {
                pause = Duration::from_millis(5);
                worker.spawn(connection::run(Rc::clone(&worker), address, tcp, peer));
            }
            // The client left while it waited: nothing to do with us.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR)) => {}
            // No descriptors or memory: accepting at once again would only burn time.
            Err(e) => {
                tracing::warn!(%address, "cannot accept: {e}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}
