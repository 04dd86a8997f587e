//! CPU time and memory of processes, read from `/proc`.

use std::fs;

use anyhow::Context;

/// Clock ticks a second in `/proc`: `USER_HZ` is 100, whatever the kernel's internal tick rate is.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuTime {
    pub(crate) service: f64,
    /// Of all processes of the service's PostgreSQL.
    pub(crate) postgres: f64,
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// The resident set size now.
    pub(crate) resident: f64,
    /// The largest resident set size so far.
    pub(crate) peak: f64,
}

/// The fields of `/proc/PID/stat` that the harness needs.
struct Stat {
    parent: u32,
    /// CPU time of the process itself, in ticks.
    own: u64,
    /// CPU time of its children that have ended and that it has waited for, in ticks.
    ended_children: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name may contain spaces and parentheses, so the fields are counted from
        // the end of the name. The first of them is the state.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            ended_children: number(13)? + number(14)?,
        })
    }
}

/// The CPU time that the service and all processes of its PostgreSQL have used so far.
pub(crate) fn cpu_time(service: u32, postmaster: u32) -> CpuTime {
    let own = Stat::read(service).map_or(0, |stat| stat.own);
    // The postmaster waits for its children, so its own account has the time of those that have
    // ended. No time is counted twice or lost.
    let ended = Stat::read(postmaster).map_or(0, |stat| stat.own + stat.ended_children);
    let children: u64 = pids()
        .filter_map(Stat::read)
        .filter(|stat| stat.parent == postmaster)
        .map(|stat| stat.own)
        .sum();
    CpuTime { service: seconds(own), postgres: seconds(ended + children) }
}

#[expect(clippy::cast_precision_loss, reason = "no process runs for 2^52 ticks")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The memory of a process.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mebibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes = line.trim_start_matches(':').trim().strip_suffix(" kB")?;
        kibibytes.parse::<f64>().ok().map(|kibibytes| kibibytes / 1024.0)
    };
    let memory = mebibytes("VmRSS").zip(mebibytes("VmHWM"));
    let (resident, peak) = memory.with_context(|| format!("{path} has no VmRSS or no VmHWM"))?;
    Ok(Memory { resident, peak })
}

/// Whether a process with this id exists.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

impl std::ops::Sub for CpuTime {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { service: self.service - before.service, postgres: self.postgres - before.postgres }
    }
}
