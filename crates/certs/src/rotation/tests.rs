//! A population that follows, or does not: whatever meets whatever, each trusts the other.

use super::*;
use std::collections::BTreeMap;

const OLD: &str = "old";
const NEW: &str = "new";
const TICK: Duration = Duration::from_millis(100);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn set(names: &[&str]) -> BTreeSet<Fingerprint> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A proxy of the simulation: what it holds, and how many ticks it takes to follow.
#[derive(Debug, Clone)]
struct Sim {
    trusts: BTreeSet<Fingerprint>,
    leaf: &'static str,
    lag: u32,
    due: Option<u32>,
    frozen: bool,
    away: Option<SystemTime>,
}

struct Lab {
    rotation: Rotation,
    finished: bool,
    now: SystemTime,
    ends: SystemTime,
    sims: BTreeMap<String, Sim>,
    /// Those left behind by a waiver may fail; nobody else.
    left_behind: BTreeSet<String>,
    visited: Vec<Step>,
}

impl Lab {
    fn new(lags: &[u32]) -> Self {
        let now = start();
        let sim = |lag: &u32| Sim { trusts: set(&[OLD]), leaf: OLD, lag: *lag, due: None, frozen: false, away: None };
        Self {
            rotation: Rotation::begin(OLD, NEW, Duration::ZERO, now).unwrap(),
            finished: false,
            now,
            ends: now + Duration::from_secs(86_400),
            sims: lags.iter().enumerate().map(|(n, lag)| (format!("p{n}.x"), sim(lag))).collect(),
            left_behind: BTreeSet::new(),
            visited: vec![Step::Prepare],
        }
    }

    fn published(&self) -> BTreeSet<Fingerprint> {
        if self.finished {
            return set(&[self.rotation.to.as_str()]);
        }
        match self.rotation.trust() {
            Trust::From => set(&[self.rotation.from.as_str()]),
            Trust::Both => set(&[OLD, NEW]),
            Trust::To => set(&[self.rotation.to.as_str()]),
        }
    }

    fn roots(&self) -> BTreeSet<Fingerprint> {
        set(&[self.rotation.to.as_str()])
    }

    fn proxies(&self) -> Vec<Proxy> {
        let told = |sim: &Sim| Told {
            trusts: sim.trusts.clone(),
            leads_to: set(&[sim.leaf]),
            serial: "1".into(),
            not_after: self.ends,
        };
        let proxy = |(name, sim): (&String, &Sim)| Proxy {
            name: name.clone(),
            seen: start(),
            away: sim.away,
            told: Some(told(sim)),
        };
        self.sims.iter().map(proxy).collect()
    }

    fn tick(&mut self) -> Next {
        self.now += TICK;
        let published = self.published();
        let signer = if self.rotation.signer() == OLD { OLD } else { NEW };
        let renew = self.rotation.asks_for_renewal();
        for sim in self.sims.values_mut().filter(|sim| !sim.frozen && sim.away.is_none()) {
            let behind = sim.trusts != published || (renew && sim.leaf != signer);
            sim.due = match (behind, sim.due) {
                (false, _) => None,
                (true, None) => Some(sim.lag),
                (true, Some(0)) => {
                    sim.trusts = published.clone();
                    sim.leaf = if renew { signer } else { sim.leaf };
                    None
                }
                (true, Some(left)) => Some(left - 1),
            };
        }
        self.check();
        if self.finished {
            return Next::Finished;
        }
        let (roots, proxies) = (self.roots(), self.proxies());
        let next = self.rotation.next(World { roots: &roots, proxies: &proxies, done: true }, self.now);
        match &next {
            Next::Go(step) => {
                self.rotation.enter(*step, self.now);
                self.visited.push(*step);
            }
            Next::Finished => self.finished = true,
            _ => {}
        }
        next
    }

    /// Any two meet.
    fn check(&self) {
        for (a, caller) in &self.sims {
            for (b, called) in &self.sims {
                let left = self.left_behind.contains(a) || self.left_behind.contains(b);
                let trusted = called.trusts.contains(caller.leaf) && caller.trusts.contains(called.leaf);
                assert!(left || trusted, "{:?}: {a} {caller:?} meets {b} {called:?}", self.rotation.step);
            }
        }
    }

    fn run(&mut self, ticks: usize) -> Next {
        let mut last = Next::Working;
        for _ in 0..ticks {
            last = self.tick();
        }
        last
    }

    fn sim(&mut self, name: &str) -> &mut Sim {
        self.sims.get_mut(name).unwrap()
    }
}

#[test]
fn everybody_follows_at_their_own_pace() {
    let mut lab = Lab::new(&[0, 3, 17, 40, 1]);
    assert_eq!(lab.run(400), Next::Finished);
    assert_eq!(lab.visited, Step::ALL);
    assert!(lab.sims.values().all(|sim| sim.leaf == NEW && sim.trusts == set(&[NEW])));
}

