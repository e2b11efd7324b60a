//! The server as its clients see it: kubectl, plain HTTP, watchers that come and go, and a process that is killed.
//!
//! Every test has a server of its own, on a free port and in a folder of its own.

mod bench;
mod checker;
mod conversion;
mod crash;
mod disk;
mod etcd;
mod eviction;
mod helm;
mod hostile;
mod http;
mod judged;
mod kubectl;
mod same;
mod transcript;
mod watches;
mod webhooks;
