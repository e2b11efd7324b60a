//! What the processes of a mesh use: processor time and memory, the control plane's and the sidecars' apart.
//!
//! Invariant: read from /proc at one moment; a process that has ended counts as nothing, and is noticed by its id elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{demo::mesh::Mesh, process};

const MIB: f64 = 1024.0 * 1024.0;

/// One moment.
#[derive(Debug, Clone)]
pub(super) struct Usage {
    at: Instant,
    control_plane: (Duration, u64),
    native: Group,
    envoy: Group,
}

/// Sidecars of one engine.
#[derive(Debug, Clone, Default)]
struct Group {
    cpu: Duration,
    /// Of each, in order.
    resident: Vec<u64>,
}

impl Group {
    fn add(&mut self, pids: &[u32]) {
        self.cpu += pids.iter().filter_map(|pid| process::cpu(*pid).ok()).sum::<Duration>();
        self.resident.push(pids.iter().filter_map(|pid| process::resident(*pid).ok()).sum());
    }

    fn middle_and_most(&self) -> (f64, f64) {
        let at = |n: usize| self.resident.get(n).map_or(0.0, |bytes| *bytes as f64 / MIB);
        (at(self.resident.len() / 2), at(self.resident.len().saturating_sub(1)))
    }
}

impl Usage {
    /// Of now.
    ///
    /// # Errors
    /// The control plane does not run, or the process table cannot be read.
    pub fn of(mesh: &Mesh) -> Result<Self> {
        let up = mesh.control_plane().context("the control plane has ended")?;
        let (mut native, mut envoy) = (Group::default(), Group::default());
        for pids in mesh.sidecars_by_pod()?.values() {
            let is_envoy = pids.iter().any(|pid| process::program(*pid).as_deref() == Some("envoy"));
            if is_envoy { &mut envoy } else { &mut native }.add(pids);
        }
        native.resident.sort_unstable();
        envoy.resident.sort_unstable();
        let control_plane = (process::cpu(up)?, process::resident(up)?);
        Ok(Self { at: Instant::now(), control_plane, native, envoy })
    }

    /// Of the control plane, in MiB.
    pub fn control_plane_mib(&self) -> f64 {
        self.control_plane.1 as f64 / MIB
    }

    /// Of the native sidecar in the middle, and of the largest, in MiB.
    pub fn native_mib(&self) -> (f64, f64) {
        self.native.middle_and_most()
    }

    /// The same for Envoy with its agent.
    pub fn envoy_mib(&self) -> (f64, f64) {
        self.envoy.middle_and_most()
    }

    /// Processors used since an earlier moment: by the control plane, by all native sidecars, by all Envoys with their agents.
    pub fn processors_since(&self, earlier: &Self) -> [f64; 3] {
        let time = self.at.duration_since(earlier.at).as_secs_f64().max(f64::MIN_POSITIVE);
        let of = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() / time;
        [
            of(self.control_plane.0, earlier.control_plane.0),
            of(self.native.cpu, earlier.native.cpu),
            of(self.envoy.cpu, earlier.envoy.cpu),
        ]
    }
}
