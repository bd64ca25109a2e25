//! What processes have used, read from `/proc`: processor time, and the most memory they had.

use std::fs;

use serde::Serialize;

/// `/proc` counts in hundredths of a second on every Linux (USER_HZ, proc(5)).
const TICK_MS: f64 = 10.0;

/// Processor time of each party, in milliseconds: since it began, or a difference, or a share of one delivery.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Cpu {
    pub(super) service: f64,
    pub(super) postgres: f64,
    pub(super) callers: f64,
    pub(super) receivers: f64,
}

impl Cpu {
    /// As of now. The callers are this process.
    pub(super) fn now(service: u32, postmaster: u32, receivers: u32) -> Self {
        Self {
            service: own_ms(service),
            postgres: family_ms(postmaster),
            callers: own_ms(std::process::id()),
            receivers: own_ms(receivers),
        }
    }

    /// What was used since `earlier`, for each of `deliveries`.
    pub(super) fn per_delivery_since(&self, earlier: &Self, deliveries: u64) -> Self {
        let share = |now: f64, then: f64| (now - then) / (deliveries.max(1) as f64);
        Self {
            service: share(self.service, earlier.service),
            postgres: share(self.postgres, earlier.postgres),
            callers: share(self.callers, earlier.callers),
            receivers: share(self.receivers, earlier.receivers),
        }
    }

    /// Hooklane and PostgreSQL together.
    pub(super) const fn of_hooklane(&self) -> f64 {
        self.service + self.postgres
    }
}

/// The most memory a process had resident, in MB; 0 when it is gone.
pub(super) fn peak_rss_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kb.unwrap_or_default() * 1_024.0 / 1e6
}

/// What a process has used since it began, in milliseconds; 0 when it is gone.
pub(super) fn own_ms(pid: u32) -> f64 {
    Stat::of(pid).map_or(0.0, |stat| stat.own * TICK_MS)
}

/// The postmaster, its children that ended, and its children that live.
fn family_ms(postmaster: u32) -> f64 {
    let Some(head) = Stat::of(postmaster) else { return 0.0 };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let living: f64 = pids.filter_map(Stat::of).filter(|stat| stat.parent == postmaster).map(|stat| stat.own).sum();
    (head.own + head.ended_children + living) * TICK_MS
}

/// Ticks of one process.
struct Stat {
    parent: u32,
    own: f64,
    ended_children: f64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The fields follow the name, which may itself hold spaces and parentheses.
    fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // proc(5) counts from 1 with the pid; the first one here, the state, is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self { parent: field(4)? as u32, own: field(14)? + field(15)?, ended_children: field(16)? + field(17)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_any_name() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194304 1 2 3 4 10 20 300 400 20 0 1 0 5 6 7";
        let stat = Stat::parse(line).expect("a stat");
        assert_eq!((stat.parent, stat.own, stat.ended_children), (7, 30.0, 700.0));
    }

    #[test]
    fn we_use_memory() {
        assert!(peak_rss_mb(std::process::id()) > 1.0);
    }
}
