//! Outlier detection: who is ejected, for how long.
//!
//! Invariant: time is an argument, in milliseconds of any monotonic clock; hosts are identified by a key of the caller's (their
//! address), so that the state survives endpoint updates. At most `max_ejection_percent` of the hosts are ejected, except that one may
//! always be when the percentage is not yet reached.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::model::cluster::OutlierDetection;

/// What became of a request, as outlier detection counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Status(u16),
    /// A connection was made.
    ConnectSuccess,
    /// No connection, or it broke, or it timed out: the failure began on our side of the wire.
    LocalFailure,
}

/// Outlier detection of one cluster.
#[derive(Debug)]
pub struct OutlierState<K> {
    hosts: HashMap<K, Host>,
    ejected: usize,
    last_sweep: Option<u64>,
}

#[derive(Debug, Default, Clone)]
struct Host {
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    success: u64,
    total: u64,
    /// When it was ejected and until when, in milliseconds.
    ejected: Option<(u64, u64)>,
    /// How often in a row; falls again while the host behaves.
    times: u32,
}

impl<K> Default for OutlierState<K> {
    fn default() -> Self {
        Self { hosts: HashMap::new(), ejected: 0, last_sweep: None }
    }
}

impl<K: Eq + Hash + Clone> OutlierState<K> {
    /// Nothing known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a host is ejected now.
    #[must_use]
    pub fn is_ejected(&self, host: &K) -> bool {
        self.ejected > 0 && self.hosts.get(host).is_some_and(|h| h.ejected.is_some())
    }

    /// Number of ejected hosts.
    #[must_use]
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Forgets hosts that are gone.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.hosts.retain(|key, _| keep(key));
        self.ejected = self.hosts.values().filter(|h| h.ejected.is_some()).count();
    }

    /// Counts an outcome; true if the host was ejected by it (refresh the balancer). `host_count` = hosts in the cluster;
    /// `random` decides enforcement chances.
    pub fn record(
        &mut self,
        settings: &OutlierDetection,
        host: &K,
        outcome: Outcome,
        host_count: usize,
        now: u64,
        random: u64,
    ) -> bool {
        let entry = self.hosts.entry(host.clone()).or_default();
        let chance = entry.count(settings, outcome);
        let enforce = chance.is_some_and(|percent| random % 100 < u64::from(percent));
        enforce && self.eject(settings, host, host_count, now)
    }

    fn eject(&mut self, settings: &OutlierDetection, host: &K, host_count: usize, now: u64) -> bool {
        let share = self.ejected.saturating_mul(100).checked_div(host_count.max(1)).unwrap_or(100);
        let room = share < usize::try_from(settings.max_ejection_percent).unwrap_or(usize::MAX)
            || (self.ejected == 0 && settings.always_eject_one_host);
        let Some(entry) = self.hosts.get_mut(host).filter(|h| room && h.ejected.is_none()) else { return false };
        entry.times = entry.times.saturating_add(1);
        let length = settings.base_ejection_time.saturating_mul(entry.times).min(settings.max_ejection_time);
        entry.ejected = Some((now, now.saturating_add(millis(length))));
        self.ejected = self.ejected.saturating_add(1);
        true
    }

    /// When the next sweep is due.
    #[must_use]
    pub fn next_sweep(&self, settings: &OutlierDetection) -> Option<u64> {
        self.last_sweep.map(|last| last.saturating_add(millis(settings.interval)))
    }

    /// Un-ejects those whose time is over and judges success rates. Call once per interval; true if anything changed.
    pub fn sweep(&mut self, settings: &OutlierDetection, host_count: usize, now: u64, random: u64) -> bool {
        self.last_sweep = Some(now);
        let mut changed = false;
        for host in self.hosts.values_mut() {
            match host.ejected {
                Some((_, until)) if until <= now => {
                    *host = Host { times: host.times, ..Host::default() };
                    changed = true;
                }
                Some(_) => {}
                None => host.times = host.times.saturating_sub(1),
            }
        }
        self.ejected = self.hosts.values().filter(|h| h.ejected.is_some()).count();
        for key in self.below_success_rate(settings) {
            let enforce = random % 100 < u64::from(settings.enforcing_success_rate);
            changed |= enforce && self.eject(settings, &key, host_count, now);
        }
        for host in self.hosts.values_mut() {
            (host.success, host.total) = (0, 0);
        }
        changed
    }

    /// Hosts whose success rate is further below the mean than the deviation allows.
    #[allow(clippy::cast_precision_loss)]
    fn below_success_rate(&self, settings: &OutlierDetection) -> Vec<K> {
        let enough =
            |h: &Host| h.ejected.is_none() && h.total >= u64::from(settings.success_rate_request_volume).max(1);
        let rates: Vec<(&K, f64)> = self
            .hosts
            .iter()
            .filter(|(_, h)| enough(h))
            .map(|(key, h)| (key, 100.0 * h.success as f64 / h.total as f64))
            .collect();
        if settings.enforcing_success_rate == 0
            || rates.is_empty()
            || rates.len() < usize::try_from(settings.success_rate_minimum_hosts).unwrap_or(usize::MAX)
        {
            return Vec::new();
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - variance.sqrt() * f64::from(settings.success_rate_stdev_factor) / 1000.0;
        rates.into_iter().filter(|(_, rate)| *rate < threshold).map(|(key, _)| key.clone()).collect()
    }
}

impl Host {
    /// Counts; the enforcement chance in percent if a threshold was reached just now.
    fn count(&mut self, settings: &OutlierDetection, outcome: Outcome) -> Option<u32> {
        match outcome {
            Outcome::ConnectSuccess => {
                if settings.split_external_local_origin_errors {
                    self.consecutive_local = 0;
                }
                None
            }
            Outcome::LocalFailure if settings.split_external_local_origin_errors => {
                self.consecutive_local = self.consecutive_local.saturating_add(1);
                let reached = self.consecutive_local >= settings.consecutive_local_origin_failure.max(1);
                reached.then(|| {
                    self.consecutive_local = 0;
                    settings.enforcing_consecutive_local_origin_failure
                })
            }
            // Without the split a local failure counts as a gateway error.
            Outcome::LocalFailure => self.external(settings, 503),
            Outcome::Status(status) => self.external(settings, status),
        }
    }

    fn external(&mut self, settings: &OutlierDetection, status: u16) -> Option<u32> {
        self.total = self.total.saturating_add(1);
        if !(500..600).contains(&status) {
            self.success = self.success.saturating_add(1);
            self.consecutive_5xx = 0;
            self.consecutive_gateway = 0;
            return None;
        }
        let mut chance = None;
        if (502..505).contains(&status) {
            self.consecutive_gateway = self.consecutive_gateway.saturating_add(1);
            if self.consecutive_gateway >= settings.consecutive_gateway_failure.max(1) {
                self.consecutive_gateway = 0;
                chance = Some(settings.enforcing_consecutive_gateway_failure);
            }
        } else {
            self.consecutive_gateway = 0;
        }
        self.consecutive_5xx = self.consecutive_5xx.saturating_add(1);
        if self.consecutive_5xx >= settings.consecutive_5xx.max(1) {
            self.consecutive_5xx = 0;
            chance = chance.max(Some(settings.enforcing_consecutive_5xx));
        }
        chance
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
