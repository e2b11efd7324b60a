//! A second machine for a scenario: a network namespace of its own, and one link between it and this one.
//!
//! Invariant: the two ends of the link are all that one side can reach of the other; both go when this is dropped, and what a killed
//! predecessor left is removed first.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Ranges that nobody has (RFC 5737); the link takes the first that this machine has no route for, since some do use them.
const RANGES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 0), Ipv4Addr::new(198, 51, 100, 0), Ipv4Addr::new(203, 0, 113, 0)];
/// The other side's namespace.
const NAMESPACE: &str = "demo-west";
/// The ends of the link.
const ENDS: [&str; 2] = ["demo-to-west", "demo-to-east"];

/// The link and what is behind it.
pub struct Link {
    /// This side's address.
    pub here: Ipv4Addr,
    /// The other side's.
    pub there: Ipv4Addr,
}

impl Link {
    /// Makes both.
    ///
    /// # Errors
    /// Not root, the kernel refuses, or every range is in use.
    pub fn make() -> Result<Self> {
        remove();
        let [a, b, c, _] = free_range()?.octets();
        // From here on whatever fails is taken away again.
        let link = Self { here: Ipv4Addr::new(a, b, c, 1), there: Ipv4Addr::new(a, b, c, 2) };
        let [here, there] = ENDS;
        let (own, other) = (format!("{}/30", link.here), format!("{}/30", link.there));
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

/// The first range within which this machine has neither an address nor a route.
fn free_range() -> Result<Ipv4Addr> {
    for range in RANGES {
        if ip(&["-4", "route", "show", "table", "all", "root", &format!("{range}/24")])?.trim().is_empty() {
            return Ok(range);
        }
    }
    bail!("this machine uses all of {RANGES:?} (RFC 5737): none is left for the link")
}

fn ip(args: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(args).output().context("ip (iproute2)")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), told.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
