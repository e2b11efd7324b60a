//! A world of one certificate, lived through step by step: whatever fails or stops, a good certificate is held whenever an
//! issuer could be reached in time.

use std::collections::BTreeSet;
use std::time::Duration;

use carrick_api::cert_manager::CertificateSpec;

use super::*;

const HOUR: i64 = 3600;

/// A certificate, its secret, its request, an issuer and a clock.
struct World {
    now: Timestamp,
    wish: Wish,
    status: CertificateStatus,
    held: Option<Held>,
    next_key: Option<Key>,
    request: Option<Request>,
    /// Whether the issuer answers, and how.
    issuer: Issuer,
    keys: u64,
    log: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Issuer {
    Signs,
    Silent,
    Refuses,
    SignsAnotherKey,
    LeavesOutNames,
}

impl World {
    fn new(spec: &CertificateSpec) -> Self {
        Self {
            now: Timestamp::from_seconds(0),
            wish: Wish::read(spec).unwrap(),
            status: CertificateStatus::default(),
            held: None,
            next_key: None,
            request: None,
            issuer: Issuer::Signs,
            keys: 0,
            log: Vec::new(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            now: self.now,
            wish: &self.wish,
            generation: 1,
            status: &self.status,
            held: self.held.as_ref(),
            next_key: self.next_key,
            request: self.request.as_ref(),
        }
    }

    fn key(&mut self) -> Key {
        self.keys += 1;
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&self.keys.to_be_bytes());
        Key { kind: Some(self.wish.key), digest }
    }

    fn leaf(&self, digest: [u8; 32]) -> Leaf {
        let names = match self.issuer {
            Issuer::LeavesOutNames => Names::default(),
            _ => self.wish.names.clone(),
        };
        let digest = if self.issuer == Issuer::SignsAnotherKey { [0; 32] } else { digest };
        let not_after = later(self.now, self.wish.duration);
        Leaf { names, not_before: self.now, not_after, digest, is_ca: false }
    }

    /// One decision and its step; the time of the next look when nothing is left to do.
    fn turn(&mut self) -> Option<Option<Timestamp>> {
        let decision = decide(&self.facts());
        self.status = decision.status;
        match decision.step {
            Step::Rest => {}
            Step::StoreNextKey { reuse } => {
                let used = self.held.as_ref().and_then(|h| h.key).filter(|_| reuse);
                self.next_key = Some(used.unwrap_or_else(|| self.key()));
            }
            Step::DropNextKey => self.next_key = None,
            Step::Ask { .. } => {
                let digest = self.next_key.unwrap().digest;
                let (names, issuer) = (self.wish.names.clone(), self.wish.issuer.clone());
                self.request = Some(Request { digest, names, issuer, reply: Reply::Pending });
            }
            Step::Withdraw | Step::GiveUp { .. } => self.request = None,
            Step::Deliver { .. } => {
                let Some(Request { reply: Reply::Signed(leaf), .. }) = self.request.take() else { panic!() };
                self.held = Some(Held { key: self.next_key, leaf: Some(leaf), issuer: Some(self.wish.issuer.clone()) });
                self.next_key = None;
            }
        }
        self.log.push(format!("{:?}", decision.step));
        // The issuer works on its own.
        let pending = self.request.as_ref().filter(|r| r.reply == Reply::Pending).map(|r| r.digest);
        if let Some(digest) = pending {
            let reply = match self.issuer {
                Issuer::Silent => Reply::Pending,
                Issuer::Refuses => Reply::Failed("no".into()),
                _ => Reply::Signed(self.leaf(digest)),
            };
            self.request.as_mut().unwrap().reply = reply;
        }
        matches!(decision.step, Step::Rest).then_some(decision.wake)
    }

    /// Turns until nothing is left to do now.
    fn rest(&mut self) -> Option<Timestamp> {
        for _ in 0..20 {
            if let Some(wake) = self.turn() {
                return wake;
            }
        }
        panic!("it goes on and on: {:?}", self.log);
    }

