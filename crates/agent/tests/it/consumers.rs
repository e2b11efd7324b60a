//! The programs of Debian that people deliver certificates to, each with a reload of its own: nginx, HAProxy, PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use carrick_agent::delivery::{self, Board, Bundle, Keeper};
use carrick_runtime::clock::SystemClock;
use carrick_runtime::drain;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::delivery::{delivered, parts, served, server};
use crate::lab::{Folder, Plane, free_port, until};

/// Two certificates, one after the other, at a consumer that is started when the first is in place.
async fn follows(consumer: &str, yaml: &str, state: &Path, start: impl AsyncFnOnce() -> Child) {
    let plane = Plane::start().await;
    let config = delivery::parse(yaml).unwrap_or_else(|errors| panic!("{errors:?}"));
    let board = Board::new("machine", &config.certificates);
    let (bundles, receiver) = watch::channel(None);
    let spec = config.certificates.into_iter().next().unwrap();
    let keeper = Keeper::new(spec, state, SystemClock::shared(), Arc::clone(&board), receiver);
    let (_trigger, drain) = drain::channel();
    let task = tokio::spawn(keeper.run(drain));
    let mut running: Option<Child> = None;
    let mut start = Some(start);
    for _ in 0..2 {
        let identity = server(&plane);
        let bundle = parts(&plane, &identity).into_iter().map(|(key, value)| (key, Zeroizing::new(value))).collect();
        bundles.send_replace(Some(Arc::new(Bundle::of(bundle).unwrap())));
        until("in place", async || delivered(&board, consumer).serial == identity.serial).await;
        if let Some(start) = start.take() {
            running = Some(start().await);
        }
        until(&format!("{consumer} serves {}", identity.serial), async || {
            if let Some(Ok(Some(ended))) = running.as_mut().map(Child::try_wait) {
                panic!("{consumer} ended: {ended}");
            }
            served(&board, consumer).serial == identity.serial
        })
        .await;
        assert_eq!(served(&board, consumer).status, "True");
    }
    task.abort();
    if let Some(mut running) = running {
        let id = nix::unistd::Pid::from_raw(i32::try_from(running.id().unwrap()).unwrap());
        // Asked to end, so that its own children end with it.
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGQUIT);
        if tokio::time::timeout(std::time::Duration::from_secs(5), running.wait()).await.is_err() {
            let _ = running.kill().await;
        }
    }
}

fn spawn(program: &Path, arguments: &[&str]) -> Child {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; `tools/install test` brings it", program.display()))
}

#[tokio::test]
async fn nginx_follows() {
    let folder = Folder::new();
    let (dir, port) = (folder.path().display().to_string(), free_port());
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {dir}/{of}; ")).concat();
    let config = format!(
        "daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log; events {{}}\nhttp {{ access_log off; {temporary}\n server {{ listen \
         127.0.0.1:{port} ssl; ssl_certificate {dir}/certs/tls.crt; ssl_certificate_key {dir}/certs/tls.key; return 200; }} }}\n"
    );
    std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let yaml = format!(
        "certificates:\n- secret: nginx\n  directory: {dir}/certs\n  files: [{{content: chain, name: tls.crt}}, {{content: key, name: tls.key}}]\n  \
         reload: {{command: [nginx, -c, {dir}/nginx.conf, -e, {dir}/error.log, -s, reload]}}\n  proof: {{address: '127.0.0.1:{port}', serverName: \
         web.example.com, period: 10s}}\n"
    );
    let start =
        async || spawn("nginx".as_ref(), &["-c", &format!("{dir}/nginx.conf"), "-e", &format!("{dir}/error.log")]);
    follows("nginx", &yaml, &folder.path().join("state"), start).await;
}

#[tokio::test]
async fn haproxy_follows() {
    let folder = Folder::new();
    let (dir, port) = (folder.path().display().to_string(), free_port());
    let config = format!(
        "global\n  maxconn 50\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\nfrontend web\n  bind \
         127.0.0.1:{port} ssl crt {dir}/web.pem\n  http-request return status 200\n"
    );
    std::fs::write(folder.path().join("haproxy.cfg"), config).unwrap();
    let yaml = format!(
        "certificates:\n- secret: haproxy\n  files: [{{content: combined, path: {dir}/web.pem}}]\n  reload: {{command: [sh, -c, 'kill -USR2 $(cat \
         {dir}/pid)']}}\n  proof: {{address: '127.0.0.1:{port}', serverName: web.example.com, period: 10s}}\n"
    );
    let start = async || {
        let child = spawn("haproxy".as_ref(), &["-W", "-db", "-f", &format!("{dir}/haproxy.cfg")]);
        // Not before it listens: until then the signal would be its end.
        until("HAProxy listens", async || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        std::fs::write(format!("{dir}/pid"), child.id().unwrap().to_string()).unwrap();
        child
    };
    follows("haproxy", &yaml, &folder.path().join("state"), start).await;
}

/// Where Debian has PostgreSQL's programs.
fn postgres_programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL; `tools/install test` brings it");
    versions.flatten().map(|entry| entry.path().join("bin")).max().expect("a version of PostgreSQL")
}

#[tokio::test]
async fn postgresql_follows() {
    let folder = Folder::new();
    let (dir, port, bin) = (folder.path().display().to_string(), free_port(), postgres_programs());
    let data = format!("{dir}/data");
    // It refuses to run as root, and reads a key only if it is its own.
    let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user postgres, of Debian's package");
    std::fs::create_dir(&data).unwrap();
    nix::unistd::chown(data.as_str(), Some(user.uid), Some(user.gid)).unwrap();
    let as_user = |program: &str, arguments: &[&str]| {
        let program = bin.join(program).display().to_string();
        let mut all = vec!["-u".to_owned(), "postgres".to_owned(), "--".to_owned(), program];
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        all
    };
    let made = Command::new("runuser")
        .args(as_user("initdb", &["-D", &data, "-A", "trust", "-N", "--no-locale"]))
        .current_dir("/")
        .output()
        .await
        .unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let settings = format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nfsync = off\nssl = on\nssl_cert_file = \
         '{dir}/certs/tls.crt'\nssl_key_file = '{dir}/certs/tls.key'\n"
    );
    std::fs::write(format!("{data}/postgresql.auto.conf"), settings).unwrap();
    let reload = as_user("pg_ctl", &["reload", "-D", &data]).join(", ");
    let yaml = format!(
        "certificates:\n- secret: postgres\n  directory: {dir}/certs\n  owner: postgres\n  files: [{{content: chain, name: tls.crt}}, {{content: \
         key, name: tls.key}}]\n  reload: {{command: [runuser, {reload}]}}\n  proof: {{address: '127.0.0.1:{port}', serverName: web.example.com, \
         startTls: postgres, period: 10s}}\n"
    );
    let start = async || {
        let program = bin.join("postgres");
        let mut command = Command::new(program);
        command.args(["-D", &data]).uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("PostgreSQL")
    };
    follows("postgres", &yaml, &folder.path().join("state"), start).await;
}
