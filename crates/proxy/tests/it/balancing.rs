//! Endpoints that fail, connections that go stale, limits.

use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_server_closed_while_idle_are_not_used_again() {
    // Answers two requests per connection without saying so, and closes.
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let app = raw_server(move |_, mut tcp| {
        let count = Arc::clone(&count);
        async move {
            for _ in 0..2 {
                if !read_head(&mut tcp).await {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut client = Client::connect(at).await;
    for i in 0..300 {
        let (parts, _) = client.get("/").await.unwrap();
        assert_eq!(parts.status, 200, "request {i}");
    }
    let stats = run.engine.stats();
    assert!(stats.get("cluster.app.upstream_cx_total") >= 150, "{}", stats.get("cluster.app.upstream_cx_total"));
    assert_eq!(stats.get("http.test.downstream_rq_5xx"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_meets_a_closing_connection_is_sent_again_only_if_safe() {
    // Every connection but the first of a pair reads the second request and closes without a word.
    let app = raw_server(move |_, mut tcp| async move {
        if read_head(&mut tcp).await {
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            read_head(&mut tcp).await;
        }
    })
    .await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut client = Client::connect(at).await;
    for _ in 0..10 {
        let (parts, _) = client.get("/").await.unwrap();
        assert_eq!(parts.status, 200);
    }
    assert!(run.engine.stats().get("cluster.app.upstream_rq_resent_unseen") > 0);
    // The server has seen a POST, so it is for the client to decide.
    let (parts, body) = client.send(http::Request::post("/"), "").await.unwrap();
    assert_eq!((parts.status.as_u16(), body.contains("connection termination")), (503, true), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_retried_elsewhere() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut action = forward("app");
    action.retry = Some(Arc::new(retry_policy()));
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(route_table(action)))])],
        vec![(cluster("app"), Some(endpoints(&[free_port(), app])))],
    );
    let run = start(c, Default::default());
    let mut client = Client::connect(at).await;
    for _ in 0..40 {
        let (parts, body) = client.send(http::Request::post("/x"), "payload").await.unwrap();
        assert_eq!(parts.status, 200);
        assert!(body.ends_with("payload"));
    }
    assert!(run.engine.stats().get("cluster.app.upstream_rq_retry") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_limits_answer_503_with_overflow() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut upstream = cluster("app");
    upstream.limits.max_connections = 1;
    upstream.limits.max_pending_requests = 1;
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(all_to("app")))])],
        vec![(upstream, Some(endpoints(&[app])))],
    );
    let options = carrick_proxy::EngineOptions { workers: 1, ..Default::default() };
    let _run = start_with(c, Default::default(), options);
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(tokio::spawn(get(at, "/slow")));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut statuses = Vec::new();
    for t in tasks {
        let (status, body) = t.await.unwrap();
        assert!(status == 200 || body.ends_with("reset reason: overflow"), "{status} {body}");
        statuses.push(status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503, 503, 503]);
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_limits_are_those_of_the_whole_process() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut upstream = cluster("app");
    upstream.limits.max_requests = 4;
    let c = config(
        vec![listener("l", at, Default::default(), vec![chain("c", http(all_to("app")))])],
        vec![(upstream, Some(endpoints(&[app])))],
    );
    let options = carrick_proxy::EngineOptions { workers: 4, ..Default::default() };
    let _run = start_with(c, Default::default(), options);
    let tasks: Vec<_> = (0..24).map(|_| tokio::spawn(get(at, "/slow"))).collect();
    let mut good = 0;
    for task in tasks {
        good += usize::from(task.await.unwrap().0 == 200);
    }
    // Two workers may see the last place free at once.
    assert!((4..8).contains(&good), "{good} of 24 were let through");
}
