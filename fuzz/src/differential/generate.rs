//! Cases from a seed: objects and requests out of one vocabulary, so that they meet.
//!
//! Invariant: the same seed and number make the same case; nothing but the generator's own numbers decides.

mod requests;
mod security;
mod traffic;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::case::Case;

/// The case of a number.
pub fn case(seed: u64, number: usize) -> Case {
    let mut dice = Dice(StdRng::seed_from_u64(seed ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut objects = Vec::new();
    if dice.once_in(3) {
        objects.extend(security::peer_authentications(&mut dice));
    }
    if !dice.once_in(3) {
        objects.extend(security::authorization_policies(&mut dice));
    }
    if dice.once_in(2) {
        objects.extend(security::request_authentications(&mut dice));
    }
    if dice.once_in(2) {
        objects.extend(traffic::destination_rules(&mut dice));
    }
    if dice.once_in(2) {
        objects.push(traffic::virtual_service(&mut dice, "server", &[]));
    }
    if dice.once_in(6) {
        objects.push(traffic::virtual_service(&mut dice, "abroad", &[]));
    }
    if dice.once_in(3) {
        objects.extend(traffic::gateway(&mut dice));
    }
    if dice.once_in(8) {
        objects.push(traffic::sidecar(&mut dice));
    }
    let mut mesh = json!({});
    if dice.once_in(4) {
        let how = dice.one(&["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]);
        mesh["pathNormalization"] = json!({"normalization": how});
    }
    if dice.once_in(12) {
        mesh["trustDomainAliases"] = json!(["partner.example"]);
    }
    let gateway = objects.iter().any(|o| o["kind"] == "Gateway");
    let count = dice.below(4) + 3;
    let asks = (0..count).map(|_| requests::ask(&mut dice, gateway)).collect();
    Case { mesh, objects, asks }
}

/// The generator's numbers.
pub struct Dice(StdRng);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit.max(1))
    }

    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn one<T: Clone>(&mut self, all: &[T]) -> T {
        let at = self.below(all.len());
        match all.get(at) {
            Some(one) => one.clone(),
            None => unreachable!("a number below the length"),
        }
    }

    /// Some of these, at least one, in any order.
    pub fn some(&mut self, all: &[&str], most: usize) -> Vec<String> {
        let count = self.below(most) + 1;
        let mut out: Vec<String> = (0..count).map(|_| self.one(all).to_owned()).collect();
        out.dedup();
        out
    }
}

/// An object of a kind.
pub fn object(version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}
