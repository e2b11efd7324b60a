//! The whole of the mesh's certificates, lived through in simulated time: leaves, intermediates, roots, a machine that is away for weeks,
//! clocks that are wrong by an hour, an authority that is down for a day.
//!
//! Invariant: what decides is the code that decides in earnest (the agent's renewal, the authority's backdating, the rotation and its
//! gates); simulated are only clocks, wires and signatures. Whoever meets whom, at every moment, each must accept the other; a moment at
//! which they do not is the end of the rehearsal, and its report. With a [`Fault`] something is done wrong on purpose, and the rehearsal
//! has to find it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use carrick_agent::identity::renew_after;
use carrick_certs::rotation::{Fingerprint, Next, Proxy, Rotation, Step, Told, Trust, World};
use carrick_pki::ca::backdate;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How far the world goes on at a time.
const TICK: Duration = Duration::from_secs(20 * 60);
/// The worst clock.
const SKEW: Duration = HOUR;
/// Life of a leaf: half of it is longer than the authority is ever down.
const LEAF: Duration = DAY.saturating_mul(3);
const INTERMEDIATE: Duration = DAY.saturating_mul(90);
const ROOT: Duration = DAY.saturating_mul(900);
/// The share of its life at which an issuer is exchanged.
const EXCHANGE: f64 = 0.8;
/// The longest time that the authority is down.
const DOWN: Duration = DAY;
/// The name of the proxy that is away for weeks now and then.
const MACHINE: &str = "machine.edge";

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Leaves are renewed when they have ended.
    LateRenewal,
    /// Leaves live so short that a day without the authority is longer than what is left at renewal.
    ShortLeaves,
    /// Leaves begin when they are signed.
    NoBackdating,
    /// The intermediate is never exchanged.
    OldIntermediate,
    /// The root is never exchanged.
    OldRoot,
    /// The new set signs before the proxies trust it.
    SwitchUnproven,
    /// The old roots are withdrawn before all certificates lead to new ones.
    RetireUndrained,
    /// Who is away counts as done.
    AwayIgnored,
    /// Trust is told once, at the start of a proxy.
    TrustNotPushed,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::LateRenewal,
        Self::ShortLeaves,
        Self::NoBackdating,
        Self::OldIntermediate,
        Self::OldRoot,
        Self::SwitchUnproven,
        Self::RetireUndrained,
        Self::AwayIgnored,
        Self::TrustNotPushed,
    ];
}

/// What a life has had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Leaves issued.
    pub leaves: u64,
    /// Intermediates issued.
    pub intermediates: u64,
    /// Rotations of the root, from the first step to the last.
    pub rotations: u64,
    /// Times that the authority was down.
    pub outages: u64,
    /// Times that the machine came back by a new token, its certificate having ended meanwhile.
    pub rejoined: u64,
    /// Meetings of two proxies.
    pub meetings: u64,
    /// The end, if something was wrong: when, and what.
    pub failure: Option<String>,
}

#[derive(Debug, Clone)]
struct Leaf {
    root: Fingerprint,
    not_before: SystemTime,
    not_after: SystemTime,
}

#[derive(Debug)]
struct Sim {
    name: String,
    /// Its clock is so many seconds ahead, or behind.
    skew: i64,
    trusts: BTreeSet<Fingerprint>,
    leaf: Leaf,
    /// When it renews, in true time.
    renews: SystemTime,
    /// How long it takes to follow.
    lag: Duration,
    behind: Option<SystemTime>,
    away: Option<SystemTime>,
    /// What it said when it was last connected.
    told: Told,
    seen: SystemTime,
}

impl Sim {
    fn clock(&self, now: SystemTime) -> SystemTime {
        let skew = Duration::from_secs(self.skew.unsigned_abs());
        if self.skew < 0 { now - skew } else { now + skew }
    }

    /// Why it does not accept a leaf.
    fn refuses(&self, leaf: &Leaf, now: SystemTime) -> Option<&'static str> {
        let clock = self.clock(now);
        match () {
            () if !self.trusts.contains(&leaf.root) => Some("its root is not trusted"),
            () if clock < leaf.not_before => Some("it is not valid yet"),
            () if clock > leaf.not_after => Some("it has ended"),
            () => None,
        }
    }
}

#[derive(Debug, Clone)]
struct Set {
    root_made: SystemTime,
    signer_made: SystemTime,
}

/// The world.
struct Life {
    fault: Option<Fault>,
    random: StdRng,
    now: SystemTime,
    sets: BTreeMap<String, Set>,
    signer: String,
    rotation: Option<Rotation>,
    down_until: SystemTime,
    sims: Vec<Sim>,
    report: Report,
}

