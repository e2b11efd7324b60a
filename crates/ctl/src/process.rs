//! Programs and processes of this machine: where they lie, what they have used so far (from /proc).
//!
//! Invariant: reads only; a process that ends between two reads counts with what it had.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Takes as many descriptors as this process may have: each connection is one, and the usual 1,024 are few.
pub fn take_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(%error, "the number of descriptors stays as it is");
    }
}

/// CPU time of a process and its threads, by the scheduler's own nanosecond count.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let mut total = 0_u64;
    for task in tasks(pid)? {
        // A thread that has just ended has no schedstat any more.
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat")) else { continue };
        total += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// Resident memory in bytes (`VmRSS`).
///
/// # Errors
/// When there is no such process.
pub fn resident(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// Resident memory in bytes that is no file's (`RssAnon`): pages of its program come and go as the machine sees fit.
///
/// # Errors
/// When there is no such process.
pub fn anonymous(pid: u32) -> Result<u64> {
    memory(pid, "RssAnon:")
}

fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: u64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).context("memory is no number")?;
    Ok(kib * 1024)
}

/// Binds every thread of a process to one CPU.
///
/// # Errors
/// When there is no such process or CPU.
pub fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    for task in tasks(pid)? {
        // Threads that end meanwhile need no CPU.
        let _ = sched_setaffinity(Pid::from_raw(task), &set);
    }
    Ok(())
}

/// The sidecar processes of a pod that this process started, by others or by itself: the agent whose environment names the pod, and
/// the Envoy it started. Pods of other meshes on this machine may have the same name.
///
/// # Errors
/// When the process table cannot be read.
pub fn sidecars_of(pod: &str) -> Result<Vec<u32>> {
    Ok(sidecars(|name| name == pod)?.remove(pod).unwrap_or_default())
}

/// The same for all pods that are wanted, by name, in one walk over the process table.
///
/// # Errors
/// When the process table cannot be read.
pub fn sidecars(wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u32>>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut agents = BTreeMap::new();
    let mut envoys = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        match program(pid).as_deref() {
            Some("carrick-proxy") if is_below(pid) => {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let names = environment.split(|b| *b == 0).filter_map(|entry| entry.strip_prefix(b"POD_NAME="));
                for name in names.filter_map(|name| std::str::from_utf8(name).ok()).filter(|name| wanted(name)) {
                    agents.insert(pid, name.to_owned());
                    found.entry(name.to_owned()).or_default().push(pid);
                }
            }
            Some("envoy") => envoys.push(pid),
            _ => {}
        }
    }
    for pid in envoys {
        if let Some(pod) = parent(pid).and_then(|parent| agents.get(&parent)) {
            found.entry(pod.clone()).or_default().push(pid);
        }
    }
    Ok(found)
}

/// The processes below this one whose environment has this value of a variable.
///
/// # Errors
/// When the process table cannot be read.
pub fn with_variable(name: &str, value: &str) -> Result<Vec<u32>> {
    let wanted = format!("{name}={value}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|b| *b == 0).any(|one| one == wanted.as_bytes()) && is_below(pid) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The name of the file that a process runs.
pub fn program(pid: u32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(path.file_name()?.to_str()?.to_owned())
}

/// Whether this process started it, or something that this process started did.
fn is_below(pid: u32) -> bool {
    std::iter::successors(parent(pid), |pid| parent(*pid)).any(|pid| pid == std::process::id())
}

/// The parent's process id: the fourth field of `stat`, after the name in parentheses.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The first program of that name on the search path.
pub fn on_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The threads of a process.
///
/// # Errors
/// When there is no such process.
pub fn tasks(pid: u32) -> Result<Vec<i32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn processes_of_another_mesh_are_none_of_ours() {
        let value = format!("of-{}", std::process::id());
        let started = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("CARRICK_TEST_MARK", &value).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            (child, line.trim().parse::<u32>().unwrap())
        };
        // One stays below us, by a shell that waits for it; whoever started the other is gone.
        let (mut ours, below) = started("sleep 60 >/dev/null & echo $!; wait");
        let (mut gone, other) = started("sleep 60 >/dev/null & echo $!");
        gone.wait().unwrap();
        let mut found = with_variable("CARRICK_TEST_MARK", &value).unwrap();
        for pid in [below, other] {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL).unwrap();
        }
        ours.wait().unwrap();
        found.retain(|pid| [below, other].contains(pid));
        assert_eq!(found, [below]);
    }
}
