//! What the operating system says of the machine.

use std::{
    fs,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Memory in bytes that this process may use: the machine's, or its container's if that is less.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

/// From `/proc/meminfo` and the control groups; `None` where there is no such file.
pub(crate) fn memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_limit(Path::new("/sys/fs/cgroup"), &groups).unwrap_or(u64::MAX);
    Some(Memory {
        total: field("MemTotal:")?.min(limit),
        available: field("MemAvailable:")?.min(limit),
    })
}

/// The least limit of the control groups in `groups` (lines `number:controllers:path`) and those above them,
/// of version 2 (no controllers) or 1. Inside a container a path may be the host's: then only the mount's
/// root is there, which is the container's group.
fn group_limit(mount: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (top, file) = if controllers.is_empty() {
            (mount.to_owned(), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (mount.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        let group = top.join(path.trim_start_matches('/'));
        let above = group.ancestors().take_while(|ancestor| ancestor.starts_with(&top));
        // Without a limit the file says `max`, which is no number.
        above.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()).min()
    });
    limits.min()
}

/// The most memory that this process has used so far, in bytes.
pub(crate) fn peak_memory() -> Option<u64> {
    own_memory("VmHWM:")
}

/// What this process uses now, in bytes.
pub(crate) fn resident_memory() -> Option<u64> {
    own_memory("VmRSS:")
}

/// Lets [`peak_memory`] begin with what is used now, where the system can.
pub(crate) fn forget_peak_memory() {
    // Without this the peak is that of the whole process, which is no error.
    drop(fs::write("/proc/self/clear_refs", "5"));
}

/// Processor time of all threads of this process so far, in user and in system mode.
#[expect(unsafe_code, reason = "a system call that libc has no safe face for")]
pub(crate) fn processor_time() -> Duration {
    // SAFETY: zeros are a value of it, and the call writes nothing else.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        let micros = u64::try_from(time.tv_usec).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + Duration::from_micros(micros)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn own_memory(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The time that all threads of another process have had on processors, to a hundredth of a second.
pub(crate) fn processor_time_of(pid: u32) -> Option<Duration> {
    /// What Linux counts them in, whatever its own clock ticks in.
    const TICKS_PER_SECOND: u64 = 100;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may have spaces and brackets.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

/// Type and mount point of the file system that holds `path` (or will).
pub(crate) fn file_system(path: &Path) -> Option<(String, String)> {
    let existing = path.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        existing.starts_with(point).then(|| (kind.to_owned(), point.to_owned()))
    });
    mounted.max_by_key(|(_, point)| point.len())
}

/// How long small writes with fsync into `folder` take, the quickest first; `count` is at least 1.
#[expect(clippy::disallowed_methods, reason = "times the disk, not the program")]
pub(crate) fn fsync_times(folder: &Path, count: usize) -> Result<Vec<Duration>> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut file = tempfile::tempfile_in(folder)
        .with_context(|| format!("write into {}", folder.display()))?;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        file.write_all(&[0; 4096]).context("write a block")?;
        file.sync_data().context("sync a block")?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times)
}

/// Raises the limit of open files to the most that is allowed; what it is then.
#[expect(unsafe_code, reason = "two system calls that libc has no safe face for")]
pub(crate) fn raise_file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit, and the call writes nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: the pointer is to a live rlimit, which the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit.rlim_max
    } else {
        limit.rlim_cur
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_group_limit_counts() {
        let mount = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |groups: &str| group_limit(mount.path(), groups);
        assert_eq!(limit("0::/a/b\n"), None);
        write("memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "4096\n");
        write("a/b/memory.max", "8192\n");
        assert_eq!(limit("0::/a/b\n"), Some(4096));
        assert_eq!(limit("0::/elsewhere\n"), None);
        write("memory.max", "16384\n");
        assert_eq!(limit("0::/elsewhere\n"), Some(16_384));
        write("memory/memory.limit_in_bytes", "2048\n");
        let first = "9:name=systemd:/\n5:devices:/\n4:cpu,memory:/host/path\n0::/a\n";
        assert_eq!(limit(first), Some(2048));
        assert_eq!(limit(""), None);
    }
}
