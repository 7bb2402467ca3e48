//! What the host does with memory: dumps, swap, who may look into processes, how much may be locked.

use rustix::process::{Resource, getrlimit};

use super::Line;

const AREA: &str = "host";
/// Locked memory that keys may need.
const LOCKED: u64 = 256 * 1024;

pub(super) fn examine() -> Vec<Line> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let locked = getrlimit(Resource::Memlock).current;
    vec![
        core_pattern(read("/proc/sys/kernel/core_pattern").as_deref()),
        core_limit(getrlimit(Resource::Core).current),
        swap(read("/proc/swaps").as_deref()),
        ptrace(read("/proc/sys/kernel/yama/ptrace_scope").as_deref()),
        locked_memory(locked),
        user(rustix::process::geteuid().is_root()),
    ]
}

/// A pipe gets dumps whatever the limit says; only that the process is not dumpable keeps it out.
pub(crate) fn pipes_cores(pattern: &str) -> bool {
    pattern.trim_start().starts_with('|')
}

/// Whether anything is swapped to.
pub(crate) fn swaps(text: &str) -> bool {
    text.lines().skip(1).any(|line| !line.trim().is_empty())
}

fn core_pattern(text: Option<&str>) -> Line {
    match text {
        Some(text) if pipes_cores(text) => Line::warn(
            AREA,
            "core dumps go to a program (/proc/sys/kernel/core_pattern begins with |), whatever the limits say",
            "sysctl kernel.core_pattern=core; cardvault itself is not dumpable while it serves",
        ),
        Some(_) => Line::pass(AREA, "core dumps are files, which a limit forbids"),
        None => Line::warn(AREA, "where core dumps go cannot be seen", "look at kernel.core_pattern"),
    }
}

fn core_limit(limit: Option<u64>) -> Line {
    match limit {
        Some(0) => {
            Line::pass(AREA, "core dumps are off in this shell, and serve switches them off for itself")
        }
        _ => Line::warn(
            AREA,
            "core dumps are on in this shell; serve switches them off for itself",
            "LimitCORE=0 in the unit, ulimit -c 0 in a shell",
        ),
    }
}

fn swap(text: Option<&str>) -> Line {
    match text {
        Some(text) if swaps(text) => Line::warn(
            AREA,
            "swap is on: memory with card data can reach a disk",
            "swapoff -a, or encrypt it with a key that is made at each boot",
        ),
        Some(_) => Line::pass(AREA, "swap is off"),
        None => Line::warn(AREA, "whether swap is on cannot be seen", "look at /proc/swaps"),
    }
}

fn ptrace(text: Option<&str>) -> Line {
    match text.map(str::trim) {
        Some("0") => Line::warn(
            AREA,
            "any process of a user may trace his others (kernel.yama.ptrace_scope is 0)",
            "sysctl kernel.yama.ptrace_scope=1 or higher; cardvault itself is not dumpable while it serves",
        ),
        Some(scope) => Line::pass(AREA, format!("kernel.yama.ptrace_scope is {scope}")),
        None => Line::warn(
            AREA,
            "the kernel has no Yama: ptrace is not restricted",
            "a kernel with CONFIG_SECURITY_YAMA; cardvault itself is not dumpable while it serves",
        ),
    }
}

fn locked_memory(limit: Option<u64>) -> Line {
    match limit {
        None => Line::pass(AREA, "memory may be locked without limit"),
        Some(bytes) if bytes >= LOCKED => {
            Line::pass(AREA, format!("{} KiB of memory may be locked", bytes / 1024))
        }
        Some(bytes) => Line::warn(
            AREA,
            format!("only {} KiB of memory may be locked", bytes / 1024),
            "LimitMEMLOCK=1M in the unit, or ulimit -l",
        ),
    }
}

fn user(root: bool) -> Line {
    if root {
        return Line::warn(
            AREA,
            "this runs as root; where serve does too, a fault in it has the whole host",
            "serve as a user of its own",
        );
    }
    Line::pass(AREA, "this does not run as root")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict::{self, Pass, Warn};

    #[test]
    fn each_fact_of_the_host_is_judged() {
        const HEADER: &str = "Filename\tType\tSize\tUsed\tPriority\n";
        let swapped = format!("{HEADER}/dev/sda2 partition 1048572 0 -2\n");
        let table: [(Line, Verdict); 15] = [
            (core_pattern(Some("core\n")), Pass),
            (core_pattern(Some("|/usr/share/apport/apport %p\n")), Warn),
            (core_pattern(None), Warn),
            (core_limit(Some(0)), Pass),
            (core_limit(None), Warn),
            (swap(Some(HEADER)), Pass),
            (swap(Some(&swapped)), Warn),
            (swap(None), Warn),
            (ptrace(Some("1\n")), Pass),
            (ptrace(Some("0\n")), Warn),
            (ptrace(None), Warn),
            (locked_memory(None), Pass),
            (locked_memory(Some(8 << 20)), Pass),
            (locked_memory(Some(64 << 10)), Warn),
            (user(false), Pass),
        ];
        for (line, verdict) in table {
            assert_eq!((line.verdict, line.mend.is_some()), (verdict, verdict != Pass), "{line:?}");
        }
        assert_eq!(user(true).verdict, Warn);
    }
}
