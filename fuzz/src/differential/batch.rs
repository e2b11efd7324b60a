//! A batch of cases through both engines and the simulator.
//!
//! Invariant: each case has a network of its own in each engine, so that cases do not meet.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::case::{Ask, Case, Says};
use super::client::{self, Outcome};
use super::engines::{Envoy, Native, Placed, Refused};
use super::keys::Keys;
use super::moved::{Moved, moved};
use super::prepare::{Prepared, prepare};
use super::simulator::{Foreseen, Seer, foresee};

/// Questions under way at once.
const AT_ONCE: usize = 24;
/// The largest batch: three digits of a network's third number, and of a case's.
pub const LARGEST: usize = 150;

/// What came of one request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub native: Outcome,
    pub envoy: Outcome,
    pub foreseen: Foreseen,
}

/// What came of one case.
#[derive(Debug, Clone, Default)]
pub struct Ran {
    pub seen: Vec<Seen>,
    /// Resources that our engine did not take, and those that Envoy did not.
    pub refused: (Vec<String>, Vec<String>),
    /// What is wrong in its objects, as the control plane says.
    pub found: Vec<String>,
}

/// Runs cases. `round` moves the networks on, so that nothing of the batch before is met.
///
/// # Errors
/// When an engine does not start.
pub async fn run(cases: &[Case], round: usize, keys: &Arc<Keys>) -> Result<Vec<Ran>> {
    anyhow::ensure!(cases.len() <= LARGEST, "too many cases for a batch");
    let mut prepared: Vec<(Prepared, Moved)> = Vec::new();
    for (slot, case) in cases.iter().enumerate() {
        let one = prepare(case, keys)?;
        let mut resources = Moved::default();
        for (part, rendered) in &one.rendered {
            moved(*part, slot, rendered, &mut resources)?;
        }
        prepared.push((one, resources));
    }
    let placed = |engine: usize| -> Vec<Placed<'_>> {
        let network = |slot: usize| format!("127.{}.{}.", engine + round % 40, 100 + slot);
        prepared.iter().enumerate().map(|(slot, (_, m))| Placed { network: network(slot), moved: m }).collect()
    };
    let (ours, theirs) = (placed(101), placed(201));
    let native = Native::start(&ours, keys)?;
    let envoy = Envoy::start(&theirs, keys).await?;
    let mut ran: Vec<Ran> = Vec::new();
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    for (slot, case) in cases.iter().enumerate() {
        let of = |refused: &Refused| refused.get(&slot).cloned().unwrap_or_default();
        let mut one = Ran { refused: (of(&native.refused), of(&envoy.refused)), ..Ran::default() };
        let Some((prepared, _)) = prepared.get(slot) else { continue };
        one.found = prepared
            .found
            .iter()
            .map(|d| format!("{} {}: {}: {}", d.code, d.object.name, d.field.as_str(), d.message))
            .collect();
        let seer = Seer::new(prepared);
        for (index, ask) in case.asks.iter().enumerate() {
            let tokens = Arc::new(signed(ask, keys));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let foreseen = foresee(&seer, ask, &tokens, keys, now);
            one.seen.push(Seen { native: Outcome::Silence, envoy: Outcome::Silence, foreseen });
            for (engine, all) in [(0, &ours), (1, &theirs)] {
                let Some(network) = all.get(slot).map(|p| p.network.clone()) else { continue };
                let (ask, keys, tokens, gate) = (ask.clone(), Arc::clone(keys), Arc::clone(&tokens), Arc::clone(&gate));
                asking.spawn(async move {
                    let _permit = gate.acquire().await;
                    (slot, index, engine, client::ask(&ask, &tokens, &network, &keys).await)
                });
            }
        }
        ran.push(one);
    }
    while let Some(done) = asking.join_next().await {
        let (slot, index, engine, outcome) = done?;
        if let Some(seen) = ran.get_mut(slot).and_then(|r| r.seen.get_mut(index)) {
            *(if engine == 0 { &mut seen.native } else { &mut seen.envoy }) = outcome;
        }
    }
    drop(envoy);
    tokio::task::spawn_blocking(move || drop(native)).await?;
    Ok(ran)
}

fn signed(ask: &Ask, keys: &Keys) -> Vec<String> {
    match &ask.says {
        Says::Http(request) => request.tokens.iter().map(|t| keys.sign(t)).collect(),
        Says::Bytes(_) => Vec::new(),
    }
}
