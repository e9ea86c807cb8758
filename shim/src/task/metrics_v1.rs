//! The counters of a cgroup v1, as containerd's `io.containerd.cgroups.v1.Metrics`.
//!
//! A file that a kernel does not have counts zero: which ones there are depends on its configuration.

use std::collections::BTreeMap;
use std::io;

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat,
    Metrics, PidsStat, Throttle,
};
use protobuf::MessageField;

use super::counters::{Folder, field, huge_page_sizes, keyed};

/// The kernel's USER_HZ, which cpuacct.stat counts in, is 100 on every architecture that runs containers.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

pub(super) fn read(folders: &mut BTreeMap<&'static str, Folder>) -> io::Result<Metrics> {
    let mut metrics = Metrics::new();
    if let Some(folder) = folders.get_mut("pids") {
        let (current, limit) = (folder.number("pids.current")?, folder.number("pids.max")?);
        // "max" is told as 0 in v1, see the Go package containerd/cgroups.
        let limit = if limit == u64::MAX { 0 } else { limit };
        metrics.pids = MessageField::some(PidsStat { current, limit, ..Default::default() });
    }
    let throttling = match folders.get_mut("cpu") {
        Some(folder) => Some(throttle(&folder.text("cpu.stat")?)),
        None => None,
    };
    if let Some(folder) = folders.get_mut("cpuacct") {
        let usage = cpu_usage(
            folder.number("cpuacct.usage")?,
            &folder.text("cpuacct.usage_percpu")?,
            &folder.text("cpuacct.stat")?,
        );
        metrics.cpu = MessageField::some(CPUStat {
            usage: MessageField::some(usage),
            throttling: throttling.into(),
            ..Default::default()
        });
    }
    if let Some(folder) = folders.get_mut("memory") {
        metrics.memory = MessageField::some(memory(folder)?);
        metrics.memory_oom_control = MessageField::some(oom_control(&folder.text("memory.oom_control")?));
    }
    if let Some(folder) = folders.get_mut("blkio") {
        metrics.blkio = MessageField::some(blkio(folder)?);
    }
    if let Some(folder) = folders.get_mut("hugetlb") {
        metrics.hugetlb = hugetlb(folder)?;
    }
    Ok(metrics)
}

pub(super) fn cpu_usage(total: u64, per_cpu: &str, stat: &str) -> CPUUsage {
    CPUUsage {
        total,
        kernel: field(stat, "system").saturating_mul(NANOSECONDS_PER_TICK),
        user: field(stat, "user").saturating_mul(NANOSECONDS_PER_TICK),
        per_cpu: per_cpu.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
        ..Default::default()
    }
}

pub(super) fn throttle(stat: &str) -> Throttle {
    Throttle {
        periods: field(stat, "nr_periods"),
        throttled_periods: field(stat, "nr_throttled"),
        throttled_time: field(stat, "throttled_time"),
        ..Default::default()
    }
}

fn memory(folder: &mut Folder) -> io::Result<MemoryStat> {
    let mut stat = memory_stat(&folder.text("memory.stat")?);
    stat.usage = entry(folder, "memory")?;
    stat.swap = entry(folder, "memory.memsw")?;
    stat.kernel = entry(folder, "memory.kmem")?;
    stat.kernel_tcp = entry(folder, "memory.kmem.tcp")?;
    Ok(stat)
}

fn entry(folder: &mut Folder, prefix: &str) -> io::Result<MessageField<MemoryEntry>> {
    Ok(MessageField::some(MemoryEntry {
        limit: folder.number(&format!("{prefix}.limit_in_bytes"))?,
        usage: folder.number(&format!("{prefix}.usage_in_bytes"))?,
        max: folder.number(&format!("{prefix}.max_usage_in_bytes"))?,
        failcnt: folder.number(&format!("{prefix}.failcnt"))?,
        ..Default::default()
    }))
}

