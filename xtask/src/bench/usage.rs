//! What a process used, as the kernel counts it.

use anyhow::{Context, Result};

/// How long all threads of a process ran so far, in nanoseconds.
pub fn cpu_nanoseconds(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.file_name();
        sum += thread_nanoseconds(pid, &task.to_string_lossy())?;
    }
    Ok(sum)
}

/// How long the first thread of a process ran so far: of QEMU, the one that moves frames where no other does.
pub fn main_thread_nanoseconds(pid: u32) -> Result<u64> {
    thread_nanoseconds(pid, &pid.to_string())
}

fn thread_nanoseconds(pid: u32, task: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat"))?;
    let used = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    used.context("the kernel does not say how long a thread ran")
}

/// How often threads of a process went to sleep so far, which is as often as they woke up.
pub fn wake_ups(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = line.and_then(|count| count.trim().parse::<u64>().ok());
        sum += count.context("the kernel does not say how often a thread slept")?;
    }
    Ok(sum)
}

/// Bytes of memory that are the process's alone.
pub fn private_bytes(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let kilobytes = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kilobytes.sum::<u64>() * 1024)
}
