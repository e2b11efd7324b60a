//! Rules of `loadBalancer`: one algorithm, hashes that can be computed, localities that add up.
//!
//! Invariant: every locality is judged by its text alone; whether it exists is not known here.

use std::collections::BTreeSet;

use carrick_base::FieldPath;

use super::{Findings, Node};
use crate::istio::traffic::{ConsistentHash, LoadBalancer, LocalityLb, Warmup};

/// Labels that name a place.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// Tables of Maglev must be smaller than this.
const MAGLEV_LIMIT: u64 = 5_000_011;

pub(super) fn check(settings: &LoadBalancer, has_outlier_detection: bool, path: &FieldPath, findings: &mut Findings) {
    if settings.simple.is_some() && settings.consistent_hash.is_some() {
        findings.error(path, "only one of simple and consistentHash can be set");
    }
    if let Some(hash) = &settings.consistent_hash {
        consistent_hash(hash, &path.field("consistentHash"), findings);
    }
    if let Some(locality) = &settings.locality_lb_setting {
        self::locality(locality, has_outlier_detection, &path.field("localityLbSetting"), findings);
    }
    findings.duration(&path.field("warmupDurationSecs"), settings.warmup_duration_secs);
    if let Some(warmup) = &settings.warmup {
        self::warmup(warmup, &path.field("warmup"), findings);
    }
}

/// Settings that are judged as they were written.
pub(super) fn untyped(settings: &Node<'_>, has_outlier_detection: bool, findings: &mut Findings) {
    let kinds = settings.set_among(&["simple", "consistentHash", "backendUtilization"]);
    if kinds.len() > 1 && kinds.contains(&"backendUtilization") {
        findings.error(&settings.path, format!("only one of {} can be set", kinds.join(", ")));
    }
    let zones = settings.field("zoneAwareLbSetting");
    if !zones.is_set() {
        return;
    }
    if settings.field("localityLbSetting").is_set() {
        findings.error(&settings.path, "only one of localityLbSetting and zoneAwareLbSetting can be set");
    }
    for label in zones.field("failoverPriority").items().iter().filter(|label| TOPOLOGY.contains(&label.text())) {
        findings.error(
            &label.path,
            format!("'failover_priority' for zone aware lb must not use topology label '{}'; region- and zone-level routing are handled automatically", label.text()),
        );
    }
    let (failover, priority) = (zones.field("failover"), zones.field("failoverPriority"));
    if !(has_outlier_detection || failover.is_empty() && priority.is_empty()) {
        findings.warning(&zones.path, "outlier detection policy must be provided for failover");
    }
    for entry in failover.items() {
        let regions = ["from", "to"].map(|field| entry.field(field).text());
        if regions[0] == regions[1] {
            findings.error(&entry.path, "zone aware lb failover settings must specify different regions");
        }
        if regions.iter().any(|region| region.contains('/')) {
            findings.error(&entry.path, "zone aware lb failover only specifies region");
        }
        if regions.iter().any(|region| region.contains('*')) {
            findings.error(&entry.path, "zone aware lb failover region should not contain '*' wildcard");
        }
    }
    let size = zones.field("minClusterSize");
    if size.is_set() && size.number() < 1 {
        findings.error(&size.path, "minClusterSize should be greater than or equal to 1");
    }
}

fn warmup(warmup: &Warmup, path: &FieldPath, findings: &mut Findings) {
    if warmup.duration.is_none() {
        findings.error(&path.field("duration"), "duration is required");
    }
    findings.duration(&path.field("duration"), warmup.duration);
    if let Some(percent) = warmup.minimum_percent {
        findings.percent(&path.field("minimumPercent"), percent.0);
    }
    if warmup.aggression.is_some_and(|aggression| !aggression.0.is_finite() || aggression.0 <= 0.0) {
        findings.error(&path.field("aggression"), "aggression should be greater than 0");
    }
}

