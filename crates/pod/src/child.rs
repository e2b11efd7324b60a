//! Processes started in a pod: nearly all unsafe code of the crate, between fork and exec (the rest: terminals, `terminal` and `output`).
//!
//! Invariant: what runs between fork and exec makes plain system calls on values prepared before; it neither allocates nor locks. A child
//! never outlives the thread that started it, which is why that thread lives as long as the runner.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Pid, getpid, getppid, setpgid, tcsetpgrp};
use tokio::process::Command;

/// The child dies with this process, leads a process group of its own, and has the terminal if this process has it.
pub(crate) fn as_app(command: &mut Command, terminal: bool) {
    let parent = getpid();
    // SAFETY: system calls on plain values only.
    unsafe {
        command.pre_exec(move || {
            die_with(parent)?;
            lead(terminal)
        });
    }
}

/// The child is `user`, dies with this process, leads a process group of its own, and can never gain a privilege. With `net_admin` it
/// keeps that capability, and so do its own children.
pub(crate) fn as_sidecar(command: &mut Command, user: u32, net_admin: bool) {
    let parent = getpid();
    // SAFETY: system calls on plain values only.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(nix::unistd::Gid::from_raw(user))?;
            if net_admin {
                // Else the change of user takes all of them.
                nix::sys::prctl::set_keepcaps(true)?;
            }
            nix::unistd::setuid(nix::unistd::Uid::from_raw(user))?;
            if net_admin {
                keep_net_admin()?;
            }
            die_with(parent)?;
            lead(false)?;
            nix::sys::prctl::set_no_new_privs().map_err(io::Error::from)
        });
    }
}

/// Leaves the calling process `CAP_NET_ADMIN` alone, through `execve` too (capabilities(7), the ambient set).
fn keep_net_admin() -> io::Result<()> {
    const NET_ADMIN: u32 = 12;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let bit = 1_u32 << NET_ADMIN;
    // Effective, permitted, inheritable; then the upper halves of the three.
    let sets = [bit, bit, bit, 0, 0, 0];
    // SAFETY: both live through the call and have the layout of that version.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    let nothing: libc::c_ulong = 0;
    let (raise, which) = (libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, libc::c_ulong::from(NET_ADMIN));
    // SAFETY: a call on plain values.
    let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, which, nothing, nothing) };
    if raised == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The child enters these namespaces, then `cwd` in them; it dies with this process.
pub(crate) fn as_guest(
    command: &mut Command,
    namespaces: Vec<(File, CloneFlags)>,
    cwd: std::ffi::CString,
    terminal: bool,
) {
    let parent = getpid();
    // SAFETY: system calls on values prepared above only; the files stay open in the closure.
    unsafe {
        command.pre_exec(move || {
            enter(&namespaces, &cwd)?;
            die_with(parent)?;
            lead(terminal)
        });
    }
}

/// The child enters these namespaces, then `cwd` in them, in a session of its own, with the terminal on its stdin if there is one; as
/// `user` it can never gain a privilege. It dies with the thread that started it.
pub(crate) fn as_session(
    command: &mut Command,
    namespaces: Vec<(File, CloneFlags)>,
    cwd: std::ffi::CString,
    user: Option<u32>,
    terminal: bool,
) {
    let parent = getpid();
    // SAFETY: system calls on values prepared above only; the files stay open in the closure.
    unsafe {
        command.pre_exec(move || {
            enter(&namespaces, &cwd)?;
            begin_session(terminal)?;
            if let Some(id) = user {
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(nix::unistd::Gid::from_raw(id))?;
                nix::unistd::setuid(nix::unistd::Uid::from_raw(id))?;
                nix::sys::prctl::set_no_new_privs()?;
            }
            // Last: a change of user takes it back.
            die_with(parent)
        });
    }
}

/// The child dies with this process and leads a session of its own, with the terminal on its stdin if there is one.
pub(crate) fn as_console(command: &mut Command, terminal: bool) {
    let parent = getpid();
    // SAFETY: system calls on plain values only.
    unsafe {
        command.pre_exec(move || {
            die_with(parent)?;
            begin_session(terminal)
        });
    }
}

/// Gives the terminal back to this process's own group, after a child had it.
pub(crate) fn take_terminal_back(stdin: RawFd) {
    // A background process that takes the terminal is stopped, unless it ignores the signal for that.
    // SAFETY: no handler runs; the former disposition is put back.
    unsafe {
        if let Ok(before) = signal(Signal::SIGTTOU, SigHandler::SigIgn) {
            let _ = tcsetpgrp(BorrowedFd::borrow_raw(stdin), nix::unistd::getpgrp());
            let _ = signal(Signal::SIGTTOU, before);
        }
    }
}

/// Whether this process owns the terminal on its stdin.
pub(crate) fn has_terminal() -> bool {
    let stdin = io::stdin();
    nix::unistd::isatty(stdin.as_fd()).unwrap_or(false)
        && nix::unistd::tcgetpgrp(stdin.as_fd()).is_ok_and(|group| group == nix::unistd::getpgrp())
}

/// The thread's number, as `/proc` has it.
pub(crate) fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The stdin descriptor.
pub(crate) fn stdin_fd() -> RawFd {
    io::stdin().as_raw_fd()
}

/// Between fork and exec: into these namespaces, and into `cwd` there, or the root where that is not.
fn enter(namespaces: &[(File, CloneFlags)], cwd: &std::ffi::CStr) -> io::Result<()> {
    for (file, kind) in namespaces {
        setns(file.as_fd(), *kind)?;
    }
    if nix::unistd::chdir(cwd).is_err() {
        nix::unistd::chdir(c"/")?;
    }
    Ok(())
}

/// Between fork and exec: a session of its own, with the terminal on stdin if there is one.
fn begin_session(terminal: bool) -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: a call on plain values.
    if terminal && unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn die_with(parent: Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the line above.
    if getppid() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

fn lead(terminal: bool) -> io::Result<()> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    if terminal {
        // SAFETY: dispositions only, in a process with one thread.
        unsafe {
            signal(Signal::SIGTTOU, SigHandler::SigIgn)?;
            let taken = tcsetpgrp(BorrowedFd::borrow_raw(0), getpid());
            signal(Signal::SIGTTOU, SigHandler::SigDfl)?;
            taken?;
        }
    }
    Ok(())
}
