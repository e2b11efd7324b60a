//! Original destinations as the kernel tells them, in a network namespace with a redirecting rule. Needs root, `ip`, `nft`.

use crate::support::*;
use carrick_proxy::EngineOptions;
use carrick_proxy_core::model::cluster::Discovery;
use carrick_proxy_core::model::listener::Direction;
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::process::{Command, Stdio};

const RULES: &str = "
table ip carrick_test {
  chain output {
    type nat hook output priority -100;
    ip daddr 10.1.1.1 tcp dport 80 redirect to :15001
    ip daddr 10.1.1.2 tcp dport 80 meta mark != 7 redirect to :15006
  }
}
";

fn run(command: &str, args: &[&str], input: &str) {
    let mut child = Command::new(command).args(args).stdin(Stdio::piped()).spawn().expect(command);
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{command} {args:?}");
}

#[test]
fn redirected_by_the_kernel() {
    // A thread of its own: its namespace goes with it, and the engine's threads inherit it.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        run("ip", &["link", "set", "lo", "up"], "");
        run("ip", &["address", "add", "10.1.1.1/32", "dev", "lo"], "");
        run("ip", &["address", "add", "10.1.1.2/32", "dev", "lo"], "");
        run("nft", &["-f", "-"], RULES);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(both_directions());
    })
    .join()
    .unwrap();
}

async fn both_directions() {
    let (app, _) = echo_app().await;
    let mut out = listener(
        "virtualOutbound",
        "0.0.0.0:15001".parse().unwrap(),
        Direction::Outbound,
        vec![chain("none", tcp("BlackHole"))],
    );
    out.use_original_dst = true;
    let mut hidden = listener(
        "10.1.1.1_80",
        "10.1.1.1:80".parse().unwrap(),
        Direction::Outbound,
        vec![chain("c", http(all_to("app")))],
    );
    hidden.bind_to_port = false;
    let mut inn = listener(
        "virtualInbound",
        "0.0.0.0:15006".parse().unwrap(),
        Direction::Inbound,
        vec![chain("c", http(all_to("inbound|80||")))],
    );
    inn.restore_original_dst = true;
    let mut inbound = cluster("inbound|80||");
    inbound.discovery = Discovery::OriginalDst;
    inbound.bind = Some("127.0.0.6:0".parse().unwrap());
    // SOL_SOCKET, SO_MARK: what the rule lets pass.
    inbound.socket_options = vec![(1, 36, 7)];
    let c = config(
        vec![out, hidden, inn],
        vec![(cluster("app"), Some(endpoints(&[app]))), (cluster("BlackHole"), Some(endpoints(&[]))), (inbound, None)],
    );
    let _run = start_with(c, Default::default(), EngineOptions { workers: 1, ..EngineOptions::default() });
    let (status, body) = get("10.1.1.1:80".parse().unwrap(), "/virtual").await;
    assert_eq!((status, body.contains("x-request-id")), (200, true), "{body}");
    // An application on the address itself, which sees the proxy's own source address.
    let direct = tokio::net::TcpListener::bind("10.1.1.2:80").await.unwrap();
    let seen = tokio::spawn(async move {
        let (mut tcp, from) = direct.accept().await.unwrap();
        read_head(&mut tcp).await;
        tokio::io::AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ndirect")
            .await
            .unwrap();
        from.ip().to_string()
    });
    assert_eq!(get("10.1.1.2:80".parse().unwrap(), "/").await, (200, "direct".into()));
    assert_eq!(seen.await.unwrap(), "127.0.0.6");
}
