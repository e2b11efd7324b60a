//! Requests before routing: paths, framing, hops, addresses, XFCC; and format strings.

use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::format;
use carrick_proxy_core::hygiene::reject::{Version, framing, head};
use carrick_proxy_core::hygiene::xfcc::{self, PeerCert, XFCC};
use carrick_proxy_core::hygiene::{LocalReply, address, hop, path};
use carrick_proxy_core::model::hcm::{EscapedSlashes, ForwardClientCert, HttpConnectionManager, PathOptions, XfccMode};
use carrick_proxy_core::model::listener::{ChainKind, Listener};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

use crate::message::{Request, Store, chain, flag, http, listener, manager, rds_source, table};

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    map
}

/// The listener keeps the manager alive.
fn built(change: impl FnOnce(&mut pb::HttpConnectionManager)) -> Arc<Listener> {
    let mut message = manager(rds_source("t"));
    change(&mut message);
    let mut store = Store::default();
    store.routes(&[table("t", vec![])]).unwrap();
    store.listeners(&[listener("l", "0.0.0.0:80", vec![chain("", Default::default(), http(&message))])]).unwrap();
    Arc::clone(&store.runtime().listeners.by_name["l"])
}

fn hcm(listener: &Listener) -> &HttpConnectionManager {
    match &listener.chains[0].kind {
        ChainKind::Http(manager) => manager,
        ChainKind::Tcp(_) => panic!("HTTP"),
    }
}

#[test]
fn paths() {
    let base = PathOptions { normalize: true, ..PathOptions::default() };
    let merge = PathOptions { merge_slashes: true, ..base };
    let unescape = PathOptions { escaped_slashes: EscapedSlashes::UnescapeAndForward, ..merge };
    for (options, given, expected) in [
        (base, "/a/b?x=../y", "/a/b?x=../y"),
        (base, "/a/../b", "/b"),
        (base, "/../../b", "/b"),
        (base, "/a/b/..", "/a/"),
        (base, "/a/.", "/a/"),
        (base, "/a/%2e%2E/b", "/b"),
        (base, "/a\\b", "/a/b"),
        (base, "/%41%7Eb%2f", "/A~b%2f"),
        (base, "/ä", "/%C3%A4"),
        (base, "/a//b", "/a//b"),
        (base, "/%zz", "/%zz"),
        (base, "*", "*"),
        (merge, "/a///b//", "/a/b/"),
        (unescape, "/a%2f..%5Cb?%2f", "/b?%2f"),
        (PathOptions::default(), "/a/../%41//b", "/a/../%41//b"),
    ] {
        assert_eq!(path::normalize(given, &options, false).unwrap(), expected, "{given}");
    }
}

#[test]
fn paths_that_are_refused_or_redirected() {
    let base = PathOptions { normalize: true, ..PathOptions::default() };
    let reject = PathOptions { escaped_slashes: EscapedSlashes::Reject, ..base };
    let redirect = PathOptions { escaped_slashes: EscapedSlashes::UnescapeAndRedirect, ..base };
    let bad = Err(LocalReply::Status(400, "path_normalization_failed"));
    assert_eq!(path::normalize("/a%00", &base, false), bad);
    assert_eq!(path::normalize("/a#b", &base, false), bad);
    assert_eq!(path::normalize("/a%2Fb", &reject, false), bad);
    assert_eq!(path::normalize("/a%2Fb?q", &redirect, false), Err(LocalReply::Redirect("/a/b?q".to_owned())));
    assert_eq!(path::normalize("/a%2Fb", &redirect, true), bad, "gRPC clients do not follow redirects");
}

#[test]
fn ambiguous_framing_is_refused() {
    let check = |list: &[(&'static str, &str)], version| {
        framing(&headers(list), version, false).map_err(|r| match r {
            LocalReply::Status(status, _) => status,
            LocalReply::Redirect(_) => 0,
        })
    };
    let v11 = Version::Http11;
    assert_eq!(check(&[], v11), Ok(()));
    assert_eq!(check(&[("content-length", "5")], v11), Ok(()));
    assert_eq!(check(&[("content-length", "5"), ("content-length", "5")], v11), Ok(()));
    assert_eq!(check(&[("transfer-encoding", "Chunked")], v11), Ok(()));
    for (bad, status) in [
        (&[("content-length", "5"), ("content-length", "6")][..], 400),
        (&[("content-length", "+5")], 400),
        (&[("content-length", "5, 5")], 400),
        (&[("content-length", "")], 400),
        (&[("content-length", "5"), ("transfer-encoding", "chunked")], 400),
        (&[("transfer-encoding", "gzip, chunked")], 501),
        (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], 501),
        (&[("transfer-encoding", "xchunked")], 501),
    ] {
        assert_eq!(check(bad, v11), Err(status), "{bad:?}");
    }
    assert_eq!(check(&[("transfer-encoding", "chunked")], Version::Http10), Err(400));
}

