//! Ways to endpoints and beside them: Unix sockets, the PROXY protocol, tunnels, mirrors, subsets, health checks, names.

use crate::support::*;
use carrick_proxy_core::format;
use carrick_proxy_core::model::cluster::*;
use carrick_proxy_core::model::endpoint::EndpointAddress;
use carrick_proxy_core::model::listener::Tunnel;
use carrick_proxy_core::model::metadata::{Map, Value};
use carrick_proxy_core::model::route::{HashPolicy, HashSource, HostRewrite, Mirror, MirrorTarget, RouteAction};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

fn http_to(
    at: SocketAddr,
    action: RouteAction,
    clusters: Vec<(Cluster, Option<carrick_proxy_core::model::EndpointSet>)>,
) -> carrick_proxy_core::RuntimeConfig {
    config(vec![listener("l", at, Default::default(), vec![chain("c", http(route_table(action)))])], clusters)
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_serve_http_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let app = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut unix, _) = app.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                while let Ok(1..) = unix.read(&mut buf).await {
                    unix.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nunix").await.unwrap();
                }
            });
        }
    });
    let mut set = endpoints(&[(Ipv4Addr::LOCALHOST, 1).into()]);
    set.endpoints[0].address = EndpointAddress::Pipe(path.to_str().unwrap().into());
    let at = free_port();
    let run = start(http_to(at, forward("app"), vec![(cluster("app"), Some(set))]), Default::default());
    let mut client = Client::connect(at).await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.unwrap().1, "unix");
    }
    assert_eq!(run.engine.stats().get("cluster.app.upstream_cx_total"), 1, "pooled like any other");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_is_told_the_clients_address() {
    let (sender, mut heads) = mpsc::unbounded_channel();
    let app = raw_server(move |_, mut tcp| {
        let sender = sender.clone();
        async move {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.push(tcp.read_u8().await.unwrap());
            }
            sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).unwrap();
            while read_head(&mut tcp).await {
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let mut told = cluster("app");
    told.transport.default =
        Arc::new(TransportSocket::ProxyProtocol { version: ProxyProtocol::V1, inner: Arc::new(TransportSocket::Raw) });
    let at = free_port();
    let _run = start(http_to(at, forward("app"), vec![(told, Some(endpoints(&[app])))]), Default::default());
    for _ in 0..2 {
        let mut client = Client::connect(at).await;
        for _ in 0..2 {
            assert_eq!(client.get("/").await.unwrap().0.status, 200);
        }
        let line = heads.recv().await.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[..4], ["PROXY", "TCP4", "127.0.0.1", "127.0.0.1"], "{line}");
        assert_eq!(words[5], at.port().to_string());
    }
    assert!(heads.try_recv().is_err(), "one connection per client");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_through_a_tunnel() {
    let proxy = raw_server(|_, mut tcp| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        if !head.starts_with("CONNECT db.example.com:5432 HTTP/1.1\r\nhost: db.example.com:5432\r\n") {
            tcp.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
            return;
        }
        // The target speaks first, in the same packet.
        tcp.write_all(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nhello ").await.unwrap();
        let (mut r, mut w) = tcp.split();
        let _ = tokio::io::copy(&mut r, &mut w).await;
    })
    .await;
    let through = |host: &str| {
        let carrick_proxy_core::model::ChainKind::Tcp(mut kind) = tcp("app") else { panic!("TCP") };
        let hostname = format::parse(host).unwrap();
        kind.tunnel = Some(Box::new(Tunnel { hostname, headers: Default::default() }));
        carrick_proxy_core::model::ChainKind::Tcp(kind)
    };
    for (host, answer) in [("db.example.com:5432", "hello ping"), ("other:1", "")] {
        let at = free_port();
        let c = config(
            vec![listener("l", at, Default::default(), vec![chain("c", through(host))])],
            vec![(cluster("app"), Some(endpoints(&[proxy])))],
        );
        let _run = start(c, Default::default());
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(b"ping").await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut got = String::new();
        let _ = tcp.read_to_string(&mut got).await;
        assert_eq!(got, answer, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_get_a_copy_and_change_nothing() {
    let (app, _) = echo_app().await;
    let (sender, mut copies) = mpsc::unbounded_channel();
    let shadow = raw_server(move |_, mut tcp| {
        let sender = sender.clone();
        async move {
            let mut seen = String::new();
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = tcp.read(&mut buf).await {
                seen += &String::from_utf8_lossy(&buf[..n]);
                if seen.ends_with("a body") || (seen.starts_with("GET") && seen.ends_with("\r\n\r\n")) {
                    sender.send(std::mem::take(&mut seen)).unwrap();
                    tcp.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            }
        }
    })
    .await;
    let mirror = |fraction, host_suffix| Mirror {
        target: MirrorTarget::Cluster("shadow".into()),
        fraction,
        host_suffix,
        host_rewrite: None,
        request: Default::default(),
    };
    for (fraction, suffix, host) in
        [(1_000_000, true, "app.test-shadow"), (1_000_000, false, "app.test"), (0, true, "")]
    {
        let at = free_port();
        let mut action = forward("app");
        action.mirrors = Arc::from([mirror(fraction, suffix)]);
        let clusters = vec![(cluster("app"), Some(endpoints(&[app]))), (cluster("shadow"), Some(endpoints(&[shadow])))];
        let _run = start(http_to(at, action, clusters), Default::default());
        let mut client = Client::connect(at).await;
        assert_eq!(client.get("/one").await.unwrap().0.status, 200);
        let (parts, body) = client.send(http::Request::post("/two"), "a body").await.unwrap();
        assert!(parts.status == 200 && body.ends_with("a body"));
        if fraction == 0 {
            assert!(copies.try_recv().is_err());
            continue;
        }
        let mut seen = [copies.recv().await.unwrap(), copies.recv().await.unwrap()];
        seen.sort();
        assert!(
            seen[0].starts_with("GET /one HTTP/1.1\r\n") && seen[0].contains(&format!("\r\nhost: {host}\r\n")),
            "{seen:?}"
        );
        assert!(seen[1].starts_with("POST /two HTTP/1.1\r\n") && seen[1].contains("a body"), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subsets_narrow_the_choice() {
    let (one, _) = echo_app().await;
    let two = raw_server(|_, mut tcp| async move {
        while read_head(&mut tcp).await {
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nv2").await.unwrap();
        }
    })
    .await;
    let labels = |version: &str| Map::from([("version".into(), Value::Text(version.into()))]);
    let divided = || {
        let mut app = cluster("app");
        app.subsets = Some(Subsets { selectors: vec![vec!["version".into()]], fallback: SubsetFallback::None });
        let mut set = endpoints(&[one, two]);
        for (endpoint, version) in set.endpoints.iter_mut().zip(["v1", "v2"]) {
            endpoint.metadata.0.insert("envoy.lb".into(), labels(version));
        }
        (app, Some(set))
    };
    for (version, status, body) in [("v2", 200, "v2"), ("v3", 503, "no healthy upstream")] {
        let at = free_port();
        let mut action = forward("app");
        action.subset = Some(Arc::new(labels(version)));
        let _run = start(http_to(at, action, vec![divided()]), Default::default());
        for _ in 0..6 {
            assert_eq!(get(at, "/").await, (status, body.to_owned()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_fail_their_health_check_get_nothing() {
    let (good, _) = echo_app().await;
    let bad = raw_server(|_, mut tcp| async move {
        while read_head(&mut tcp).await {
            tcp.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 3\r\n\r\nbad").await.unwrap();
        }
    })
    .await;
    let mut app = cluster("app");
    app.health_checks = vec![HealthCheck {
        timeout: Duration::from_secs(1),
        interval: Duration::from_millis(50),
        jitter: Duration::ZERO,
        unhealthy_threshold: 2,
        healthy_threshold: 1,
        port: None,
        kind: HealthCheckKind::Http {
            method: http::Method::GET,
            host: "".into(),
            path: "/health".into(),
            headers: Vec::new(),
            statuses: vec![(200, 201)],
            h2: false,
        },
    }];
    let at = free_port();
    let run = start(http_to(at, forward("app"), vec![(app, Some(endpoints(&[good, bad])))]), Default::default());
    let _ = get(at, "/").await;
    until("a check failed", || run.engine.stats().get("cluster.app.health_check_failure") > 0).await;
    for _ in 0..20 {
        assert_eq!(get(at, "/").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamic_forwarding_goes_where_the_host_says() {
    let (app, _) = echo_app().await;
    let mut anywhere = cluster("app");
    (anywhere.discovery, anywhere.lb) = (Discovery::DynamicForward, LbPolicy::ClusterProvided);
    let at = free_port();
    let mut action = forward("app");
    action.host_rewrite = Some(HostRewrite::Header("x-to".parse().unwrap()));
    let _run = start(http_to(at, forward("app"), vec![(anywhere, None)]), Default::default());
    let mut raw = TcpStream::connect(at).await.unwrap();
    let request = format!("GET /x HTTP/1.1\r\nhost: localhost:{}\r\nconnection: close\r\n\r\n", app.port());
    raw.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_is_made_for_the_hash_and_keeps_the_client_at_its_host() {
    let (one, _) = echo_app().await;
    let (two, _) = echo_app().await;
    let mut app = cluster("app");
    app.lb = LbPolicy::RingHash { min: 1024, max: 8192, by_hostname: false };
    let at = free_port();
    let mut action = forward("app");
    action.hash = vec![HashPolicy {
        terminal: false,
        source: HashSource::Cookie {
            name: "sticky".into(),
            ttl: Some(Duration::from_secs(60)),
            path: "/".into(),
            attributes: "; SameSite=Lax".into(),
        },
    }];
    let _run = start(http_to(at, action, vec![(app, Some(endpoints(&[one, two])))]), Default::default());
    let mut client = Client::connect(at).await;
    let (parts, _) = client.get("/").await.unwrap();
    let cookie = parts.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(
        cookie.starts_with("sticky=\"") && cookie.ends_with("; Max-Age=60; Path=/; SameSite=Lax; HttpOnly"),
        "{cookie}"
    );
    let pair = cookie.split(';').next().unwrap();
    let (parts, _) = client.send(http::Request::get("/").header("cookie", pair), "").await.unwrap();
    assert!(!parts.headers.contains_key("set-cookie"));
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_crosses_http2_between_proxies() {
    // Client —HTTP/1→ first proxy —HTTP/2→ second proxy —HTTP/1→ application.
    let (app, _) = echo_app().await;
    let (first, second) = (free_port(), free_port());
    let mut h2 = cluster("app");
    h2.http = HttpProtocol::Http2;
    let _second = start(plain_proxy(second, &[app]), Default::default());
    let _first = start(http_to(first, forward("app"), vec![(h2, Some(endpoints(&[second])))]), Default::default());
    let mut tcp = TcpStream::connect(first).await.unwrap();
    tcp.write_all(
        b"GET /ws HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
          sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n",
    )
    .await
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    tcp.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tcp.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_before_the_response_ends_as_envoy_ends_it() {
    let (app, _) = echo_app().await;
    let short = Some(Duration::from_millis(100));
    type Change = fn(&mut RouteAction, Option<Duration>);
    let cases: [(Change, &str); 2] = [
        (|a, d| a.idle_timeout = Some(d), "stream timeout"),
        (|a, d| a.max_stream_duration = Some(d), "downstream duration timeout"),
    ];
    for (change, text) in cases {
        let at = free_port();
        let mut action = forward("app");
        change(&mut action, short);
        let _run = start(http_to(at, action, vec![(cluster("app"), Some(endpoints(&[app])))]), Default::default());
        assert_eq!(get(at, "/slow").await, (504, text.to_owned()));
        assert_eq!(get(at, "/quick").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_responses_may_speak_of_the_request() {
    use carrick_proxy_core::model::headers::{AppendAction, HeaderAdd};
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut table = route_table(forward("app"));
    let host = Arc::get_mut(&mut table.virtual_hosts[0]).unwrap();
    Arc::get_mut(&mut host.routes[0]).unwrap().response.add.push(HeaderAdd {
        name: "x-r".parse().unwrap(),
        value: format::parse("%REQ(x-in)%-%RESPONSE_CODE%").unwrap(),
        action: AppendAction::AppendOrAdd,
        keep_empty: false,
    });
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(table))])],
        vec![(cluster("app"), Some(endpoints(&[app])))],
    );
    let _run = start(c, Default::default());
    let mut client = Client::connect(at).await;
    let (parts, _) = client.send(http::Request::get("/").header("x-in", "V"), "").await.unwrap();
    assert_eq!(parts.headers["x-r"], "V-200", "as Envoy 1.40");
}