    fn ready(&self) -> (&str, &str) {
        let ready = self.status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        (&ready.status, &ready.reason)
    }
}

fn spec() -> CertificateSpec {
    CertificateSpec { dns_names: vec!["a.example".into()], ..CertificateSpec::default() }
}

#[test]
fn the_first_certificate_takes_four_steps() {
    let mut world = World::new(&spec());
    let wake = world.rest();
    let steps = ["StoreNextKey { reuse: false }", "Ask { revision: 1 }", "Deliver { revision: 1 }", "Rest"];
    assert_eq!(world.log, steps);
    assert_eq!(world.ready(), ("True", "Ready"));
    assert_eq!(world.status.revision, Some(1));
    assert!(!world.status.conditions.iter().any(|c| c.type_ == "Issuing"));
    assert_eq!(wake, Some(Timestamp::from_seconds(1440 * HOUR)));
}

#[test]
fn renewal_is_in_time_and_stays_ready() {
    let mut world = World::new(&spec());
    world.now = world.rest().unwrap();
    let first = world.held.clone().unwrap();
    let decision = decide(&world.facts());
    assert_eq!(decision.step, Step::StoreNextKey { reuse: false });
    assert!(decision.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    assert!(decision.status.conditions.iter().any(|c| c.type_ == "Issuing" && c.reason == "Renewing"));
    world.rest();
    assert_eq!(world.status.revision, Some(2));
    assert_ne!(world.held.as_ref().unwrap().key, first.key);
}

#[test]
fn a_key_that_is_to_stay_stays() {
    let mut spec = spec();
    spec.private_key.rotation_policy = "Never".into();
    let mut world = World::new(&spec);
    world.now = world.rest().unwrap();
    let key = world.held.as_ref().unwrap().key;
    world.rest();
    assert_eq!(world.status.revision, Some(2));
    assert_eq!(world.held.as_ref().unwrap().key, key);
}

#[test]
fn what_the_issuer_got_wrong_is_never_delivered() {
    for issuer in [Issuer::SignsAnotherKey, Issuer::LeavesOutNames, Issuer::Refuses] {
        let mut world = World::new(&spec());
        world.issuer = issuer;
        let until = world.rest().unwrap();
        assert!(world.held.is_none());
        assert_eq!(world.status.failed_issuance_attempts, Some(1));
        let issuing = world.status.conditions.iter().find(|c| c.type_ == "Issuing").unwrap();
        assert_eq!((issuing.status.as_str(), issuing.reason.as_str()), ("False", "Failed"));
        world.issuer = Issuer::Signs;
        world.now = until;
        world.rest();
        assert_eq!(world.ready(), ("True", "Ready"));
        assert_eq!(world.status.failed_issuance_attempts, None);
    }
}

#[test]
fn a_changed_wish_withdraws_what_was_asked() {
    let mut world = World::new(&spec());
    world.issuer = Issuer::Silent;
    world.rest();
    let names: BTreeSet<String> = ["a.example".to_owned(), "b.example".to_owned()].into();
    world.wish.names.dns = names;
    world.issuer = Issuer::Signs;
    world.rest();
    assert!(world.log.contains(&"Withdraw".to_owned()), "{:?}", world.log);
    assert_eq!(world.held.unwrap().leaf.unwrap().names.dns.len(), 2);
}

#[test]
fn what_is_wrong_with_the_secret_is_named() {
    let mut world = World::new(&spec());
    world.rest();
    let good = world.held.clone().unwrap();
    let mut reason = |change: &dyn Fn(&mut Held), now: i64| {
        let mut held = good.clone();
        change(&mut held);
        world.held = Some(held);
        world.now = Timestamp::from_seconds(now);
        let status = decide(&world.facts()).status;
        status.conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| c.reason).unwrap()
    };
    assert_eq!(reason(&|held| held.key = None, 0), "MissingData");
    assert_eq!(reason(&|held| held.leaf.as_mut().unwrap().digest = [9; 32], 0), "InvalidKeyPair");
    assert_eq!(reason(&|held| held.key.as_mut().unwrap().kind = Some(KeyKind::Ed25519), 0), "SecretMismatch");
    assert_eq!(
        reason(&|held| held.issuer = Some(IssuerRef { name: "x".into(), ..Default::default() }), 0),
        "IncorrectIssuer"
    );
    assert_eq!(reason(&|held| held.leaf.as_mut().unwrap().names.dns.clear(), 0), "RequestChanged");
    assert_eq!(reason(&|_| {}, 2160 * HOUR), "Expired");
    assert_eq!(reason(&|_| {}, 0), "Ready");
}

/// Ten years with an issuer that is away now and then, and a controller that is stopped between any two steps: the
/// certificate that is held never ends.
#[test]
fn ten_years_with_an_issuer_that_comes_and_goes() {
    let mut world = World::new(&CertificateSpec {
        duration: Some(carrick_api::scalar::Duration(Duration::from_secs(24 * 3600))),
        ..spec()
    });
    let (ten_years, mut chance) = (10 * 365 * 24 * HOUR, 0x2545_f491_4f6c_dd1d_u64);
    let mut random = move |below: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % below
    };
    world.rest();
    let mut away_until = -8 * HOUR;
    while world.now.seconds() < ten_years {
        let now = world.now.seconds();
        // Never longer than what is left at renewal, and then back for as long.
        if now >= away_until + 8 * HOUR && random(100) == 0 {
            away_until = now + i64::try_from(random(7 * 3600)).unwrap();
        }
        world.issuer = if now < away_until { Issuer::Refuses } else { Issuer::Signs };
        // Being stopped between two steps is a turn that is not followed by another.
        if random(4) == 0 {
            world.turn();
        } else {
            world.rest();
        }
        let leaf = world.held.as_ref().and_then(|h| h.leaf.as_ref()).unwrap();
        assert!(
            world.now < leaf.not_after,
            "expired at {now}: {:?}",
            world.log.iter().rev().take(9).collect::<Vec<_>>()
        );
        world.log.clear();
        world.now = later(world.now, Duration::from_secs(60 + random(600)));
    }
    assert!(world.status.revision.unwrap() > 10 * 365);
}
