//! Filters, against a real Envoy: the same configuration, the same requests, the same answers.

mod jwt;
mod rbac;
