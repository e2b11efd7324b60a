//! Filters, against a real Envoy: the same configuration, the same requests, the same answers.

mod ext_authz;
mod jwt;
mod rbac;
mod small;
