//! The engine on loopback: real sockets and handshakes, configuration built by hand, no control plane.
//!
//! Invariant: waits are for conditions with a bound; every port is the kernel's choice.

mod balancing;
mod codec;
mod drain;
mod filters;
mod gateway;
mod h2_frames;
mod h2_limits;
mod hostile;
mod lab;
mod mtls;
mod plain;
mod reach;
mod redirect;
mod retry_safe;
mod streams;
mod support;
mod telemetry;
