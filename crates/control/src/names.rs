//! Names of the control plane's metrics. Where Istio has a metric of the same meaning, its name is used, so that existing
//! dashboards work.
//!
//! Invariant: no metric name is written anywhere else in this crate.

/// Connected proxies, by version.
pub(crate) const PILOT_XDS: &str = "pilot_xds";
/// Responses sent, by type.
pub(crate) const PILOT_XDS_PUSHES: &str = "pilot_xds_pushes";
/// Responses refused by proxies.
pub(crate) const PILOT_TOTAL_XDS_REJECTS: &str = "pilot_total_xds_rejects";
/// Seconds from a change to its acknowledgement by a proxy.
pub(crate) const PILOT_PROXY_CONVERGENCE_TIME: &str = "pilot_proxy_convergence_time";
/// Seconds to render one push for all proxies.
pub(crate) const PILOT_PUSH_RENDER_TIME: &str = "pilot_pushcontext_init_seconds";
/// Services known.
pub(crate) const PILOT_SERVICES: &str = "pilot_services";
/// Objects changed, by kind.
pub(crate) const PILOT_CONFIG_EVENTS: &str = "pilot_k8s_cfg_events";
/// Connection attempts that were refused.
pub(crate) const PILOT_XDS_REFUSED: &str = "pilot_xds_refused_streams";
/// Signing requests.
pub(crate) const CSR_COUNT: &str = "citadel_server_csr_count";
/// Certificates issued.
pub(crate) const CERT_ISSUED: &str = "citadel_server_success_cert_issuance_count";
/// Signing requests of callers without a proven identity.
pub(crate) const AUTH_FAILURES: &str = "citadel_server_authentication_failure_count";
/// Signing requests that cannot be read or ask for too much.
pub(crate) const CSR_ERRORS: &str = "citadel_server_csr_parsing_err_count";
/// End of the root certificate, seconds since 1970.
pub(crate) const ROOT_EXPIRY: &str = "citadel_server_root_cert_expiry_timestamp";
/// Certificates in use, by holder and used share of their life.
pub(crate) const LIVES: &str = "carrick_certificates";
/// Entries of the quarantine.
pub(crate) const QUARANTINED: &str = "carrick_quarantine_entries";
/// Proxies that have not acknowledged the newest quarantine.
pub(crate) const QUARANTINE_BEHIND: &str = "carrick_quarantine_proxies_behind";
/// The step of a root rotation: 0 when there is none, 1 prepare to 6 retire.
pub(crate) const CA_ROTATION_STEP: &str = "carrick_ca_rotation_step";
/// Proxies that hold a root rotation up.
pub(crate) const CA_ROTATION_HELD: &str = "carrick_ca_rotation_held_by";
/// Roots that are published.
pub(crate) const CA_ROOTS: &str = "carrick_ca_roots";
/// Plugged-in signing sets that were not taken.
pub(crate) const CA_REFUSED: &str = "carrick_ca_refused_sets";
