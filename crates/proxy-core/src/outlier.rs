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

/// Successes among outcomes.
#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    success: u64,
    total: u64,
}

impl Rate {
    fn count(&mut self, success: bool) {
        self.total = self.total.saturating_add(1);
        self.success = self.success.saturating_add(u64::from(success));
    }

    /// Percent of successes, if there were `volume` outcomes at least.
    #[allow(clippy::cast_precision_loss)]
    fn percent(self, volume: u32) -> Option<f64> {
        (self.total >= u64::from(volume).max(1)).then(|| 100.0 * self.success as f64 / self.total as f64)
    }
}

#[derive(Debug, Default, Clone)]
struct Host {
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    /// Of the interval so far: all outcomes, or with the split those of responses, and of local origin.
    external: Rate,
    local: Rate,
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
        enforce && self.eject(settings, host, host_count, now, random)
    }

    fn eject(&mut self, settings: &OutlierDetection, host: &K, host_count: usize, now: u64, random: u64) -> bool {
        let share = self.ejected.saturating_mul(100).checked_div(host_count.max(1)).unwrap_or(100);
        let room = share < usize::try_from(settings.max_ejection_percent).unwrap_or(usize::MAX)
            || (self.ejected == 0 && settings.always_eject_one_host);
        let Some(entry) = self.hosts.get_mut(host).filter(|h| room && h.ejected.is_none()) else { return false };
        entry.times = entry.times.saturating_add(1);
        let length = settings.base_ejection_time.saturating_mul(entry.times).min(settings.max_ejection_time);
        let jitter = random.checked_rem(millis(settings.max_ejection_time_jitter).saturating_add(1)).unwrap_or(0);
        entry.ejected = Some((now, now.saturating_add(millis(length)).saturating_add(jitter)));
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
        for (keys, chance) in self.judge(settings) {
            let enforce = random % 100 < u64::from(chance);
            for key in keys {
                changed |= enforce && self.eject(settings, &key, host_count, now, random);
            }
        }
        for host in self.hosts.values_mut() {
            (host.external, host.local) = (Rate::default(), Rate::default());
        }
        changed
    }

    /// Hosts that the interval's rates speak against, with the chance that they are ejected.
    fn judge(&self, settings: &OutlierDetection) -> Vec<(Vec<K>, u32)> {
        let mut out = Vec::new();
        type Which = fn(&Host) -> Rate;
        let mut kinds: Vec<(Which, u32, u32)> =
            vec![(|h| h.external, settings.enforcing_success_rate, settings.enforcing_failure_percentage)];
        if settings.split_external_local_origin_errors {
            kinds.push((
                |h| h.local,
                settings.enforcing_local_origin_success_rate,
                settings.enforcing_failure_percentage_local_origin,
            ));
        }
        for (rate, success, failure) in kinds {
            if success > 0 {
                out.push((self.below_success_rate(settings, rate), success));
            }
            if failure > 0 {
                out.push((self.above_failure_percentage(settings, rate), failure));
            }
        }
        out
    }

    fn rates(&self, rate: fn(&Host) -> Rate, volume: u32, minimum_hosts: u32) -> Vec<(&K, f64)> {
        let present = self.hosts.iter().filter(|(_, h)| h.ejected.is_none());
        let rates: Vec<_> = present.filter_map(|(key, h)| Some((key, rate(h).percent(volume)?))).collect();
        if rates.len() < usize::try_from(minimum_hosts).unwrap_or(usize::MAX) { Vec::new() } else { rates }
    }

    /// Hosts whose success rate is further below the mean than the deviation allows.
    #[allow(clippy::cast_precision_loss)]
    fn below_success_rate(&self, settings: &OutlierDetection, rate: fn(&Host) -> Rate) -> Vec<K> {
        let rates = self.rates(rate, settings.success_rate_request_volume, settings.success_rate_minimum_hosts);
        if rates.is_empty() {
            return Vec::new();
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - variance.sqrt() * f64::from(settings.success_rate_stdev_factor) / 1000.0;
        rates.into_iter().filter(|(_, rate)| *rate < threshold).map(|(key, _)| key.clone()).collect()
    }

    /// Hosts that failed too often, whatever the others did.
    fn above_failure_percentage(&self, settings: &OutlierDetection, rate: fn(&Host) -> Rate) -> Vec<K> {
        let volume = settings.failure_percentage_request_volume;
        let rates = self.rates(rate, volume, settings.failure_percentage_minimum_hosts);
        let limit = f64::from(settings.failure_percentage_threshold);
        rates.into_iter().filter(|(_, rate)| 100.0 - rate >= limit).map(|(key, _)| key.clone()).collect()
    }
}

impl Host {
    /// Counts; the enforcement chance in percent if a threshold was reached just now.
    fn count(&mut self, settings: &OutlierDetection, outcome: Outcome) -> Option<u32> {
        match outcome {
            Outcome::ConnectSuccess => {
                if settings.split_external_local_origin_errors {
                    self.consecutive_local = 0;
                    self.local.count(true);
                }
                None
            }
            Outcome::LocalFailure if settings.split_external_local_origin_errors => {
                self.local.count(false);
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
        let success = !(500..600).contains(&status);
        self.external.count(success);
        if success {
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
