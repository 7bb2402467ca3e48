//! CPU time of other processes, as the kernel counts it (proc(5)).

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Linux tells times in hundredths of a second, whatever the kernel's own clock (`USER_HZ`).
const MILLIS_A_TICK: u64 = 10;

/// A program, with the processes that it has started.
#[derive(Debug, Clone, Copy)]
pub struct Watched(u32);

impl Watched {
    /// A process that was started here.
    pub fn process(id: u32) -> Self {
        Self(id)
    }

    /// The server of a cluster, with its backends.
    pub fn cluster(folder: &Path) -> Self {
        let text = fs::read_to_string(folder.join("data/postmaster.pid")).expect("a running server");
        Self(text.lines().next().and_then(|line| line.trim().parse().ok()).expect("a process id"))
    }

    /// What it and its children, gone ones included, have used.
    pub fn used(self) -> Duration {
        let children = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = Stat::of(id)?;
            (stat.parent == self.0).then_some(stat.own)
        });
        let own = Stat::of(self.0).map_or(0, |stat| stat.own + stat.gone_children);
        let ticks: u64 = own + children.sum::<u64>();
        Duration::from_millis(ticks * MILLIS_A_TICK)
    }
}

/// What is used here of `/proc/PID/stat`, in clock ticks.
struct Stat {
    parent: u32,
    own: u64,
    gone_children: u64,
}

impl Stat {
    fn of(id: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The second field is a name in brackets that may hold anything.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            own: number(14)? + number(15)?,
            gone_children: number(16)? + number(17)?,
        })
    }
}