pub(super) fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::new();
    for (key, value) in keyed(text) {
        match key {
            "cache" => stat.cache = value,
            "rss" => stat.rss = value,
            "rss_huge" => stat.rss_huge = value,
            "mapped_file" => stat.mapped_file = value,
            "dirty" => stat.dirty = value,
            "writeback" => stat.writeback = value,
            "pgpgin" => stat.pg_pg_in = value,
            "pgpgout" => stat.pg_pg_out = value,
            "pgfault" => stat.pg_fault = value,
            "pgmajfault" => stat.pg_maj_fault = value,
            "inactive_anon" => stat.inactive_anon = value,
            "active_anon" => stat.active_anon = value,
            "inactive_file" => stat.inactive_file = value,
            "active_file" => stat.active_file = value,
            "unevictable" => stat.unevictable = value,
            "hierarchical_memory_limit" => stat.hierarchical_memory_limit = value,
            "hierarchical_memsw_limit" => stat.hierarchical_swap_limit = value,
            "total_cache" => stat.total_cache = value,
            "total_rss" => stat.total_rss = value,
            "total_rss_huge" => stat.total_rss_huge = value,
            "total_mapped_file" => stat.total_mapped_file = value,
            "total_dirty" => stat.total_dirty = value,
            "total_writeback" => stat.total_writeback = value,
            "total_pgpgin" => stat.total_pg_pg_in = value,
            "total_pgpgout" => stat.total_pg_pg_out = value,
            "total_pgfault" => stat.total_pg_fault = value,
            "total_pgmajfault" => stat.total_pg_maj_fault = value,
            "total_inactive_anon" => stat.total_inactive_anon = value,
            "total_active_anon" => stat.total_active_anon = value,
            "total_inactive_file" => stat.total_inactive_file = value,
            "total_active_file" => stat.total_active_file = value,
            "total_unevictable" => stat.total_unevictable = value,
            _ => {}
        }
    }
    stat
}

pub(super) fn oom_control(text: &str) -> MemoryOomControl {
    MemoryOomControl {
        oom_kill_disable: field(text, "oom_kill_disable"),
        under_oom: field(text, "under_oom"),
        oom_kill: field(text, "oom_kill"),
        ..Default::default()
    }
}

fn blkio(folder: &mut Folder) -> io::Result<BlkIOStat> {
    let mut entries = |file: &str| Ok::<_, io::Error>(blkio_entries(&folder.text(file)?));
    Ok(BlkIOStat {
        io_service_bytes_recursive: entries("blkio.throttle.io_service_bytes_recursive")?,
        io_serviced_recursive: entries("blkio.throttle.io_serviced_recursive")?,
        ..Default::default()
    })
}

/// Lines such as `8:0 Read 4096`; the closing `Total` names no device and is left out.
pub(super) fn blkio_entries(text: &str) -> Vec<BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, op, value) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = device.split_once(':')?;
        Some(BlkIOEntry {
            op: op.to_owned(),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            value: value.parse().ok()?,
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn hugetlb(folder: &mut Folder) -> io::Result<Vec<HugetlbStat>> {
    let stat = |pagesize: &String| {
        Ok(HugetlbStat {
            usage: folder.number(&format!("hugetlb.{pagesize}.usage_in_bytes"))?,
            max: folder.number(&format!("hugetlb.{pagesize}.max_usage_in_bytes"))?,
            failcnt: folder.number(&format!("hugetlb.{pagesize}.failcnt"))?,
            pagesize: pagesize.clone(),
            ..Default::default()
        })
    };
    huge_page_sizes().iter().map(stat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_become_nanoseconds() {
        let usage = cpu_usage(5, "1 4 \n", "user 3\nsystem 2\n");
        assert_eq!((usage.total, usage.user, usage.kernel), (5, 30_000_000, 20_000_000));
        assert_eq!(usage.per_cpu, [1, 4]);
    }

    #[test]
    fn devices_are_split_and_the_total_left_out() {
        let entries = blkio_entries("8:16 Read 4096\n8:16 Write 0\nTotal 4096\n");
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].major, entries[0].minor, entries[0].value), (8, 16, 4096));
        assert_eq!(entries[0].op, "Read");
    }

    #[test]
    fn memory_and_oom_are_read_by_name() {
        let stat = memory_stat("cache 1\nhierarchical_memsw_limit 7\ntotal_inactive_file 3\nnew_key 9\n");
        assert_eq!((stat.cache, stat.hierarchical_swap_limit, stat.total_inactive_file), (1, 7, 3));
        assert_eq!(oom_control("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").oom_kill, 2);
    }
}
