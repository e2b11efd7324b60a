//! What is told to those who ask: JSON, the same for every command.
//!
//! Invariant: times are RFC 3339; nothing secret is in it.

use std::time::SystemTime;

use carrick_api::timestamp::Timestamp;
use carrick_certs::rotation::Next;
use carrick_pki::CertificateInfo;
use carrick_pki::certificate::fingerprint;
use serde_json::{Value, json};

use super::driver::{Driver, Problem};

pub(super) fn answer(driver: &mut Driver, done: Result<(), String>, now: SystemTime) -> Value {
    let mut value = status(driver, now);
    if let (Err(error), Some(fields)) = (done, value.as_object_mut()) {
        fields.insert("error".to_owned(), json!(error));
    }
    value
}

fn status(driver: &mut Driver, now: SystemTime) -> Value {
    let set = driver.authority.set();
    let state = driver.slots.state.clone();
    let source = |id: &str| state.slots.get(id).map(|slot| slot.source.clone()).unwrap_or_default();
    let roots: Vec<Value> = driver
        .authority
        .roots()
        .roots()
        .iter()
        .filter_map(|root| Some((fingerprint(root), CertificateInfo::read(root).ok()?)))
        .map(|(id, info)| json!({"fingerprint": id, "subject": info.subject, "notAfter": time(info.not_after)}))
        .collect();
    let engines = driver.population.engines();
    let all = driver.population.all();
    let proxies: Vec<Value> = all
        .iter()
        .map(|proxy| {
            json!({
                "name": proxy.name,
                "engine": engines.get(&proxy.name),
                "away": proxy.away.map(time),
                "serial": proxy.told.as_ref().map(|told| &told.serial),
                "notAfter": proxy.told.as_ref().map(|told| time(told.not_after)),
                "trusts": proxy.told.as_ref().map(|told| &told.trusts),
                "leadsTo": proxy.told.as_ref().map(|told| &told.leads_to),
            })
        })
        .collect();
    let rotation = state.rotation.as_ref().map(|rotation| {
        let held: Vec<Value> = match &driver.next {
            Some(Next::Held(held)) => {
                held.iter().map(|h| json!({"proxy": h.proxy, "since": time(h.since), "reason": h.reason})).collect()
            }
            _ => Vec::new(),
        };
        let waits = match &driver.next {
            None | Some(Next::Working | Next::Go(_) | Next::Finished) => "working",
            Some(Next::Paused) => "paused",
            Some(Next::Held(_)) => "held up",
            Some(Next::Until(_)) => "settling",
        };
        json!({
            "from": rotation.from,
            "to": rotation.to,
            "source": source(&rotation.to),
            "back": rotation.back,
            "step": rotation.step.as_str(),
            "since": time(rotation.since),
            "started": time(rotation.started),
            "state": if rotation.paused { "paused" } else { waits },
            "heldBy": held,
            "waivers": rotation.waivers.iter().map(|w| json!({
                "proxy": w.proxy, "until": time(w.until), "inForce": now < w.until,
            })).collect::<Vec<_>>(),
            "problem": driver.step_problem.as_ref().map(problem),
        })
    });
    let last = state.last.as_ref().map(|last| {
        json!({
            "from": last.from, "to": last.to, "back": last.back, "started": time(last.started), "ended": time(last.ended),
        })
    });
    json!({
        "issuer": {
            "id": set.id(),
            "subject": set.info().subject,
            "serial": set.info().serial,
            "notAfter": time(set.info().not_after),
            "source": source(set.id()),
        },
        "roots": roots,
        "rotation": rotation,
        "last": last,
        "pending": driver.pending.as_ref().map(|p| json!({"id": p.id, "source": p.source, "reason": p.reason})),
        "problem": driver.problem.as_ref().map(problem),
        "proxies": proxies,
    })
}

fn problem(problem: &Problem) -> Value {
    json!({"text": problem.text, "since": time(problem.since)})
}

fn time(time: SystemTime) -> String {
    Timestamp::from_system(time).micro_string()
}
