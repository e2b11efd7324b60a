//! Rules of `connectionPool`, wherever it stands.
//!
//! Invariant: a pool that says nothing is an error, since its author meant something.

use carrick_base::FieldPath;

use super::Findings;
use crate::istio::traffic::{ConnectionPool, H2UpgradePolicy, HttpPool, TcpPool};

pub(crate) fn check(pool: &ConnectionPool, path: &FieldPath, findings: &mut Findings) {
    if pool.http.is_none() && pool.tcp.is_none() {
        findings.error(path, "connection pool must have at least one field");
    }
    if let Some(settings) = &pool.http {
        http(settings, &path.field("http"), findings);
    }
    if let Some(settings) = &pool.tcp {
        tcp(settings, &path.field("tcp"), findings);
    }
}

fn http(pool: &HttpPool, path: &FieldPath, findings: &mut Findings) {
    findings.non_negative(&path.field("http1MaxPendingRequests"), pool.http1_max_pending_requests);
    findings.non_negative(&path.field("http2MaxRequests"), pool.http2_max_requests);
    findings.non_negative(&path.field("maxRequestsPerConnection"), pool.max_requests_per_connection);
    findings.non_negative(&path.field("maxRetries"), pool.max_retries);
    findings.non_negative(&path.field("maxConcurrentStreams"), pool.max_concurrent_streams);
    findings.duration(&path.field("idleTimeout"), pool.idle_timeout);
    if pool.h2_upgrade_policy == H2UpgradePolicy::Upgrade && pool.use_client_protocol {
        findings.error(
            &path.field("useClientProtocol"),
            "use client protocol must not be true when H2UpgradePolicy is UPGRADE",
        );
    }
    if let Some(keepalive) = &pool.http2_keep_alive {
        let path = path.field("http2KeepAlive");
        if keepalive.interval.is_none() || keepalive.timeout.is_none() {
            findings.error(&path, "interval and timeout must both be set");
        }
        findings.duration(&path.field("interval"), keepalive.interval);
        findings.duration(&path.field("timeout"), keepalive.timeout);
    }
}

fn tcp(pool: &TcpPool, path: &FieldPath, findings: &mut Findings) {
    findings.non_negative(&path.field("maxConnections"), pool.max_connections);
    findings.duration(&path.field("connectTimeout"), pool.connect_timeout);
    findings.duration(&path.field("maxConnectionDuration"), pool.max_connection_duration);
    // An idle timeout of zero switches it off.
    findings.duration(&path.field("idleTimeout"), pool.idle_timeout.filter(|timeout| !timeout.get().is_zero()));
    if let Some(keepalive) = &pool.tcp_keepalive {
        let path = path.field("tcpKeepalive");
        findings.duration(&path.field("time"), keepalive.time);
        findings.duration(&path.field("interval"), keepalive.interval);
    }
}