#[test]
fn heads_that_are_refused() {
    let listener = built(|_| {});
    let hcm = hcm(&listener);
    let check = |version, method: &str, path: &str, authority: Option<&str>| match head(
        hcm,
        version,
        method,
        path,
        authority,
        &HeaderMap::new(),
    ) {
        Ok(()) => 0,
        Err(LocalReply::Status(status, _)) => status,
        Err(LocalReply::Redirect(_)) => 307,
    };
    assert_eq!(check(Version::Http11, "GET", "/", Some("h")), 0);
    assert_eq!(check(Version::Http11, "OPTIONS", "*", Some("h")), 404, "as Envoy 1.40");
    assert_eq!(check(Version::Http11, "CONNECT", "", Some("h:1")), 0);
    assert_eq!(check(Version::Http10, "GET", "/", Some("h")), 426);
    assert_eq!(check(Version::Http11, "GET", "/", None), 400);
    assert_eq!(check(Version::Http2, "GET", "/", Some("user@h")), 400);
    assert_eq!(check(Version::Http2, "GET", "", Some("h")), 404);
    assert_eq!(check(Version::Http2, "GET", "a", Some("h")), 404);
    let many = headers(&[("host", "a"), ("host", "b")]);
    assert!(head(hcm, Version::Http11, "GET", "/", Some("a"), &many).is_err());
}

#[test]
fn nothing_of_the_hop_goes_on() {
    let mut map = headers(&[
        ("connection", "close, X-Secret, te, Authorization"),
        ("x-secret", "1"),
        ("authorization", "a"),
        ("keep-alive", "1"),
        ("proxy-connection", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip, trailers"),
        ("x-kept", "1"),
    ]);
    hop::drop_nominated(&mut map).unwrap();
    hop::strip_request(&mut map, false);
    let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["te", "x-kept"]);
    assert_eq!(map["te"], "trailers");
    let mut upgrade = headers(&[("connection", "Upgrade"), ("upgrade", "WebSocket")]);
    assert_eq!(hop::requested_upgrade(&upgrade).as_deref(), Some("websocket"));
    hop::strip_request(&mut upgrade, true);
    assert_eq!(
        (&upgrade["connection"], &upgrade["upgrade"]),
        (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("WebSocket"))
    );
    assert_eq!(hop::requested_upgrade(&headers(&[("upgrade", "websocket")])), None);
}

#[test]
fn sidecars_believe_forwarded_addresses_and_edges_do_not() {
    let arrival = address::Arrival { remote: "9.9.9.9:1234".parse().unwrap(), local_port: 80, tls: true };
    let sidecar = built(|m| m.use_remote_address = flag(false));
    let mut map = headers(&[("x-forwarded-for", "1.1.1.1, 2.2.2.2")]);
    let client = address::apply(hcm(&sidecar), &arrival, &mut map, || "id".to_owned());
    assert_eq!(client.address.ip().to_string(), "2.2.2.2");
    assert_eq!(map["x-forwarded-for"], "1.1.1.1, 2.2.2.2");
    assert_eq!(
        (&map["x-forwarded-proto"], &map["x-request-id"]),
        (&HeaderValue::from_static("https"), &HeaderValue::from_static("id"))
    );
    let edge = built(|m| m.use_remote_address = flag(true));
    let mut map = headers(&[
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "theirs"),
        ("x-envoy-internal", "true"),
    ]);
    let client = address::apply(hcm(&edge), &arrival, &mut map, || "ours".to_owned());
    assert_eq!(client.address.to_string(), "9.9.9.9:1234");
    assert!(client.edge && !client.internal);
    assert_eq!(map["x-forwarded-for"], "1.1.1.1,9.9.9.9");
    assert_eq!(map["x-forwarded-proto"], "https");
    assert_eq!(map["x-request-id"], "ours");
    assert_eq!(map["x-envoy-external-address"], "9.9.9.9");
    assert!(!map.contains_key("x-envoy-internal"));
}

const APPEND: ForwardClientCert =
    ForwardClientCert { mode: XfccMode::AppendForward, subject: true, cert: false, chain: false, dns: true, uri: true };

