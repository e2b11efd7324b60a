//! Plain HTTP/1 and HTTP/2 through one engine.

use crate::support::*;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn requests_reuse_one_upstream_connection_and_headers_are_those_of_a_sidecar() {
    let (app, connections) = echo_app().await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut client = Client::connect(at).await;
    for i in 0..20 {
        let request = Request::post(format!("/a/./b?i={i}")).header("x-mine", "yes").header("keep-alive", "timeout=5");
        let (parts, body) = client.send(request, "hello").await.unwrap();
        assert_eq!(parts.status, 200);
        assert!(body.starts_with(&format!("POST /a/b?i={i} HTTP/1.1\n")), "{body}");
        assert!(body.ends_with("\n\nhello"), "{body}");
        assert!(
            body.contains("x-mine: yes")
                && body.contains("host: app.test")
                && body.contains("x-forwarded-proto: http\n"),
            "{body}"
        );
        assert!(!body.contains("keep-alive") && !body.contains("x-forwarded-client-cert"), "{body}");
        let id = body.lines().find_map(|l| l.strip_prefix("x-request-id: ")).unwrap();
        assert_eq!((id.len(), id.as_bytes()[14]), (36, b'4'), "{id}");
        assert_eq!(parts.headers["server"], "istio-envoy");
        assert!(parts.headers.contains_key("x-envoy-upstream-service-time"));
        assert!(
            !parts.headers.contains_key("x-hop") && !parts.headers.contains_key("connection"),
            "{:?}",
            parts.headers
        );
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let stats = run.engine.stats();
    assert_eq!(stats.get("cluster.app.upstream_rq_total"), 20);
    assert_eq!(stats.get("cluster.app.upstream_cx_total"), 1);
    assert_eq!(stats.get("http.test.downstream_rq_2xx"), 20);
    assert!(stats.prometheus().contains("istio_requests_total{reporter=\"source\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_answers_are_envoys() {
    let at = free_port();
    let dead = free_port();
    let mut c = plain_proxy(at, &[dead]);
    start_and(
        &mut c,
        at,
        503,
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
    )
    .await;
    c.endpoints.insert("app".into(), Arc::new(endpoints(&[])));
    start_and(&mut c, at, 503, "no healthy upstream").await;
    c.clusters.clear();
    start_and(&mut c, at, 503, "").await;
    let mut table = all_to("app");
    table.domains.any = None;
    let l = listener("l", at, Default::default(), vec![chain("c", http(table))]);
    start_and(&mut config(vec![l], vec![]), at, 404, "").await;
}

async fn start_and(c: &mut carrick_proxy_core::RuntimeConfig, at: std::net::SocketAddr, status: u16, body: &str) {
    let _run = start(c.clone(), Default::default());
    assert_eq!(get(at, "/").await, (status, body.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_broken_requests_are_refused() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    for (request, status) in [
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "426"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
    ] {
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        tcp.read_exact(&mut head).await.unwrap();
        assert_eq!(std::str::from_utf8(&head).unwrap().split(' ').nth(1), Some(status), "{request:?}");
    }
    assert!(run.engine.stats().get("http.test.downstream_cx_protocol_error") >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn expectations_are_answered_here() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let _run = start(plain_proxy(at, &[app]), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
    let mut buf = [0; 25];
    tcp.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf[..], b"HTTP/1.1 100 Continue\r\n\r\n");
    tcp.write_all(b"abc").await.unwrap();
    let mut rest = vec![0; 2000];
    let n = tcp.read(&mut rest).await.unwrap();
    let text = String::from_utf8_lossy(&rest[..n]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200") && !text.contains("expect"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_streams_both_ways_with_trailers() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut upstream = cluster("app");
    upstream.http = carrick_proxy_core::model::cluster::HttpProtocol::UseDownstream;
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(all_to("app")))])],
        vec![(upstream, Some(endpoints(&[app])))],
    );
    let run = start(c, Default::default());
    let tcp = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let (frames, body) = tokio::sync::mpsc::channel::<Result<Frame<bytes::Bytes>, Infallible>>(4);
    let body = StreamBody::new(tokio_stream(body));
    let request = Request::post("http://app.test/mirror")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut answer = response.into_body();
    for i in 0..5 {
        let word = format!("message {i}");
        frames.send(Ok(Frame::data(word.clone().into()))).await.unwrap();
        // The answer to one message comes before the next is sent: nothing waits for the end.
        let got = tokio::time::timeout(Duration::from_secs(5), answer.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(got.into_data().unwrap(), word.as_bytes());
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    frames.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(frames);
    let end = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(end["grpc-status"], "0");
    until("one HTTP/2 stream upstream", || run.engine.stats().get("cluster.app.upstream_cx_http2_total") == 1).await;
    until("grpc in the metrics", || {
        run.engine
            .stats()
            .prometheus()
            .contains("request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"0\"")
    })
    .await;
}

fn tokio_stream<T: Send + 'static>(mut r: tokio::sync::mpsc::Receiver<T>) -> impl futures_core_like::Stream<Item = T> {
    futures_core_like::poll_fn(move |cx| r.poll_recv(cx))
}

/// The little of `futures` that is needed.
mod futures_core_like {
    pub use futures_util::stream::{Stream, poll_fn};
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_becomes_a_byte_stream() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
    )
    .await
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for word in ["one", "two", "three"] {
        tcp.write_all(word.as_bytes()).await.unwrap();
        let mut back = vec![0; word.len()];
        tcp.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
    assert_eq!(run.engine.stats().get("http.test.downstream_cx_upgrades_active"), 1);
    drop(tcp);
    until("the upgrade ends with its client", || {
        run.engine.stats().get("http.test.downstream_cx_upgrades_active") == 0
    })
    .await;
    // One that is not allowed is refused.
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    tcp.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 403");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_timeout_answers_504() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut action = forward("app");
    action.timeout = Some(Duration::from_millis(100));
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(route_table(action)))])],
        vec![(cluster("app"), Some(endpoints(&[app])))],
    );
    let _run = start(c, Default::default());
    assert_eq!(get(at, "/slow").await, (504, "upstream request timeout".into()));
    let (status, body) = get(at, "/quick").await;
    assert_eq!(status, 200);
    assert!(body.contains("x-envoy-expected-rq-timeout-ms: 100"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_stream_through() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let _run = start(plain_proxy(at, &[app]), Default::default());
    let big = "x".repeat(3_000_000);
    let (parts, body) = Client::connect(at).await.send(Request::post("/mirror"), &big).await.unwrap();
    assert_eq!(parts.status, 200);
    assert_eq!(body.len(), big.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_body_keep_their_headers() {
    let app = raw_server(|_, mut tcp| async move {
        while read_head(&mut tcp).await {
            // What a HEAD, then a 204, then a 304 look like.
            for answer in [
                "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
                "HTTP/1.1 204 No Content\r\n\r\n",
                "HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n",
            ] {
                tcp.write_all(answer.as_bytes()).await.unwrap();
                if !read_head(&mut tcp).await {
                    return;
                }
            }
        }
    })
    .await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut client = Client::connect(at).await;
    let (parts, _) = client.send(Request::head("/"), "").await.unwrap();
    assert_eq!(parts.headers["content-length"], "1234");
    let (parts, _) = client.get("/").await.unwrap();
    assert_eq!((parts.status.as_u16(), parts.headers.contains_key("content-length")), (204, false));
    let (parts, _) = client.get("/").await.unwrap();
    assert_eq!((parts.status.as_u16(), parts.headers["etag"].as_bytes()), (304, &b"x"[..]));
    assert_eq!(run.engine.stats().get("cluster.app.upstream_cx_total"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_breaks_off_breaks_the_response_off() {
    let app = raw_server(|_, mut tcp| async move {
        read_head(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
    })
    .await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut client = Client::connect(at).await;
    assert!(client.get("/").await.is_err(), "half a body must not look whole");
    until("it is told in the metrics", || {
        run.engine
            .stats()
            .prometheus()
            .contains("response_code=\"200\",grpc_response_status=\"\",response_flags=\"UC\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_http1_are_translated_both_ways() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let tcp = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://svc.test:81/two?x=1").header("cookie", "a=1").header("cookie", "b=2");
    let response = sender
        .send_request(request.body(http_body_util::Full::new(bytes::Bytes::from("body"))).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()["server"], "istio-envoy");
    let body = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(
        body.starts_with("POST /two?x=1 HTTP/1.1\n")
            && body.contains("host: svc.test:81\n")
            && body.contains("cookie: a=1; b=2\n"),
        "{body}"
    );
    assert!(body.ends_with("\n\nbody"), "{body}");
    drop(run);
    let mut upstream = cluster("app");
    upstream.http = carrick_proxy_core::model::cluster::HttpProtocol::Http2;
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(all_to("app")))])],
        vec![(upstream, Some(endpoints(&[app])))],
    );
    let _run = start(c, Default::default());
    let (status, body) = get(at, "/one").await;
    assert_eq!(status, 200);
    assert!(body.starts_with("GET http://app.test/one HTTP/2.0\n"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_names_keep_their_case_where_configured() {
    use carrick_proxy_core::model::hcm::HeaderCase;
    let app = raw_server(|_, mut tcp| async move {
        let mut buf = vec![0; 4000];
        let n = tcp.read(&mut buf).await.unwrap();
        let kept = String::from_utf8_lossy(&buf[..n]).contains("X-CaMel: 1");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-KePt: {kept}\r\n\r\n");
        tcp.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let at = free_port();
    let mut manager = hcm(all_to("app"));
    manager.http1.header_case = HeaderCase::Preserve;
    let mut upstream = cluster("app");
    upstream.http1.header_case = HeaderCase::Preserve;
    let kind = carrick_proxy_core::model::listener::ChainKind::Http(Box::new(manager));
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", kind)])],
        vec![(upstream, Some(endpoints(&[app])))],
    );
    let _run = start(c, Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-CaMel: 1\r\n\r\n").await.unwrap();
    let mut buf = vec![0; 4000];
    let n = tcp.read(&mut buf).await.unwrap();
    let text = String::from_utf8_lossy(&buf[..n]).into_owned();
    assert!(text.contains("X-KePt: true"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_sent_at_once_are_answered_in_order() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let _run = start(plain_proxy(at, &[app]), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(
        b"GET /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n\
          POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\ndefHEAD /three HTTP/1.1\r\nHost: a\r\n\r\n\
          GET /four HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await
    .unwrap();
    let mut all = String::new();
    tcp.read_to_string(&mut all).await.unwrap();
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 4, "{all}");
    let place = |what: &str| all.find(what).unwrap_or_else(|| panic!("{what}: {all}"));
    let places = ["GET /one ", "\n\nabc", "POST /two ", "\n\ndef", "GET /four "].map(place);
    assert!(places.is_sorted(), "{places:?} {all}");
    assert!(all.contains("connection: close\r\n") && !all.contains("HEAD /three"), "{all}");
}

/// An application that answers before it has read a body, and reads no further.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let app = raw_server(|_, mut tcp| async move {
        if read_head(&mut tcp).await {
            tcp.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    let at = free_port();
    let _run = start(plain_proxy(at, &[app]), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
    tcp.write_all(&[b'x'; 50_000]).await.unwrap();
    let mut answer = vec![0; 12];
    tcp.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest).await;
    assert!(rest.ends_with(b"\r\n\r\nno"), "{}", String::from_utf8_lossy(&rest));
}
