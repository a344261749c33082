//! What processes of this machine cost: from the kernel, by `/proc` and the clock of this process.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::failure::Failure;

/// Linux counts the CPU time of others in hundredths of a second, whatever its own tick is.
const TICK: Duration = Duration::from_millis(10);

/// CPU that this process has used.
pub(super) fn own_cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(used.tv_sec).unwrap_or(0),
        u32::try_from(used.tv_nsec).unwrap_or(0),
    )
}

/// CPU that processes have used, all together.
pub(super) fn cpu(pids: &[u32]) -> Result<Duration, Failure> {
    let mut sum = Duration::ZERO;
    for pid in pids {
        let text = read(*pid, "stat")?;
        let ticks = ticks(&text).ok_or_else(|| unreadable(*pid, "stat"))?;
        sum += TICK * ticks;
    }
    Ok(sum)
}

/// User and system time. The command's name may hold blanks; the fields after it start behind the last parenthesis.
fn ticks(stat: &str) -> Option<u32> {
    let fields = stat.rsplit(')').next()?.split_whitespace();
    let times = fields.skip(11).take(2);
    times.map(|field| field.parse::<u32>().ok()).sum()
}

/// Memory of processes, in KiB, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident_kib: u64,
    /// The most that each ever had, or since the last [`forget_peaks`].
    pub(super) peak_kib: u64,
}

pub(super) fn memory(pids: &[u32]) -> Result<Memory, Failure> {
    let mut sum = Memory::default();
    for pid in pids {
        let text = read(*pid, "status")?;
        let field = |name| kib(&text, name).ok_or_else(|| unreadable(*pid, "status"));
        sum.resident_kib += field("VmRSS:")?;
        sum.peak_kib += field("VmHWM:")?;
    }
    Ok(sum)
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Lets peaks count from now on. Only whoever may trace the processes may do that.
pub(super) fn forget_peaks(pids: &[u32]) -> Result<(), Failure> {
    for pid in pids {
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, "5").map_err(|error| Failure::failed(format!("writing {path}"), error))?;
    }
    Ok(())
}

fn read(pid: u32, file: &str) -> Result<String, Failure> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path);
    text.map_err(|error| {
        Failure::failed(
            format!("reading {path} (--pids are processes of the server, on this machine)"),
            error,
        )
    })
}

fn unreadable(pid: u32, file: &str) -> Failure {
    Failure::Failed(format!(
        "/proc/{pid}/{file} has not what Linux writes there"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_cpu_and_memory() {
        let pids = [std::process::id()];
        let memory = memory(&pids).unwrap();
        assert!(memory.resident_kib > 0 && memory.peak_kib >= memory.resident_kib);
        assert!(own_cpu() > Duration::ZERO);
        // In whole ticks, so possibly none yet.
        assert!(cpu(&pids).unwrap() <= own_cpu() + TICK);
        assert_eq!(cpu(&[]).unwrap(), Duration::ZERO);
    }

    #[test]
    fn process_that_is_not_there_is_an_error_that_names_it() {
        let Err(Failure::Failed(text)) = memory(&[u32::MAX]) else {
            panic!("there is no such process");
        };
        assert!(text.contains("/proc/4294967295/status"), "{text}");
    }

    #[test]
    fn ticks_are_found_behind_a_name_with_parentheses_and_blanks() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a) S 1"), Some(0));
    }
}
