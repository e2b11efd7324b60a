//! A second machine for a scenario: a network namespace of its own, and one link between it and this one.
//!
//! Invariant: the two ends of the link are all that one side can reach of the other; both go when this is dropped, and what a killed
//! predecessor left is removed first.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// This side's address, of a range that nobody has (RFC 5737).
pub const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The other side's.
pub const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The other side's namespace.
const NAMESPACE: &str = "demo-west";
/// The ends of the link.
const ENDS: [&str; 2] = ["demo-to-west", "demo-to-east"];

/// The link and what is behind it.
pub struct Link(());

impl Link {
    /// Makes both.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn make() -> Result<Self> {
        remove();
        // From here on whatever fails is taken away again.
        let link = Self(());
        let [here, there] = ENDS;
        let (own, other) = (format!("{HERE}/30"), format!("{THERE}/30"));
        ip(&["netns", "add", NAMESPACE])?;
        ip(&["link", "add", here, "type", "veth", "peer", "name", there, "netns", NAMESPACE])?;
        ip(&["address", "add", &own, "dev", here])?;
        ip(&["link", "set", here, "up"])?;
        for args in
            [&["address", "add", &other, "dev", there][..], &["link", "set", there, "up"], &["link", "set", "lo", "up"]]
        {
            ip(&[&["-n", NAMESPACE], args].concat())?;
        }
        Ok(link)
    }

    /// The other side's namespace, as a file to enter it by.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(NAMESPACE)
    }

    /// The addresses of both ends.
    pub fn ends(&self) -> [IpAddr; 2] {
        [HERE.into(), THERE.into()]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        remove();
    }
}

/// Removes both; what is not there is fine.
fn remove() {
    for args in [["link", "delete", ENDS[0]], ["netns", "delete", NAMESPACE]] {
        let _ = Command::new("ip").args(args).output();
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("ip (iproute2)")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), told.trim());
    Ok(())
}
