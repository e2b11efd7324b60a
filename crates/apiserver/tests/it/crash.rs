//! `kill -9` while writes are going on: what was acknowledged is there afterwards.

use crate::http::{Access, config_map};
use carrick_apiserver::{ApiOptions, ApiServer};
use http::Method;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::watch;

const FOLDER: &str = "CARRICK_TEST_API_FOLDER";
const KILLS: usize = 20;
const WRITERS: u64 = 4;
const NAMES: u64 = 5;
const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// The server that is killed; this binary runs it as a child of itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of the other test"]
async fn child() {
    let folder = std::env::var(FOLDER).expect("only as a child");
    let _server = ApiServer::start(ApiOptions::new(folder, 0)).await.unwrap();
    println!("\nserving");
    std::future::pending::<()>().await;
}

fn start(folder: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "serving"), "the child did not start");
    child
}

/// What a writer knows of its objects.
#[derive(Default, Clone)]
struct Ledger {
    /// Last acknowledged number by name; `None` = acknowledged deletion.
    acknowledged: BTreeMap<String, Option<u64>>,
    /// The write that was under way when the connection broke, by name.
    doubtful: BTreeMap<String, Option<u64>>,
    highest_revision: u64,
    next: u64,
}

/// Creates, changes and deletes its own objects until the connection breaks.
async fn write(access: Access, writer: u64, mut ledger: Ledger, begun: watch::Sender<bool>) -> Ledger {
    let Ok(mut client) = access.admin().await else { return ledger };
    loop {
        ledger.next += 1;
        let number = ledger.next;
        let name = format!("w{writer}-{}", number % NAMES);
        let there = ledger.acknowledged.get(&name).is_some_and(Option::is_some);
        let path = format!("{PATH}/{name}");
        let delete = there && number.is_multiple_of(3);
        let wanted = (!delete).then_some(number);
        ledger.doubtful.insert(name.clone(), wanted);
        let body = config_map(&name, number);
        let outcome = match (there, delete) {
            (false, _) => client.call(Method::POST, PATH, Some(&body)).await,
            (true, true) => client.call(Method::DELETE, &path, None).await,
            (true, false) => client.call(Method::PUT, &path, Some(&body)).await,
        };
        let Ok((code, answer)) = outcome else { return ledger };
        begun.send_replace(true);
        assert!(matches!(code, 200 | 201), "{code} {answer}");
        ledger.doubtful.remove(&name);
        ledger.acknowledged.insert(name, wanted);
        if let Some(revision) = answer.pointer("/metadata/resourceVersion").and_then(|v| v.as_str()) {
            ledger.highest_revision = ledger.highest_revision.max(revision.parse().unwrap());
        }
    }
}

/// Compares what is stored with the ledgers and settles the doubtful.
async fn check(access: &Access, ledgers: &mut [Ledger]) -> usize {
    let mut client = access.admin().await.unwrap();
    let (code, list) = client.get(PATH).await;
    assert_eq!(code, 200);
    let revision: u64 = list.pointer("/metadata/resourceVersion").unwrap().as_str().unwrap().parse().unwrap();
    let stored: BTreeMap<String, u64> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|o| o["metadata"]["name"].as_str().unwrap().starts_with('w'))
        .map(|o| (o["metadata"]["name"].as_str().unwrap().into(), o["data"]["n"].as_str().unwrap().parse().unwrap()))
        .collect();
    let mut checked = 0;
    for ledger in ledgers {
        assert!(revision >= ledger.highest_revision, "revision {revision} is before {}", ledger.highest_revision);
        for (name, doubtful) in std::mem::take(&mut ledger.doubtful) {
            let now = stored.get(&name).copied();
            let before = ledger.acknowledged.get(&name).copied().flatten();
            assert!(now == before || now == doubtful, "{name} is {now:?}, was {before:?} or {doubtful:?}");
            ledger.acknowledged.insert(name, now);
        }
        for (name, value) in &ledger.acknowledged {
            assert_eq!(stored.get(name), value.as_ref(), "{name}");
            checked += 1;
        }
    }
    checked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_twenty_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledgers = vec![Ledger::default(); usize::try_from(WRITERS).unwrap()];
    for round in 0..=KILLS {
        let path = folder.path().to_owned();
        let mut child = tokio::task::spawn_blocking(move || start(&path)).await.unwrap();
        let access = Access::of(&folder.path().join("kubeconfig"));
        let checked = check(&access, &mut ledgers).await;
        assert!(round == 0 || checked > 0);
        if round < KILLS {
            let begun = watch::Sender::new(false);
            let writers: Vec<_> = ledgers
                .drain(..)
                .enumerate()
                .map(|(index, ledger)| tokio::spawn(write(access.clone(), index as u64, ledger, begun.clone())))
                .collect();
            begun.subscribe().wait_for(|begun| *begun).await.unwrap();
            tokio::time::sleep(Duration::from_millis(40 + (round as u64 * 37) % 120)).await;
            child.kill().unwrap();
            for writer in writers {
                ledgers.push(writer.await.unwrap());
            }
        }
        // SIGKILL, also the last time: there is nothing to be tidy about.
        drop(child.kill());
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_folder_is_refused() {
    let bench = crate::bench::Bench::start().await;
    let error = ApiServer::start(ApiOptions::new(bench.folder.path(), 0)).await.err().unwrap().to_string();
    assert!(error.contains("is in use by process"), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    let folder = bench.folder.path().to_owned();
    bench.server.store().get("namespaces", "", "default").expect("the first one still answers");
    let crate::bench::Bench { server, folder: keep } = bench;
    server.drain(Duration::from_secs(5)).await;
    // Freed with the server.
    let again = ApiServer::start(ApiOptions::new(folder, 0)).await;
    assert!(again.is_ok(), "{:?}", again.err());
    drop(keep);
}
