//! What a service that a sidecar knows costs it, in bytes that stay allocated: a mesh of thousands of services is known to every one of them.
//!
//! Invariant: counts what one thread allocates and frees, not what the machine has resident, so that it is the same everywhere.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use serde_json::{Value, json};

use crate::message::Store;
use crate::rendered::fill_with;

struct Counting;

thread_local! {
    static KEPT: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize, sign: isize) {
    // An allocator rounds up to 16 bytes and keeps a head of 8.
    let real = isize::try_from(bytes.saturating_add(23) & !15).unwrap_or(0).max(32);
    let _ = KEPT.try_with(|kept| kept.set(kept.get() + sign * real));
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: as this one's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: as this one's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A client, and services with one workload in the mesh each.
fn world(services: usize) -> Value {
    let ip = |n: usize| format!("{}.{}", n / 250, n % 250 + 1);
    let labels = |n: usize| json!({ "app": format!("server-{n}") });
    let pod = |n: usize| json!({"pod": format!("server-{n}.y"), "ip": format!("10.100.{}", ip(n)), "labels": labels(n), "sidecar": true});
    let service = |n: usize| {
        let vip = format!("10.96.{}", ip(n));
        json!({"service": format!("known-{n}.y"), "vip": vip, "ports": ["http:8080->8080"], "selector": labels(n)})
    };
    let client = json!({"pod": "client.x", "ip": "10.200.0.1", "labels": {"app": "client"}});
    json!({
        "pods": (0..services).map(pod).chain([client]).collect::<Vec<_>>(),
        "services": (0..services).map(service).collect::<Vec<_>>(),
        "objects": [],
    })
}

fn kept(services: usize) -> isize {
    let world = world(services);
    let mut store = Store::default();
    let mut kept = 0;
    fill_with(&world, "client", |kind, rendered| {
        let before = KEPT.get();
        let all = rendered.values().map(|r| (r.name.clone(), r.body.clone())).collect();
        store.0.apply(kind, all, &[]).expect("accepted");
        kept += KEPT.get() - before;
    });
    kept
}

#[test]
fn a_service_costs_little() {
    let (few, many) = (kept(50), kept(250));
    let each = (many - few) / 200;
    assert!(each < 9_000, "{each} bytes");
}