fn consistent_hash(hash: &ConsistentHash, path: &FieldPath, findings: &mut Findings) {
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|set| **set).count() > 1 {
        findings
            .error(path, "only one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName can be set");
    }
    if let Some(cookie) = &hash.http_cookie {
        let at = path.field("httpCookie");
        if cookie.name.is_empty() {
            findings.error(&at.field("name"), "name required for HttpCookie");
        }
        let mut seen = BTreeSet::new();
        for (index, attribute) in cookie.attributes.iter().enumerate() {
            let name = at.field("attributes").index(index).field("name");
            if attribute.name.is_empty() {
                findings.error(&name, "cookie attribute name cannot be empty");
            } else if !seen.insert(&attribute.name) {
                findings.error(&name, format!("duplicate cookie attribute name: {}", attribute.name));
            }
        }
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        findings.error(path, "only one of ringHash and maglev can be set");
    }
    if hash.minimum_ring_size.is_some_and(|size| size.0 != 0) {
        findings.warning(
            &path.field("minimumRingSize"),
            "consistent hash MinimumRingSize is deprecated, use ConsistentHashLB's RingHash configuration instead",
        );
    }
    if hash.minimum_ring_size.is_some_and(|size| size.0 != 0) && (hash.ring_hash.is_some() || hash.maglev.is_some()) {
        findings.error(&path.field("minimumRingSize"), "only one of minimumRingSize, ringHash and maglev can be set");
    }
    if let Some(size) = hash.maglev.as_ref().map(|maglev| maglev.table_size.unwrap_or_default()) {
        let at = path.field("maglev").field("tableSize");
        if size.0 == 0 {
            findings.error(&at, "tableSize must be set for maglev");
        } else if size.0 >= MAGLEV_LIMIT {
            findings.error(&at, format!("tableSize must be less than {MAGLEV_LIMIT} for maglev"));
        } else if !is_prime(size.0) {
            findings.error(&at, "tableSize must be a prime number for maglev");
        }
    }
}

/// Trial division; numbers here are below the Maglev limit. Envoy takes 1 for a prime.
fn is_prime(number: u64) -> bool {
    let divides = |d: u64| number.checked_rem(d) == Some(0);
    number >= 1 && (2..).take_while(|d: &u64| d.saturating_mul(*d) <= number).all(|d| !divides(d))
}

pub(crate) fn locality(settings: &LocalityLb, has_outlier_detection: bool, path: &FieldPath, findings: &mut Findings) {
    if !settings.distribute.is_empty() && !settings.failover.is_empty() {
        findings.error(path, "can not simultaneously specify 'distribute' and 'failover'");
    }
    let topology = settings.failover_priority.iter().find(|label| TOPOLOGY.contains(&label.as_str()));
    if let Some(label) = topology.filter(|_| !settings.failover.is_empty()) {
        findings.error(
            path,
            format!("can not simultaneously set 'failover' and topology label '{label}' in 'failover_priority'"),
        );
    }
    let mut sources = Vec::new();
    for (index, distribute) in settings.distribute.iter().enumerate() {
        let at = path.field("distribute").index(index);
        localities(std::iter::once((distribute.from.as_str(), at.field("from"))), &mut sources, findings);
        let mut targets = Vec::new();
        let to = at.field("to");
        localities(distribute.to.keys().map(|locality| (locality.as_str(), to.key(locality))), &mut targets, findings);
        for (locality, weight) in &distribute.to {
            if !(1..=100).contains(weight) {
                findings.error(&to.key(locality), format!("locality weight must be in range [1, 100], not {weight}"));
            }
        }
        let total = distribute.to.values().fold(0u64, |sum, weight| sum.saturating_add(u64::from(*weight)));
        if total != 100 {
            findings.error(&to, format!("total locality weight {total} != 100"));
        }
    }
    for (index, failover) in settings.failover.iter().enumerate() {
        let at = path.field("failover").index(index);
        if failover.from == failover.to {
            findings.error(&at, "locality lb failover settings must specify different regions");
        }
        for (field, region) in [("from", &failover.from), ("to", &failover.to)] {
            if region.contains('*') {
                findings.error(&at.field(field), "locality lb failover region should not contain '*' wildcard");
            } else if region.contains('/') {
                findings.error(&at.field(field), "locality lb failover must specify only a region");
            }
        }
    }
    let fails_over = !settings.failover.is_empty() || !settings.failover_priority.is_empty();
    if fails_over && !has_outlier_detection {
        findings.warning(path, "outlier detection policy must be provided for failover");
    }
}

/// Localities of one list: each well formed, none part of another. `seen` carries those before.
fn localities<'a>(list: impl Iterator<Item = (&'a str, FieldPath)>, seen: &mut Vec<&'a str>, findings: &mut Findings) {
    for (locality, path) in list {
        if let Err(message) = well_formed(locality) {
            findings.error(&path, message);
            continue;
        }
        if let Some(other) = seen.iter().find(|other| overlap(other, locality)) {
            findings.error(&path, format!("locality {locality} overlaps with {other}"));
        }
        seen.push(locality);
    }
}

fn well_formed(locality: &str) -> Result<(), String> {
    if locality.is_empty() {
        return Err("locality must not be empty".to_owned());
    }
    if locality.find('*').is_some_and(|place| place + 1 != locality.len()) {
        return Err(format!("locality {locality} wildcard '*' number can not exceed 1 and must be in the end"));
    }
    if locality.splitn(3, '/').any(str::is_empty) {
        return Err(format!("locality {locality} must not contain empty region/zone/subzone info"));
    }
    Ok(())
}

/// Whether one locality covers (part of) the other.
fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None, _) | (_, None) | (Some("*"), _) | (_, Some("*")) => return true,
            (Some(x), Some(y)) if x != y => return false,
            _ => {}
        }
    }
}