/// Lives so many years.
pub fn live(seed: u64, years: u32, fault: Option<Fault>) -> Report {
    let mut life = Life::new(seed, fault);
    let end = life.now + DAY * 365 * years;
    while life.now < end && life.report.failure.is_none() {
        life.tick();
    }
    life.report
}

impl Life {
    fn new(seed: u64, fault: Option<Fault>) -> Self {
        let now = SystemTime::UNIX_EPOCH + DAY * 21_900;
        let mut life = Self {
            fault,
            random: StdRng::seed_from_u64(seed),
            now,
            sets: [("root-0".to_owned(), Set { root_made: now, signer_made: now })].into(),
            signer: "root-0".into(),
            rotation: None,
            down_until: now,
            sims: Vec::new(),
            report: Report::default(),
        };
        let second = i64::try_from(SKEW.as_secs()).unwrap_or(0);
        let skews = [0, second, -second, 0, 17, -400, 0];
        for (n, skew) in skews.into_iter().enumerate() {
            let name = if n == skews.len() - 1 { MACHINE.to_owned() } else { format!("proxy-{n}.shop") };
            let lag = MINUTE * life.random.random_range(0..90);
            let leaf = life.sign();
            let trusts = life.published();
            let told = Self::tells(&trusts, &leaf);
            let (renews, behind, away) = (now, None, None);
            life.sims.push(Sim { name, skew, trusts, leaf, renews, lag, behind, away, told, seen: now });
        }
        for at in 0..life.sims.len() {
            life.schedule(at);
        }
        life
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn tick(&mut self) {
        self.now += TICK;
        if self.now >= self.down_until && self.random.random_bool(0.0005) {
            self.down_until = self.now + DOWN;
            self.report.outages += 1;
        }
        self.come_and_go();
        if self.now >= self.down_until {
            self.keep_issuers();
            self.rotate();
            for at in 0..self.sims.len() {
                if self.sims[at].away.is_none() {
                    self.follow(at);
                }
            }
        }
        self.meet();
    }

    /// The machine is away for days or weeks now and then; if its certificate has ended meanwhile it joins anew.
    fn come_and_go(&mut self) {
        let now = self.now;
        let comes = self.random.random_bool(0.004);
        let goes = self.random.random_bool(0.002);
        let up = now >= self.down_until;
        let Some(at) = self.sims.iter().position(|sim| sim.name == MACHINE) else { return };
        match self.sims[at].away {
            None if goes => self.sims[at].away = Some(now),
            Some(_) if comes && up => {
                self.sims[at].away = None;
                let sim = &self.sims[at];
                if sim.clock(now) > sim.leaf.not_after {
                    self.report.rejoined += 1;
                    let (leaf, trusts) = (self.sign(), self.published());
                    let sim = &mut self.sims[at];
                    (sim.leaf, sim.trusts) = (leaf, trusts);
                    self.schedule(at);
                } else if self.sims[at].renews <= now {
                    self.renew(at);
                }
                self.tell(at);
            }
            _ => {}
        }
    }

    /// Exchanges the intermediate, and begins a rotation when the root has lived most of its life.
    fn keep_issuers(&mut self) {
        let now = self.now;
        let (skip_signer, skip_root) = (self.is(Fault::OldIntermediate), self.is(Fault::OldRoot));
        let Some(set) = self.sets.get_mut(&self.signer) else { return };
        if now >= set.signer_made + INTERMEDIATE.mul_f64(EXCHANGE) && !skip_signer {
            set.signer_made = now;
            self.report.intermediates += 1;
        }
        let root_made = set.root_made;
        if self.rotation.is_none() && now >= root_made + ROOT.mul_f64(EXCHANGE) && !skip_root {
            let next = format!("root-{}", self.sets.len());
            self.sets.insert(next.clone(), Set { root_made: now, signer_made: now });
            self.rotation = Rotation::begin(&self.signer, &next, HOUR, now).ok();
        }
    }

    fn rotate(&mut self) {
        let now = self.now;
        let Some(mut rotation) = self.rotation.take() else { return };
        let roots: BTreeSet<_> = [rotation.to.clone()].into();
        let all: Vec<Proxy> = self.sims.iter().map(|sim| self.proxy(sim)).collect();
        let proxies = match (self.fault, rotation.step) {
            (Some(Fault::SwitchUnproven), Step::Prove) | (Some(Fault::RetireUndrained), Step::Drain) => Vec::new(),
            (Some(Fault::AwayIgnored), _) => all.into_iter().filter(|proxy| proxy.away.is_none()).collect(),
            _ => all,
        };
        match rotation.next(World { roots: &roots, proxies: &proxies, done: true }, now) {
            Next::Go(step) => rotation.enter(step, now),
            Next::Finished => {
                self.report.rotations += 1;
                self.signer = rotation.to;
                return;
            }
            _ => {}
        }
        self.signer = rotation.signer().to_owned();
        self.rotation = Some(rotation);
    }

    fn proxy(&self, sim: &Sim) -> Proxy {
        Proxy { name: sim.name.clone(), seen: sim.seen, away: sim.away, told: Some(sim.told.clone()) }
    }

    /// What a connected proxy does in this moment: takes trust over after its lag, and renews when it is time or when it is asked to.
    fn follow(&mut self, at: usize) {
        let (now, published) = (self.now, self.published());
        let asked = self.rotation.as_ref().is_some_and(Rotation::asks_for_renewal);
        let to_push = !self.is(Fault::TrustNotPushed);
        let sim = &mut self.sims[at];
        let wants = (sim.trusts != published && to_push) || (asked && sim.leaf.root != self.signer);
        match (wants, sim.behind) {
            (false, _) => sim.behind = None,
            (true, None) => sim.behind = Some(now),
            (true, Some(since)) if now >= since + sim.lag => {
                sim.behind = None;
                if to_push {
                    sim.trusts = published;
                }
                if asked && sim.leaf.root != self.signer {
                    self.renew(at);
                }
            }
            (true, Some(_)) => {}
        }
        if self.sims[at].renews <= now {
            self.renew(at);
        }
        self.tell(at);
    }

    fn renew(&mut self, at: usize) {
        self.sims[at].leaf = self.sign();
        self.schedule(at);
    }

    fn schedule(&mut self, at: usize) {
        let ratio = if self.is(Fault::LateRenewal) { 0.0 } else { 0.5 };
        let random = self.random.random_range(-1.0..=1.0);
        let now = self.now;
        let sim = &mut self.sims[at];
        sim.renews = now + renew_after(sim.clock(now), sim.leaf.not_after, ratio, 0.01, random);
    }

    fn tell(&mut self, at: usize) {
        let sim = &mut self.sims[at];
        sim.told = Self::tells(&sim.trusts, &sim.leaf);
    }

    fn tells(trusts: &BTreeSet<Fingerprint>, leaf: &Leaf) -> Told {
        let leads_to = [leaf.root.clone()].into();
        Told { trusts: trusts.clone(), leads_to, serial: "1".into(), not_after: leaf.not_after }
    }

    fn sign(&mut self) -> Leaf {
        self.report.leaves += 1;
        let ttl = if self.is(Fault::ShortLeaves) { DAY } else { LEAF };
        let back = if self.is(Fault::NoBackdating) { Duration::ZERO } else { backdate(ttl) };
        let set = self.sets.get(&self.signer);
        let ends = set.map_or(self.now, |set| (set.signer_made + INTERMEDIATE).min(set.root_made + ROOT));
        Leaf { root: self.signer.clone(), not_before: self.now - back, not_after: (self.now + ttl).min(ends) }
    }

    fn published(&self) -> BTreeSet<Fingerprint> {
        match &self.rotation {
            None => [self.signer.clone()].into(),
            Some(rotation) => match rotation.trust() {
                Trust::From => [rotation.from.clone()].into(),
                Trust::Both => [rotation.from.clone(), rotation.to.clone()].into(),
                Trust::To => [rotation.to.clone()].into(),
            },
        }
    }

    /// Any two meet. One that is away meets the others for as long as its certificate lives.
    fn meet(&mut self) {
        let now = self.now;
        for caller in &self.sims {
            for called in self.sims.iter().filter(|called| called.name != caller.name) {
                let lost = |sim: &Sim| sim.away.is_some() && now + SKEW * 2 > sim.leaf.not_after;
                if lost(caller) || lost(called) {
                    continue;
                }
                self.report.meetings += 1;
                if let Some(reason) = called.refuses(&caller.leaf, now) {
                    let days = now.duration_since(SystemTime::UNIX_EPOCH + DAY * 21_900).unwrap_or_default().as_secs()
                        / 86_400;
                    let step = self.rotation.as_ref().map_or("no rotation", |rotation| rotation.step.as_str());
                    let text = format!("day {days}, {step}: {} refuses {}: {reason}", called.name, caller.name);
                    self.report.failure = Some(text);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_years_without_a_refusal() {
        let report = live(1, 10, None);
        assert_eq!(report.failure, None, "{report:?}");
        assert!(report.rotations >= 4 && report.intermediates >= 40, "{report:?}");
        assert!(report.outages >= 20 && report.rejoined >= 10 && report.leaves > 10_000, "{report:?}");
    }

    #[test]
    fn every_fault_is_found() {
        for fault in Fault::ALL {
            let found = (1..=3).filter_map(|seed| live(seed, 10, Some(fault)).failure).next();
            assert!(found.is_some(), "{fault:?} is not found in ten years");
        }
    }
}
