//! Pods against the embedded API: the whole of a run, from its object to its end. Needs root; runs beside a live mesh, on
//! hosts of its own.

mod machine;
mod runs;
mod services;
mod streams;
