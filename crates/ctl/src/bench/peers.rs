//! The programs measured beside the mesh: their configurations, and the rules that bring a client's connections to them.
//!
//! Invariant: TLS 1.3 with AES-128-GCM and X25519, both certificates verified, no session resumed (but by the pair that is there for it), no
//! logs; one thread each. A door is an application's port with the client's proxy's port before it and the server's proxy's port between.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::pairs::{Pair, Subject, Variant};

/// One way through a pair.
#[derive(Debug, Clone, Copy)]
struct Door {
    /// Port that is called.
    called: u16,
    /// Port of the client's proxy.
    client: u16,
    /// Port of the server's proxy.
    server: u16,
    /// Port of the application.
    app: u16,
    /// What comes in, what travels between, what the application gets.
    speaks: [Speaks; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    Bytes,
}

use Speaks::{Bytes, Http1, Http2};

const DOORS: [Door; 4] = [
    Door { called: 8080, client: 15001, server: 15011, app: 8080, speaks: [Http1; 3] },
    Door { called: 8081, client: 15002, server: 15012, app: 8081, speaks: [Http2; 3] },
    Door { called: 8082, client: 15003, server: 15013, app: 8082, speaks: [Bytes; 3] },
    Door { called: 8083, client: 15004, server: 15014, app: 8080, speaks: [Http1, Http2, Http1] },
];

/// The name in the server's certificate.
const SERVER_NAME: &str = "server.bench";

/// One proxy's part of a door.
struct Leg {
    listen: u16,
    to: String,
    own: Speaks,
    next: Speaks,
}

fn legs(role: &str, server: &str) -> Vec<Leg> {
    let leg = |door: &Door| {
        let [first, between, last] = door.speaks;
        match role {
            "client" => Leg { listen: door.client, to: format!("{server}:{}", door.server), own: first, next: between },
            _ => Leg { listen: door.server, to: format!("127.0.0.1:{}", door.app), own: between, next: last },
        }
    };
    DOORS.iter().map(leg).collect()
}

/// nftables rules of a client's pod: what it sends to the server's application comes to its own proxy.
pub fn redirection(server: &str) -> String {
    let mut rules = String::from("table ip bench {\n  chain out {\n    type nat hook output priority -100;\n");
    for door in DOORS {
        let _ = writeln!(rules, "    ip daddr {server} tcp dport {} redirect to :{}", door.called, door.client);
    }
    rules + "  }\n}\n"
}

/// The command line of a program, with its configuration written to `dir`.
///
/// # Errors
/// It is not installed, or a file cannot be written.
pub fn command(pair: Pair, role: &str, server: &str, dir: &Path) -> Result<String> {
    let subject = pair.subject;
    let program = subject.program().with_context(|| format!("{} is not installed", subject.name()))?;
    let program = program.display();
    let file = dir.join(format!("{}.conf", pair.pod(role)));
    let path = file.display();
    let (legs, dir) = (legs(role, server), dir.display().to_string());
    let client = role == "client";
    let (text, line) = match subject {
        Subject::Bare => {
            let base = format!("--concurrency 1 --disable-hot-restart -l error --base-id {}", u32::from(client) + 7000);
            (
                envoy(&legs, client, pair.variant == Variant::Resuming, &dir).to_string(),
                format!("{program} -c {path} {base}"),
            )
        }
        Subject::HaProxy => (haproxy(&legs, client, &dir), format!("{program} -db -q -f {path}")),
        Subject::Nginx => (nginx(&legs, client, &dir), format!("{program} -e /dev/null -c {path} -p /tmp")),
        Subject::Floor | Subject::FloorTokio => {
            // One process for everything, as with the others; on tokio bytes alone.
            let (kind, all) = match subject {
                Subject::FloorTokio => ("tokio", &[Bytes][..]),
                _ => ("epoll", &[Http1, Bytes][..]),
            };
            let fit = legs.iter().filter(|leg| leg.own == leg.next && all.contains(&leg.own));
            let word =
                |leg: &Leg| format!("{}:{}={}", if leg.own == Bytes { "bytes" } else { "http" }, leg.listen, leg.to);
            let doors: Vec<String> = fit.map(word).collect();
            return Ok(format!("{program} {kind} {role} {dir} {}", doors.join(" ")));
        }
        Subject::Native | Subject::Envoy => bail!("{} is part of the mesh", subject.name()),
    };
    std::fs::write(&file, text).with_context(|| path.to_string())?;
    Ok(line)
}

fn haproxy(legs: &[Leg], client: bool, dir: &str) -> String {
    let mut out = String::from(
        "global\n  nbthread 1\n  maxconn 9000\n  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n  \
         ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n  ssl-default-bind-curves X25519\n  tune.ssl.cachesize 0\n  \
         ssl-default-server-options ssl-min-ver TLSv1.3\n  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256\n\
         defaults\n  maxconn 9000\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n",
    );
    for leg in legs {
        let (n, to) = (leg.listen, &leg.to);
        let mode = if leg.own == Bytes { "mode tcp" } else { "mode http\n  http-reuse always" };
        let plain = |speaks| if speaks == Http2 { "proto h2" } else { "" };
        let alpn = |speaks| match speaks {
            Http2 => "alpn h2",
            Http1 => "alpn http/1.1",
            Bytes => "",
        };
        let (bind, server) = if client {
            let tls = format!(
                "ssl crt {dir}/client.pem ca-file {dir}/ca.pem verify required verifyhost {SERVER_NAME} sni str({SERVER_NAME}) \
                 no-ssl-reuse {}",
                alpn(leg.next)
            );
            (plain(leg.own).to_owned(), tls)
        } else {
            let tls = format!("ssl crt {dir}/server.pem ca-file {dir}/ca.pem verify required {}", alpn(leg.own));
            (tls, plain(leg.next).to_owned())
        };
        let _ = write!(
            out,
            "frontend f{n}\n  {mode}\n  bind 0.0.0.0:{n} {bind}\n  default_backend b{n}\nbackend b{n}\n  {mode}\n  server s {to} {server}\n"
        );
    }
    out
}

/// HTTP only: Debian's nginx has streams as a module apart.
fn nginx(legs: &[Leg], client: bool, dir: &str) -> String {
    let side = if client { "client" } else { "server" };
    // A file of its own: nginx removes it in the end, whatever it is.
    let mut out = format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx-{side}.pid;\nworker_rlimit_nofile 20000;\n\
         events {{ worker_connections 9000; }}\nhttp {{\n  access_log off;\n  keepalive_requests 1000000000;\n  \
         keepalive_timeout 300s;\n"
    );
    for temporary in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(out, "  {temporary}_temp_path /tmp/carrick-bench-{side}-{temporary};");
    }
    for leg in legs.iter().filter(|leg| leg.own == leg.next && leg.own != Bytes) {
        let (n, to) = (leg.listen, &leg.to);
        let (pass, scheme) = if leg.own == Http2 { ("grpc", "grpc") } else { ("proxy", "http") };
        let inn = if leg.own == Http2 { "http2" } else { "" };
        let _ = writeln!(out, "  upstream u{n} {{ server {to}; keepalive 1024; keepalive_requests 1000000000; }}");
        let body = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_max_temp_file_size 0;";
        if client {
            let tls = format!(
                "{pass}_ssl_certificate {dir}/client.crt; {pass}_ssl_certificate_key {dir}/client.key; \
                 {pass}_ssl_trusted_certificate {dir}/ca.pem; {pass}_ssl_verify on; {pass}_ssl_name {SERVER_NAME}; \
                 {pass}_ssl_server_name on; {pass}_ssl_protocols TLSv1.3; {pass}_ssl_session_reuse off; \
                 {pass}_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;"
            );
            let _ = writeln!(
                out,
                "  server {{ listen 0.0.0.0:{n} backlog=4096 {inn}; location / {{ {pass}_pass {scheme}s://u{n}; {body} {tls} }} }}"
            );
        } else {
            let tls = format!(
                "ssl_certificate {dir}/server.crt; ssl_certificate_key {dir}/server.key; ssl_client_certificate {dir}/ca.pem; \
                 ssl_verify_client on; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; \
                 ssl_ecdh_curve X25519; ssl_session_tickets off; ssl_session_cache off;"
            );
            let _ = writeln!(
                out,
                "  server {{ listen 0.0.0.0:{n} ssl backlog=4096 {inn}; {tls} location / {{ {pass}_pass {scheme}://u{n}; {body} }} }}"
            );
        }
    }
    out + "}\n"
}

fn envoy(legs: &[Leg], client: bool, resumes: bool, dir: &str) -> Value {
    let who = if client { "client" } else { "server" };
    let peer = if client { "server" } else { "client" };
    let tls = |protocol: &str| {
        json!({
            "alpn_protocols": [protocol],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3", "ecdh_curves": ["X25519"]},
            "tls_certificates": [{
                "certificate_chain": {"filename": format!("{dir}/{who}.crt")},
                "private_key": {"filename": format!("{dir}/{who}.key")},
            }],
            "validation_context": {
                "trusted_ca": {"filename": format!("{dir}/ca.pem")},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": format!("spiffe://cluster.local/ns/bench/sa/{peer}")}},
                ],
            },
        })
    };
    let alpn = |speaks| match speaks {
        Http1 => "http/1.1",
        Http2 => "h2",
        Bytes => "istio",
    };
    let typed = |name: &str, mut value: Value| {
        if let Some(fields) = value.as_object_mut() {
            fields.insert("@type".into(), format!("type.googleapis.com/envoy.extensions.{name}").into());
        }
        value
    };
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for leg in legs {
        let name = leg.listen.to_string();
        let filter = if leg.own == Bytes {
            typed("filters.network.tcp_proxy.v3.TcpProxy", json!({"stat_prefix": name, "cluster": name}))
        } else {
            let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
            let router = typed("filters.http.router.v3.Router", json!({}));
            typed(
                "filters.network.http_connection_manager.v3.HttpConnectionManager",
                json!({
                    "stat_prefix": name,
                    "codec_type": "AUTO",
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
                    "http_filters": [{"name": "router", "typed_config": router}],
                }),
            )
        };
        let mut chain = json!({"filters": [{"name": "filter", "typed_config": filter}]});
        let (host, port) = leg.to.split_once(':').unwrap_or_default();
        let port: u16 = port.parse().unwrap_or_default();
        let at = json!({"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}});
        let many = json!({"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000});
        let mut cluster = json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [many]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [at]}]},
        });
        if leg.next != Bytes {
            let which = if leg.next == Http2 { "http2_protocol_options" } else { "http_protocol_options" };
            let options = typed("upstreams.http.v3.HttpProtocolOptions", json!({"explicit_http_config": {which: {}}}));
            cluster["typed_extension_protocol_options"] =
                json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
        }
        if client {
            // Each is used once, and a burst opens sixteen connections at a time.
            let kept = if resumes { 64 } else { 0 };
            let context =
                json!({"sni": SERVER_NAME, "max_session_keys": kept, "common_tls_context": tls(alpn(leg.next))});
            let context = typed("transport_sockets.tls.v3.UpstreamTlsContext", context);
            cluster["transport_socket"] = json!({"name": "tls", "typed_config": context});
        } else {
            let context = json!({
                "require_client_certificate": true,
                "disable_stateless_session_resumption": !resumes,
                "disable_stateful_session_resumption": !resumes,
                "common_tls_context": tls(alpn(leg.own)),
            });
            let context = typed("transport_sockets.tls.v3.DownstreamTlsContext", context);
            chain["transport_socket"] = json!({"name": "tls", "typed_config": context});
        }
        listeners.push(json!({
            "name": name,
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": leg.listen}},
            "filter_chains": [chain],
        }));
        clusters.push(cluster);
    }
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_calls_where_the_server_listens() {
        let (client, server) = (legs("client", "10.0.0.1"), legs("server", "10.0.0.1"));
        for (there, here) in client.iter().zip(&server) {
            assert_eq!(there.to, format!("10.0.0.1:{}", here.listen));
            assert_eq!(there.next, here.own);
        }
        let rules = redirection("10.0.0.1");
        assert!(rules.contains("tcp dport 8082 redirect to :15003"), "{rules}");
        let config = envoy(&client, true, false, "/c");
        let socket = "/static_resources/clusters/2/transport_socket/typed_config/sni";
        assert_eq!(config.pointer(socket).and_then(Value::as_str), Some(SERVER_NAME));
        let keys = "/static_resources/clusters/2/transport_socket/typed_config/max_session_keys";
        assert_eq!(config.pointer(keys).and_then(Value::as_u64), Some(0));
        assert_eq!(envoy(&client, true, true, "/c").pointer(keys).and_then(Value::as_u64), Some(64));
        assert!(envoy(&server, false, false, "/c").pointer("/static_resources/clusters/0/transport_socket").is_none());
        assert!(haproxy(&server, false, "/c").contains("bind 0.0.0.0:15014 ssl crt /c/server.pem"));
        assert_eq!(nginx(&client, true, "/c").matches("  server {").count(), 2, "HTTP/1.1 and gRPC");
    }
}
