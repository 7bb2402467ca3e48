//! Logs: one JSON line an event, on standard error. Levels come from `CARDVAULT_LOG`
//! (`tracing-subscriber`'s filter syntax); no level writes a body.

mod lines;

use std::io::Stderr;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::doctor::{pipes_cores, swaps};
use crate::http::router;

use self::lines::Lines;

static LOG: OnceLock<Lines<Stderr>> = OnceLock::new();

/// Starts logging. `default` is the filter where `CARDVAULT_LOG` is not set. The lines of requests wait for one
/// another for 10 ms.
pub fn start(default: &str) {
    let filter = std::env::var("CARDVAULT_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let lines = LOG.get_or_init(|| Lines::new(std::io::stderr(), router::LOGGED_AS));
    let started =
        tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(lines.clone()).try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    quiet_panics();
}

/// Writes what was logged and waits. Whoever ends the process calls it last.
pub fn finish() {
    // There is no other place to tell of a failure.
    let _ = LOG.get().map(Lines::flush);
}

/// A panic's text can hold anything that was at hand: only its place is logged.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
        tracing::error!(alarm = true, place = place.as_deref(), "a task panicked");
    }));
}

/// What of this host or its limits lets memory with keys or cards reach a disk, and the mend.
pub fn memory_faults() -> Vec<(&'static str, &'static str)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut faults = Vec::new();
    if !crate::base::locked::is_private() {
        faults.push(("memory for keys cannot be locked", "LimitMEMLOCK=1M in the unit, or ulimit -l"));
    }
    if swaps(&read("/proc/swaps")) {
        faults.push(("swap is on", "swapoff -a, or encrypt it with a key that is made at each boot"));
    }
    if pipes_cores(&read("/proc/sys/kernel/core_pattern")) {
        faults.push(("core dumps are piped to a program", "sysctl kernel.core_pattern=core"));
    }
    faults
}

/// Leaves no memory behind in a file: no core dump, and no other process may read this one's memory
/// (PCI DSS 3.6.1; ptrace(2), core(5)).
pub fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let limited = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if limited.is_err() || hidden.is_err() {
        tracing::warn!("core dumps could not be switched off");
    }
}

/// Makes sure of a file descriptor for every connection that may be open, and some for everything else,
/// as far as the system lets it.
pub fn make_room_for(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(DESCRIPTORS_BESIDE);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let most = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    if raised.is_err() || most < needed {
        let limit = getrlimit(Resource::Nofile).current;
        tracing::warn!(
            needed,
            limit,
            "too few file descriptors for api.max_connections: raise LimitNOFILE, or lower the key"
        );
    }
}

/// For the database, files, the listener of notifications, and calls to the gateway.
const DESCRIPTORS_BESIDE: u64 = 2048;
