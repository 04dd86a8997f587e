//! What the system says about processes: their time on the processors, their memory.

use std::fs;

use anyhow::Context;

use crate::service::Service;

/// The kernel counts time in hundredths of a second towards its users, whatever it does inside.
const TICKS_PER_SECOND: f64 = 100.0;

/// Time on the processors, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) service: f64,
    pub(crate) postgres: f64,
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// What it has now.
    pub(crate) resident: f64,
    /// The most that it has ever had.
    pub(crate) peak: f64,
}

/// The parts of `/proc/PID/stat` that are of use here.
struct Stat {
    parent: u32,
    /// Its own time and, waited for, that of its children that have ended, in ticks.
    own: u64,
    ended_children: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name may hold blanks and brackets; the fields are counted from its end, with the state.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            ended_children: number(13)? + number(14)?,
        })
    }
}

/// The time that the service and all processes of its PostgreSQL have taken so far.
pub(crate) fn cpu(service: &Service) -> Cpu {
    let own = Stat::read(service.pid).map_or(0, |stat| stat.own);
    // What has ended is in the postmaster's own account, as it waits for its children: nothing is counted twice or lost.
    let postmaster = Stat::read(service.postmaster).map_or(0, |stat| stat.own + stat.ended_children);
    let children: u64 = processes()
        .filter_map(Stat::read)
        .filter(|stat| stat.parent == service.postmaster)
        .map(|stat| stat.own)
        .sum();
    Cpu { service: seconds(own), postgres: seconds(postmaster + children) }
}

#[expect(clippy::cast_precision_loss, reason = "a process lives no 2^52 ticks")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The memory of a process.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mebibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib / 1024.0)
    };
    let memory = mebibytes("VmRSS").zip(mebibytes("VmHWM"));
    let (resident, peak) = memory.with_context(|| format!("{path} does not say how much memory"))?;
    Ok(Memory { resident, peak })
}

/// Whether a process has this number.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

impl std::ops::Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { service: self.service - before.service, postgres: self.postgres - before.postgres }
    }
}
