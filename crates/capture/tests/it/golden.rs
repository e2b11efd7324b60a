//! Rule texts, each beside its input: `NAME.annotations` (lines `key: value`) → `NAME.nft`. `CARRICK_BLESS=1` rewrites the expectations.
//! Every text is also given to nft in a namespace of its own, so that a golden file cannot be a text that no kernel takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use carrick_capture::host::{self, HostCapture, Owners};
use carrick_capture::netns::NetNs;
use carrick_capture::nft::{self, Table};
use carrick_capture::services::{self, Protocol, ServicePort, ServiceTable};
use carrick_capture::sidecar::InboundPorts;
use carrick_capture::{annotations, sidecar};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn compare(name: &str, actual: &str) {
    let path = directory().join(format!("{name}.nft"));
    if std::env::var_os("CARRICK_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(actual, expected, "{name}");
}

/// Applies twice: the second time replaces the first.
fn kernel_takes(name: &str, table: Table<'_>, text: &str) {
    let namespace = NetNs::create(&format!("cktg{}-{name}", std::process::id())).unwrap();
    let outcome = namespace.run(|| {
        nft::apply(table, text)?;
        let first = nft::list(table)?;
        nft::apply(table, text)?;
        assert_eq!(nft::list(table)?, first, "{name} applied twice");
        nft::remove(table)?;
        assert_eq!(nft::list(table)?, None, "{name} removed");
        nft::remove(table)
    });
    namespace.delete().unwrap();
    outcome.unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[test]
fn sidecar_rules() {
    let mut seen = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "annotations") {
            continue;
        }
        seen += 1;
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let input: BTreeMap<String, String> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned())).unwrap())
            .collect();
        let text = sidecar::ruleset(&annotations::parse(&input).unwrap());
        compare(&name, &text);
        kernel_takes(&name, Table { family: "inet", name: sidecar::TABLE }, &text);
    }
    assert!(seen >= 5, "only {seen} golden inputs found");
}

#[test]
fn machine_rules() {
    let ids = |list: &[u32]| list.iter().copied().collect::<BTreeSet<u32>>();
    let some = HostCapture {
        owners: Owners::Only { users: ids(&[1000, 1001]), groups: ids(&[500]) },
        inbound: InboundPorts::Only([8080, 8082].into()),
        exclude_outbound_ranges: vec!["10.9.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
        exclude_outbound_ports: [25].into(),
        name_servers: ["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()].into(),
        ..HostCapture::default()
    };
    let all = HostCapture {
        owners: Owners::AllBut(BTreeSet::new()),
        inbound: InboundPorts::All,
        name_servers: ["127.0.0.53".parse().unwrap()].into(),
        ..HostCapture::default()
    };
    for (name, capture) in [("host", HostCapture::default()), ("host-some", some), ("host-all", all)] {
        let text = host::ruleset(&capture);
        compare(name, &text);
        kernel_takes(name, Table { family: "inet", name: host::TABLE }, &text);
    }
}

#[test]
fn service_rules() {
    let table =
        ServiceTable::new("svc-golden", "carrick0", "10.244.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap());
    let port = |ip: &str, protocol, port| ServicePort { ip: ip.parse().unwrap(), protocol, port };
    let ends = |list: &[&str]| list.iter().map(|end| end.parse().unwrap()).collect::<BTreeSet<_>>();
    let full = ServiceTable {
        masquerade_egress: true,
        ports: BTreeMap::from([
            (port("10.96.0.1", Protocol::Tcp, 443), ends(&["127.0.0.1:6443"])),
            (port("10.96.7.7", Protocol::Tcp, 80), ends(&["10.244.0.3:8080", "10.244.0.2:8080", "10.244.1.9:8081"])),
            (port("10.96.7.7", Protocol::Udp, 53), ends(&["10.244.0.3:5353"])),
            (port("10.96.9.9", Protocol::Tcp, 80), ends(&[])),
        ]),
        node_ports: BTreeMap::from([((Protocol::Tcp, 30080), ends(&["10.244.0.2:8080"]))]),
        ..table.clone()
    };
    for (name, table) in [("services-empty", table), ("services", full)] {
        let text = services::ruleset(&table);
        compare(name, &text);
        kernel_takes(name, Table { family: "ip", name: &table.table }, &text);
    }
}

#[test]
fn a_refused_text_changes_nothing_and_says_why() {
    let namespace = NetNs::create(&format!("cktg{}-refused", std::process::id())).unwrap();
    let table = Table { family: "inet", name: sidecar::TABLE };
    let good = sidecar::ruleset(&sidecar::SidecarCapture::default());
    let broken = good.replace("type nat hook output", "type nat hook nowhere");
    assert_ne!(good, broken);
    let (before, error, after) = namespace
        .run(|| {
            nft::apply(table, &good).unwrap();
            let before = nft::list(table).unwrap();
            let error = nft::apply(table, &broken).unwrap_err();
            (before, error, nft::list(table).unwrap())
        })
        .unwrap();
    namespace.delete().unwrap();
    assert_eq!(before, after);
    assert!(error.to_string().contains("nowhere"), "{error}");
}
