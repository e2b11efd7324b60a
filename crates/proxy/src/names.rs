//! Names of metrics, response flags and details, as Envoy and Istio write them.
//!
//! Invariant: a name that leaves this crate is spelled here and nowhere else.

/// Response flags (short form).
pub mod flag {
    pub const NONE: &str = "-";
    pub const NO_ROUTE: &str = "NR";
    pub const NO_CLUSTER: &str = "NC";
    pub const NO_HEALTHY: &str = "UH";
    pub const OVERFLOW: &str = "UO";
    pub const CONNECT_FAILED: &str = "UF";
    pub const UPSTREAM_CLOSED: &str = "UC";
    pub const UPSTREAM_RESET: &str = "UR";
    pub const UPSTREAM_TIMEOUT: &str = "UT";
    pub const CONNECT_FAILED_RETRIES: &str = "URX,UF";
    pub const UPSTREAM_CLOSED_RETRIES: &str = "URX,UC";
    pub const UPSTREAM_RESET_RETRIES: &str = "URX,UR";
    pub const DOWNSTREAM_CLOSED: &str = "DC";
    pub const STREAM_IDLE: &str = "SI";
    pub const UPSTREAM_PROTOCOL: &str = "UPE";
    pub const UPSTREAM_PROTOCOL_RETRIES: &str = "URX,UPE";
    pub const FAULT: &str = "FI";
    pub const DELAYED: &str = "DI";
    pub const DELAYED_AND_ABORTED: &str = "DI,FI";
    pub const RATE_LIMITED: &str = "RL";
    pub const UNAUTHORIZED: &str = "UAEX";
}

/// Response code details.
pub mod details {
    pub const VIA_UPSTREAM: &str = "via_upstream";
    pub const CORS: &str = "cors_response";
    pub const EXT_AUTHZ_DENIED: &str = "ext_authz_denied";
    pub const EXT_AUTHZ_ERROR: &str = "ext_authz_error";
    pub const FAULT_ABORT: &str = "fault_filter_abort";
    pub const LOCAL_RATE_LIMITED: &str = "local_rate_limited";
    pub const TOO_LARGE: &str = "request_payload_too_large";
    pub const DIRECT: &str = "direct_response";
    pub const ROUTE_NOT_FOUND: &str = "route_not_found";
    pub const CLUSTER_NOT_FOUND: &str = "cluster_not_found";
    pub const NO_HEALTHY: &str = "no_healthy_upstream";
    pub const BAD_PATH: &str = "path_normalization_failed";
    pub const NOMINATED: &str = "http1.connection_header_rejected";
    pub const UPGRADE_FAILED: &str = "upgrade_failed";
    pub const RESPONSE_TIMEOUT: &str = "response_timeout";
    pub const PER_TRY_TIMEOUT: &str = "upstream_per_try_timeout";
    pub const PER_TRY_IDLE: &str = "upstream_per_try_idle_timeout";
    pub const STREAM_IDLE: &str = "stream_idle_timeout";
    pub const MAX_DURATION: &str = "max_duration_timeout";
    pub const PROTOCOL_ERROR: &str = "upstream_reset_before_response_started{protocol_error}";
    pub const OVERLOAD: &str = "upstream_reset_before_response_started{overflow}";
    pub const CONNECT_FAILED: &str = "upstream_reset_before_response_started{remote_connection_failure}";
    pub const CONNECT_TIMEOUT: &str = "upstream_reset_before_response_started{connection_timeout}";
    pub const TERMINATED: &str = "upstream_reset_before_response_started{connection_termination}";
    pub const REMOTE_RESET: &str = "upstream_reset_before_response_started{remote_reset}";
}
