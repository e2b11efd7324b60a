//! The objects of the measured mesh: STRICT everywhere, ten policies, services that nobody calls but every sidecar knows.
//!
//! Invariant: they are the same for both engines; what differs between pairs (logs) is selected by a label.

use std::fmt::Write as _;
use std::ops::Range;

use super::pairs::{NAMESPACE, Pair, Variant};

/// Whom the last of the policies lets in comes in all requests; nine that fit nobody are looked at before.
const POLICIES: usize = 10;
/// Policies that only a crowded server has besides, and routes before the one to it.
const CROWD: usize = 50;
const ROUTES: usize = 99;

/// Everything but the services that nobody calls.
pub fn mesh(pairs: &[Pair]) -> String {
    let mut out = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: istio-system}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n---\n\
         apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: logs, namespace: {NAMESPACE}}}\nspec:\n  \
         selector: {{matchLabels: {{logs: \"on\"}}}}\n  accessLogging: [{{providers: [{{name: envoy}}]}}]\n"
    );
    for n in 0..POLICIES {
        let from = if n + 1 == POLICIES {
            format!("namespaces: [{NAMESPACE}]")
        } else {
            format!("principals: [\"cluster.local/ns/other/sa/one-{n}\", \"cluster.local/ns/other/sa/two-{n}\"]")
        };
        let _ = write!(
            out,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy-{n}, namespace: {NAMESPACE}}}\n\
             spec: {{action: ALLOW, rules: [{{from: [{{source: {{{from}}}}}], to: [{{operation: {{ports: [\"8080\", \"8081\", \"8082\", \"8083\"]}}}}]}}]}}\n"
        );
    }
    for pair in pairs.iter().filter(|pair| pair.subject.in_mesh()) {
        let name = pair.pod("server");
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             selector: {{app: {name}}}\n  ports:\n  - {{name: http, port: 8080}}\n  - {{name: grpc, port: 8081}}\n  \
             - {{name: tcp, port: 8082}}\n  - {{name: http-up, port: 8083}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             host: {name}.{NAMESPACE}.svc.cluster.local\n  trafficPolicy:\n    portLevelSettings:\n    - port: {{number: 8083}}\n      \
             connectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}}}\n"
        );
        if pair.variant == Variant::Crowded {
            crowd(&mut out, &name);
        }
    }
    out
}

/// Routes and policies that fit nobody, for a server.
fn crowd(out: &mut String, name: &str) {
    let _ = write!(
        out,
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
         hosts: [{name}.{NAMESPACE}.svc.cluster.local]\n  http:\n"
    );
    for n in 0..ROUTES {
        let _ = write!(
            out,
            "  - match: [{{uri: {{prefix: /area-{n}/}}, headers: {{x-area: {{exact: \"{n}\"}}}}}}]\n    \
             route: [{{destination: {{host: {name}.{NAMESPACE}.svc.cluster.local}}}}]\n"
        );
    }
    let _ = writeln!(out, "  - route: [{{destination: {{host: {name}.{NAMESPACE}.svc.cluster.local}}}}]");
    for n in 0..CROWD {
        let _ = write!(
            out,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: crowd-{n}-{name}, namespace: {NAMESPACE}}}\n\
             spec: {{selector: {{matchLabels: {{app: {name}}}}}, action: ALLOW, rules: [{{from: [{{source: {{namespaces: [area-{n}]}}}}], \
             to: [{{operation: {{paths: [\"/area-{n}/*\"]}}}}]}}]}}\n"
        );
    }
}

/// Services that one text may hold: a reader of manifests takes 1,024 documents.
const AT_ONCE: u32 = 500;

/// Many services, in texts that are taken one after the other.
pub fn services_in_parts(which: Range<u32>) -> impl Iterator<Item = String> {
    let end = which.end;
    which.step_by(AT_ONCE as usize).map(move |from| services(from..from.saturating_add(AT_ONCE).min(end)))
}

/// Services with one endpoint each.
pub fn services(which: Range<u32>) -> String {
    let mut out = String::new();
    for n in which {
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: known-{n}, namespace: {NAMESPACE}}}\n\
             spec: {{ports: [{{name: http, port: 8080}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: known-{n}-1\n  \
             namespace: {NAMESPACE}\n  labels: {{kubernetes.io/service-name: known-{n}}}\naddressType: IPv4\n\
             ports: [{{name: http, port: 8080, protocol: TCP}}]\n\
             endpoints: [{{addresses: [\"10.244.{}.{}\"], conditions: {{ready: true}}}}]\n",
            200 + n / 250,
            n % 250 + 1
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_objects() {
        let text = mesh(&Pair::all()) + &services(0..3);
        let objects = carrick_api::parse::objects(text.as_bytes()).unwrap();
        assert_eq!(objects.len(), 3 + POLICIES + 2 * 7 + 2 * (1 + CROWD) + 2 * 3);
    }

    #[test]
    fn many_come_in_parts_that_can_be_read() {
        let parts: Vec<_> = services_in_parts(300..3000).collect();
        let counts = parts.iter().map(|text| carrick_api::parse::objects(text.as_bytes()).unwrap().len());
        assert_eq!(counts.collect::<Vec<_>>(), [1000, 1000, 1000, 1000, 1000, 400]);
        assert_eq!(parts.concat(), services(300..3000));
    }
}
