//! What processes ask of the kernel and of the allocator, counted by the kernel (perf_event_open(2)).
//!
//! Invariant: it counts, and stops nobody; but every count costs its process time, so never in a burst whose CPU or latency is taken. System
//! calls are counted at `raw_syscalls:sys_enter`, allocations where libc's own functions begin; of a program with an allocator of its own the
//! latter say nothing.

use std::{
    ffi::CString,
    fs::File,
    io::Read as _,
    os::fd::FromRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

const TRACING: &str = "/sys/kernel/tracing";
/// PERF_TYPE_TRACEPOINT
const TRACEPOINT: u32 = 2;
/// Threads that the counted ones start are counted with them. Not with a probe: the kernel looks for its file's name anew for each such thread,
/// in the memory of the process that starts it, finds none, and the thread is not started.
const INHERIT: u64 = 1 << 1;
/// PERF_FLAG_FD_CLOEXEC
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// The beginning of `struct perf_event_attr`, as the kernel has taken it since its second version.
#[derive(Debug, Default)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
    config2: u64,
}

/// Counts that run.
#[derive(Debug)]
pub struct Counters {
    syscalls: Vec<File>,
    allocations: Vec<File>,
}

impl Counters {
    /// Begins to count for all threads of these processes. `allocates`: they use libc's allocator.
    ///
    /// # Errors
    /// The kernel does not count such things, or not for us.
    pub fn of(pids: &[u32], allocates: bool) -> Result<Counters> {
        let enter = Attributes { kind: TRACEPOINT, config: enter()?, flags: INHERIT, ..Attributes::default() };
        let probes = if allocates { probes()? } else { Vec::new() };
        let mut counters = Counters { syscalls: Vec::new(), allocations: Vec::new() };
        for pid in pids {
            for task in crate::process::tasks(*pid)? {
                counters.syscalls.extend(open(&enter, task)?);
                for (library, offset, kind) in &probes {
                    let attributes = Attributes {
                        kind: *kind,
                        config1: library.as_ptr().addr() as u64,
                        config2: *offset,
                        ..Attributes::default()
                    };
                    counters.allocations.extend(open(&attributes, task)?);
                }
            }
        }
        Ok(counters)
    }

    /// System calls since the beginning.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn syscalls(&self) -> Result<u64> {
        sum(&self.syscalls)
    }

    /// Allocations since the beginning, those that make an older one larger among them; `None` where they are not counted.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn allocations(&self) -> Result<Option<u64>> {
        if self.allocations.is_empty() { Ok(None) } else { sum(&self.allocations).map(Some) }
    }
}

fn sum(all: &[File]) -> Result<u64> {
    let one = |mut file: &File| -> Result<u64> {
        let mut count = [0; 8];
        file.read_exact(&mut count).context("reading a counter")?;
        Ok(u64::from_ne_bytes(count))
    };
    all.iter().map(one).sum()
}

/// A counter of a thread; none if the thread has ended meanwhile.
fn open(attributes: &Attributes, task: i32) -> Result<Option<File>> {
    let attributes = Attributes {
        size: u32::try_from(size_of::<Attributes>())?,
        flags: attributes.flags,
        config: attributes.config,
        config1: attributes.config1,
        config2: attributes.config2,
        kind: attributes.kind,
        ..Attributes::default()
    };
    // SAFETY: the attributes are of the size that they tell, and they and the name they may point to outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, task, -1, -1, CLOSE_ON_EXEC) };
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) {
            Ok(None)
        } else {
            Err(error).context("perf_event_open")
        };
    }
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    Ok(Some(unsafe { File::from_raw_fd(i32::try_from(fd)?) }))
}

/// The number of the tracepoint that every system call passes.
fn enter() -> Result<u64> {
    let file = Path::new(TRACING).join("events/raw_syscalls/sys_enter/id");
    if !file.exists() {
        use nix::mount::{MsFlags, mount};
        mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>).context("mounting tracefs")?;
    }
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().parse()?)
}

/// Where libc's functions that allocate begin: the file, the place in it, the kind of event. As this program has the same libc as those beside
/// it, its own addresses tell.
fn probes() -> Result<Vec<(CString, u64, u32)>> {
    let kind =
        std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").context("the kernel has no uprobes")?;
    let kind = kind.trim().parse()?;
    let functions: [*const (); 5] = [
        libc::malloc as *const (),
        libc::calloc as *const (),
        libc::realloc as *const (),
        libc::posix_memalign as *const (),
        libc::aligned_alloc as *const (),
    ];
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let place = |function: &*const ()| {
        let (file, offset) = mapped(&maps, function.addr()).context("a function of libc that is nowhere")?;
        ensure!(file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc")), "libc is linked in");
        Ok((CString::new(file.display().to_string())?, offset, kind))
    };
    functions.iter().map(place).collect()
}

/// The file that lies at an address, and the place in it.
fn mapped(maps: &str, address: usize) -> Option<(PathBuf, u64)> {
    maps.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (begin, end) = words.next()?.split_once('-')?;
        let begin = usize::from_str_radix(begin, 16).ok()?;
        if !(begin..usize::from_str_radix(end, 16).ok()?).contains(&address) {
            return None;
        }
        let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
        let file = words.nth(2)?;
        Some((file.into(), offset + u64::try_from(address - begin).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_place_in_a_file() {
        let maps = "55-66 r--p 00000000 fe:00 1 /bin/x\n1000-2000 r-xp 00028000 fe:00 7      /lib/libc.so.6\n3000-4000 rw-p 0 00:00 0\n";
        assert_eq!(mapped(maps, 0x1010), Some(("/lib/libc.so.6".into(), 0x28010)));
        assert_eq!(mapped(maps, 0x2000), None);
        assert_eq!(mapped(maps, 0x3000), None);
    }

    /// Wants root, as the benchmarks do.
    #[test]
    fn a_thread_is_counted() {
        let counters = Counters::of(&[std::process::id()], true).unwrap();
        let before = (counters.syscalls().unwrap(), counters.allocations().unwrap().unwrap());
        let all: Vec<Box<[u8]>> = (0..1000_usize).map(|n| vec![1; n + 1].into_boxed_slice()).collect();
        for _ in 0..500 {
            nix::unistd::getppid();
        }
        // Whoever is counted can still start threads.
        std::thread::spawn(|| {}).join().unwrap();
        let after = (counters.syscalls().unwrap(), counters.allocations().unwrap().unwrap());
        assert!(after.0 - before.0 >= 500, "{before:?} {after:?}");
        assert!(after.1 - before.1 >= 1000 && all.len() == 1000, "{before:?} {after:?}");
    }
}