#[test]
fn a_frozen_proxy_stops_every_step_and_is_named() {
    for (freeze_at, reason) in [
        (Step::Prepare, "does not trust the new root yet"),
        (Step::Switch, "serves a certificate of the old root (serial 1)"),
    ] {
        let mut lab = Lab::new(&[0, 2, 5]);
        while lab.rotation.step < freeze_at {
            lab.tick();
        }
        lab.sim("p1.x").frozen = true;
        let Next::Held(held) = lab.run(500) else { panic!("not held: {:?}", lab.rotation) };
        assert_eq!(held.len(), 1);
        assert_eq!((held[0].proxy.as_str(), held[0].reason.as_str()), ("p1.x", reason));
        assert_eq!(held[0].since, lab.rotation.since);
        lab.sim("p1.x").frozen = false;
        assert_eq!(lab.run(200), Next::Finished, "it goes on by itself");
    }
}

#[test]
fn one_that_is_away_is_waited_for_and_comes_back_late() {
    let mut lab = Lab::new(&[0, 2, 5]);
    let away = lab.now;
    lab.sim("p2.x").away = Some(away);
    let Next::Held(held) = lab.run(1_300) else { panic!("not held") };
    assert_eq!(held[0].reason, "does not trust the new root yet; not connected for 2 min");
    assert_eq!(lab.rotation.step, Step::Prove);
    lab.sim("p2.x").away = None;
    assert_eq!(lab.run(200), Next::Finished);

    // Gone for longer than its certificate lasts: it can meet nobody, and comes back by a new one.
    let mut lab = Lab::new(&[0, 2]);
    lab.sim("p1.x").away = Some(away);
    lab.left_behind.insert("p1.x".into());
    lab.run(50);
    assert_eq!(lab.rotation.step, Step::Prove);
    lab.ends = lab.now;
    assert_eq!(lab.run(100), Next::Finished);
}

#[test]
fn a_waiver_holds_until_its_date() {
    let mut lab = Lab::new(&[0, 2]);
    lab.sim("p1.x").frozen = true;
    lab.run(50);
    let until = lab.now + TICK * 9;
    lab.rotation.waive("p1.x", until);
    lab.left_behind.insert("p1.x".into());
    lab.run(7);
    assert_eq!(lab.rotation.step, Step::Drain, "without the waived one");
    let Next::Held(held) = lab.run(50) else { panic!("not held") };
    assert_eq!(held[0].proxy, "p1.x", "after the date it is waited for again");
    lab.rotation.waive("p1.x", lab.now + Duration::from_secs(60));
    assert_eq!(lab.rotation.waivers.len(), 1);
    assert_eq!(lab.run(100), Next::Finished);
}

#[test]
fn every_step_can_be_turned_round() {
    for at in Step::ALL {
        for lags in [[0, 1, 2], [9, 0, 30]] {
            let mut lab = Lab::new(&lags);
            while lab.rotation.step < at {
                lab.tick();
            }
            lab.run(2);
            if lab.finished {
                continue;
            }
            lab.rotation.roll_back(lab.now).unwrap();
            assert_eq!(lab.rotation.roll_back(lab.now), Err(RotationError::Back));
            assert_eq!(lab.run(600), Next::Finished, "{at:?}: {:?}", lab.rotation);
            assert!(lab.sims.values().all(|sim| sim.leaf == OLD && sim.trusts == set(&[OLD])), "{at:?}");
        }
    }
}

#[test]
fn a_pause_keeps_everything_as_it_is() {
    let mut lab = Lab::new(&[0, 2]);
    while lab.rotation.step < Step::Drain {
        lab.tick();
    }
    lab.rotation.paused = true;
    assert!(!lab.rotation.asks_for_renewal());
    assert_eq!(lab.run(200), Next::Paused);
    assert_eq!(lab.published(), set(&[OLD, NEW]));
    lab.rotation.paused = false;
    assert_eq!(lab.run(200), Next::Finished);
}

#[test]
fn a_process_killed_anywhere_goes_on_where_it_was() {
    let mut lab = Lab::new(&[0, 2, 7]);
    for round in 0..600 {
        if round % 3 == 0 {
            // What is written down is all that is left.
            let text = serde_json::to_string(&lab.rotation).unwrap();
            let read: Rotation = serde_json::from_str(&text).unwrap();
            assert_eq!(Rotation { open: None, ..lab.rotation.clone() }, read);
            if round % 30 == 0 {
                lab.rotation = read;
            }
        }
        lab.tick();
    }
    assert!(lab.finished);
    assert_eq!(lab.visited, Step::ALL);
}

#[test]
fn silence_holds_up_and_a_soak_is_waited_for() {
    let now = start();
    let mut rotation = Rotation::begin(OLD, NEW, Duration::from_secs(60), now).unwrap();
    rotation.enter(Step::Prove, now);
    let roots = set(&[NEW]);
    let silent = [Proxy { name: "a.b".into(), seen: now, away: None, told: None }];
    let world = World { roots: &roots, proxies: &silent, done: true };
    let Next::Held(held) = rotation.next(world, now) else { panic!("not held") };
    assert_eq!(held[0].reason, "does not say what it trusts and serves");
    let nobody = World { proxies: &[], ..world };
    assert_eq!(rotation.next(nobody, now), Next::Until(now + Duration::from_secs(60)));
    assert_eq!(rotation.next(nobody, now + Duration::from_secs(60)), Next::Go(Step::Switch));
    assert_eq!(rotation.next(World { done: false, ..nobody }, now), Next::Working);
    assert!(Rotation::begin(OLD, OLD, Duration::ZERO, now).is_err());
}
