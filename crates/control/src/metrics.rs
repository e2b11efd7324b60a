//! The control plane's metrics.
//!
//! Invariant: Istio's counters carry no `_total` suffix, which the text encoder adds to every counter; those are kept as
//! gauges that only grow.

use crate::names;
use carrick_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// One label that names a type or kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByType {
    /// `cds`, `Service`, …
    pub(crate) r#type: String,
}

/// Who holds a certificate, and the share of its life that it has used at least, in percent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByLife {
    /// `proxy`, `secret` or `control-plane`.
    pub(crate) holder: &'static str,
    /// `0`, `50`, `75`, `90` or `100`.
    pub(crate) used: &'static str,
}

/// Handles of all metrics.
#[derive(Debug, Clone)]
pub(crate) struct ControlMetrics {
    pub(crate) connected: Gauge,
    pub(crate) pushes: Family<ByType, Gauge>,
    pub(crate) rejects: Gauge,
    pub(crate) refused: Gauge,
    pub(crate) convergence: Histogram,
    pub(crate) render: Histogram,
    pub(crate) services: Gauge,
    pub(crate) events: Family<ByType, Gauge>,
    pub(crate) csrs: Gauge,
    pub(crate) issued: Gauge,
    pub(crate) unauthenticated: Gauge,
    pub(crate) csr_errors: Gauge,
    pub(crate) root_expiry: Gauge,
    pub(crate) lives: Family<ByLife, Gauge>,
    pub(crate) quarantined: Gauge,
    pub(crate) quarantine_behind: Gauge,
    pub(crate) ca_rotation_step: Gauge,
    pub(crate) ca_rotation_held: Gauge,
    pub(crate) ca_roots: Gauge,
    pub(crate) ca_refused: Gauge,
}

impl ControlMetrics {
    /// Registers everything.
    pub(crate) fn new(registry: &Metrics) -> Self {
        let seconds = || Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0]);
        let metrics = Self {
            connected: Gauge::default(),
            pushes: Family::default(),
            rejects: Gauge::default(),
            refused: Gauge::default(),
            convergence: seconds(),
            render: seconds(),
            services: Gauge::default(),
            events: Family::default(),
            csrs: Gauge::default(),
            issued: Gauge::default(),
            unauthenticated: Gauge::default(),
            csr_errors: Gauge::default(),
            root_expiry: Gauge::default(),
            lives: Family::default(),
            quarantined: Gauge::default(),
            quarantine_behind: Gauge::default(),
            ca_rotation_step: Gauge::default(),
            ca_rotation_held: Gauge::default(),
            ca_roots: Gauge::default(),
            ca_refused: Gauge::default(),
        };
        let m = metrics.clone();
        registry.register(|r| {
            r.register(names::PILOT_XDS, "Connected proxies", m.connected);
            r.register(names::PILOT_XDS_PUSHES, "Responses sent, by type", m.pushes);
            r.register(names::PILOT_TOTAL_XDS_REJECTS, "Responses refused by proxies", m.rejects);
            r.register(names::PILOT_XDS_REFUSED, "Streams refused", m.refused);
            r.register(
                names::PILOT_PROXY_CONVERGENCE_TIME,
                "Seconds from a change to its acknowledgement",
                m.convergence,
            );
            r.register(names::PILOT_PUSH_RENDER_TIME, "Seconds to build one push", m.render);
            r.register(names::PILOT_SERVICES, "Services known", m.services);
            r.register(names::PILOT_CONFIG_EVENTS, "Changed objects, by kind", m.events);
            r.register(names::CSR_COUNT, "Signing requests", m.csrs);
            r.register(names::CERT_ISSUED, "Certificates issued", m.issued);
            r.register(names::AUTH_FAILURES, "Signing requests without a proven identity", m.unauthenticated);
            r.register(names::CSR_ERRORS, "Signing requests that cannot be honoured", m.csr_errors);
            r.register(names::ROOT_EXPIRY, "End of the signing certificate", m.root_expiry);
            r.register(names::LIVES, "Certificates that have used so much of their life (percent)", m.lives);
            r.register(names::QUARANTINED, "Identities and certificates that are quarantined", m.quarantined);
            r.register(names::QUARANTINE_BEHIND, "Proxies without the newest quarantine", m.quarantine_behind);
            r.register(names::CA_ROTATION_STEP, "Step of a root rotation, 0 for none", m.ca_rotation_step);
            r.register(names::CA_ROTATION_HELD, "Proxies that hold a root rotation up", m.ca_rotation_held);
            r.register(names::CA_ROOTS, "Roots that are published", m.ca_roots);
            r.register(names::CA_REFUSED, "Plugged-in signing sets that were not taken", m.ca_refused);
        });
        metrics
    }
}
