//! Names that leave this crate: secrets, metrics, readiness words.
//!
//! Invariant: a name that others depend on is spelled here and nowhere else.

/// The workload's own certificate and key.
pub const DEFAULT_SECRET: &str = "default";
/// The mesh roots.
pub const ROOT_SECRET: &str = "ROOTCA";
/// Prefix of a certificate and key in files: `file-cert:<cert>~<key>`.
pub const FILE_CERT: &str = "file-cert:";
/// Prefix of roots in a file: `file-root:<path>`.
pub const FILE_ROOT: &str = "file-root:";
/// Prefix of revocation lists in a file: `file-crl:<path>`.
pub const FILE_CRL: &str = "file-crl:";
/// The operating system's roots.
pub const SYSTEM_ROOTS: &str = "file-root:system";

/// Seconds until the workload's certificate ends.
pub const CERT_EXPIRY: &str = "istio_agent_cert_expiry_seconds";
/// Certificates obtained.
pub const CERTS: &str = "istio_agent_num_outgoing_requests";
/// Requests for a certificate that failed.
pub const CERT_FAILURES: &str = "istio_agent_num_failed_outgoing_requests";
/// Streams to the control plane that ended.
pub const XDS_ENDS: &str = "istio_agent_istiod_connection_terminations";
/// Streams to the control plane that could not be opened.
pub const XDS_FAILURES: &str = "istio_agent_istiod_connection_failures";
/// Whether a consumer's files are in place.
pub const DELIVERED: &str = "carrick_agent_delivered";
/// Whether a consumer serves what was delivered to it.
pub const SERVED: &str = "carrick_agent_served";
/// Sets of files put in place.
pub const DELIVERIES: &str = "carrick_agent_deliveries_total";
/// Reloads that failed.
pub const RELOAD_FAILURES: &str = "carrick_agent_reload_failures_total";
/// End of the certificate that was delivered.
pub const DELIVERED_EXPIRY: &str = "carrick_agent_delivered_certificate_expiry_timestamp_seconds";
/// How much of its life has passed, from 0 to 1.
pub const LIFE_USED: &str = "carrick_agent_delivered_certificate_life_used_ratio";
/// Starts of the engine's process.
pub const ENGINE_STARTS: &str = "istio_agent_proxy_starts_total";
/// Times that the application's metrics could not be read.
pub const SCRAPE_FAILURES: &str = "istio_agent_scrape_failures_total";
