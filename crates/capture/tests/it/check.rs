//! The look at rules from within: as the proxy's user, by a connection of its own.

use std::time::Duration;

use carrick_capture::CaptureError;
use carrick_capture::netns::NetNs;
use carrick_capture::nft::{self, Table};
use carrick_capture::sidecar::{self, SidecarCapture};

#[test]
fn rules_are_seen_by_what_they_do() {
    let pod = NetNs::create(&format!("ckt{}-check", std::process::id())).expect("these tests need root");
    let up = pod.spawn(std::process::Command::new("ip").args(["link", "set", "lo", "up"])).unwrap().wait().unwrap();
    assert!(up.success());
    let capture = SidecarCapture::default();
    // File system ids of the thread are enough: a socket's owner is taken from them.
    let look = |limit| {
        let capture = capture.clone();
        pod.run(move || {
            nix::unistd::setfsgid(1337.into());
            nix::unistd::setfsuid(1337.into());
            carrick_capture::check::in_place(&capture, limit)
        })
        .unwrap()
    };
    assert!(matches!(look(Duration::ZERO), Err(CaptureError::NotInPlace { .. })));
    let table = Table { family: "inet", name: sidecar::TABLE };
    pod.run(|| nft::apply(table, &sidecar::ruleset(&capture))).unwrap().unwrap();
    look(Duration::from_secs(5)).unwrap();
    pod.delete().unwrap();
}