#[test]
fn client_certificates_are_told_and_never_believed() {
    let uris = ["spiffe://td/ns/a/sa/b".to_owned()];
    let peer = PeerCert { local_uri: Some("spiffe://td/ns/x/sa/y"), hash: "ab12", uris: &uris, ..PeerCert::default() };
    let ours = "By=spiffe://td/ns/x/sa/y;Hash=ab12;Subject=\"\";URI=spiffe://td/ns/a/sa/b";
    let run = |mode, peer: Option<&PeerCert<'_>>, before: &[(&'static str, &str)]| {
        let mut map = headers(before);
        xfcc::apply(&ForwardClientCert { mode, ..APPEND }, peer, &mut map);
        map.get(XFCC).map(|v| v.to_str().unwrap().to_owned())
    };
    let forged = [("x-forwarded-client-cert", "By=x")];
    assert_eq!(run(XfccMode::AppendForward, Some(&peer), &[]).as_deref(), Some(ours));
    assert_eq!(run(XfccMode::AppendForward, Some(&peer), &forged), Some(format!("By=x,{ours}")));
    assert_eq!(run(XfccMode::AppendForward, None, &forged), None);
    assert_eq!(run(XfccMode::SanitizeSet, Some(&peer), &forged).as_deref(), Some(ours));
    assert_eq!(run(XfccMode::SanitizeSet, None, &forged), None);
    assert_eq!(run(XfccMode::Sanitize, Some(&peer), &forged), None);
    assert_eq!(run(XfccMode::ForwardOnly, Some(&peer), &forged).as_deref(), Some("By=x"));
    assert_eq!(run(XfccMode::ForwardOnly, None, &forged), None);
    assert_eq!(run(XfccMode::AlwaysForwardOnly, None, &forged).as_deref(), Some("By=x"));
}

#[test]
fn format_strings() {
    let request = Request::get("h/p?q").with("x-a", "v");
    let facts = Facts {
        request: Some(request.head()),
        status: Some(200),
        protocol: Some("HTTP/2"),
        remote: Some("1.2.3.4:5".parse().unwrap()),
        ..Facts::default()
    };
    for (text, expected) in [
        ("a%%b", "a%b"),
        ("%REQ(:PATH)%|%REQ(X-NO?X-A)%", "/p?q|v"),
        ("%REQ(:PATH):3%", "/p?"),
        ("%RESPONSE_CODE% %REQ(no)%", "200 -"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "1.2.3.4"),
        ("%CEL(request.protocol == 'HTTP/2' ? 'two' : request.protocol == 'HTTP/1.0' ? 'ten' : 'one')%", "two"),
        ("%START_TIME(%Y/%m)%", "-"),
        ("%QUERY_PARAM(a)%|%REQ_WITHOUT_QUERY(:PATH)%|%PATH(NQ:PATH)%|%PATH(WQ:ORIG)%", "-|/p|/p|-"),
        ("", ""),
    ] {
        let mut out = String::new();
        format::parse(text).unwrap().render(&facts, "-", &mut out);
        assert_eq!(out, expected, "{text}");
    }
    for bad in ["%", "a%b", "%REQ(x", "%REQ(a b)%", "%REQ(x):y%", "%NOPE%", "%CEL(request.path)%", "%RESPONSE_CODE(x)%"]
    {
        assert!(format::parse(bad).is_err(), "{bad}");
    }
}

/// As Envoy 1.40 does it: what steers retries and time-outs goes, the count of attempts stays for the application.
#[test]
fn internal_headers() {
    let sent = &[
        ("x-envoy-attempt-count", "1"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-stream-duration-ms", "10"),
        ("x-envoy-decorator-operation", "a"),
        ("x-mine", "b"),
    ];
    let left = |edge: bool| {
        let mut map = headers(sent);
        hop::strip_internal(&mut map, edge, &[HeaderName::from_static("x-mine")]);
        map.keys().map(|k| k.as_str().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(left(false), ["x-envoy-attempt-count", "x-envoy-decorator-operation"].map(String::from).into());
    assert_eq!(left(true), ["x-envoy-attempt-count"].map(String::from).into());
}

#[test]
fn repeated_headers_of_one_meaning_become_one() {
    let mut headers =
        headers(&[("authorization", "Bearer a"), ("x-a", "1"), ("authorization", "Bearer b"), ("x-a", "2")]);
    hop::join_repeated(&mut headers);
    let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("authorization"), ["Bearer a,Bearer b"]);
    assert_eq!(all("x-a"), ["1", "2"]);
}

#[test]
fn a_proxys_close_is_one() {
    let with = |value: &str| headers(&[("proxy-connection", value)]);
    assert!(hop::wants_close(&with("keep-alive, Close")));
    assert!(!hop::wants_close(&with("keep-alive")));
    assert!(!hop::wants_close(&HeaderMap::new()));
}

#[test]
fn targets_without_a_path_are_answered_and_not_routed() {
    use carrick_proxy_core::hygiene::wire::{Refusal, Start, read};
    let of = |line: &str| {
        let head = format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n");
        read(head.as_bytes(), false, |_, _| {}).map(|Start { http_10, .. }| http_10)
    };
    assert_eq!(of("GET /a#b"), Err(Refusal::Fragment));
    assert_eq!(of("OPTIONS *x"), Err(Refusal::NoPath));
    assert_eq!(of("GET *"), Err(Refusal::Malformed));
    assert!(of("OPTIONS *").is_ok() && of("GET http://a/b").is_ok());
}
