//! The crate from outside: what the authority signs, judged by OpenSSL and others, and who gets through a handshake.

mod authority;
mod handshake;
mod judges;
mod keystores;
mod lab;
mod plugged;
mod policies;
