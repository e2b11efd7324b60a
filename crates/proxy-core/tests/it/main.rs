//! Tests of the decisions: from messages, and from rendered resources of small worlds.
//!
//! Invariant: nothing here reads a clock, a socket or a random source; property tests print their seed on failure.

mod balance;
mod chains;
mod footprint;
mod hygiene;
mod message;
mod outcomes;
mod policies;
mod property;
mod reject;
mod rendered;
mod routes;
mod store;
#[allow(dead_code)]
#[path = "../../../mesh/tests/it/world.rs"]
mod world;
