//! `carrick ca`: what is asked of the mesh's certificate authority by hand.
//!
//! Invariant: one file for each command; what is decided lies in an object of the API or with the control plane.

pub mod revoke;
pub mod rotate;
