//! The counters of a cgroup v2, as containerd's `io.containerd.cgroups.v2.Metrics`.
//!
//! A file that is not there counts zero: controllers are enabled one by one, and older kernels have fewer keys
//! (Documentation/admin-guide/cgroup-v2.rst).

use std::io;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
};
use protobuf::MessageField;

use super::counters::{Folder, field, huge_page_sizes, keyed, one};

pub(super) fn read(folder: &mut Folder) -> io::Result<Metrics> {
    let mut cpu = cpu_stat(&folder.text("cpu.stat")?);
    cpu.psi = pressure(&folder.text("cpu.pressure")?).into();
    let io = IOStat {
        usage: io_entries(&folder.text("io.stat")?),
        psi: pressure(&folder.text("io.pressure")?).into(),
        ..Default::default()
    };
    let pids = PidsStat {
        current: folder.number("pids.current")?,
        limit: folder.number("pids.max")?,
        ..Default::default()
    };
    Ok(Metrics {
        pids: MessageField::some(pids),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory(folder)?),
        io: MessageField::some(io),
        hugetlb: hugetlb(folder)?,
        memory_events: MessageField::some(memory_events(&folder.text("memory.events")?)),
        ..Default::default()
    })
}

pub(super) fn cpu_stat(text: &str) -> CPUStat {
    let mut stat = CPUStat::new();
    for (key, value) in keyed(text) {
        match key {
            "usage_usec" => stat.usage_usec = value,
            "user_usec" => stat.user_usec = value,
            "system_usec" => stat.system_usec = value,
            "nr_periods" => stat.nr_periods = value,
            "nr_throttled" => stat.nr_throttled = value,
            "throttled_usec" => stat.throttled_usec = value,
            "nr_bursts" => stat.nr_bursts = value,
            "burst_usec" => stat.burst_usec = value,
            _ => {}
        }
    }
    stat
}

fn memory(folder: &mut Folder) -> io::Result<MemoryStat> {
    let mut stat = memory_stat(&folder.text("memory.stat")?);
    stat.usage = folder.number("memory.current")?;
    stat.usage_limit = folder.number("memory.max")?;
    stat.max_usage = folder.number("memory.peak")?;
    stat.swap_usage = folder.number("memory.swap.current")?;
    stat.swap_limit = folder.number("memory.swap.max")?;
    stat.swap_max_usage = folder.number("memory.swap.peak")?;
    stat.psi = pressure(&folder.text("memory.pressure")?).into();
    Ok(stat)
}

pub(super) fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::new();
    for (key, value) in keyed(text) {
        match key {
            "anon" => stat.anon = value,
            "file" => stat.file = value,
            "kernel_stack" => stat.kernel_stack = value,
            "slab" => stat.slab = value,
            "sock" => stat.sock = value,
            "shmem" => stat.shmem = value,
            "file_mapped" => stat.file_mapped = value,
            "file_dirty" => stat.file_dirty = value,
            "file_writeback" => stat.file_writeback = value,
            "anon_thp" => stat.anon_thp = value,
            "inactive_anon" => stat.inactive_anon = value,
            "active_anon" => stat.active_anon = value,
            "inactive_file" => stat.inactive_file = value,
            "active_file" => stat.active_file = value,
            "unevictable" => stat.unevictable = value,
            "slab_reclaimable" => stat.slab_reclaimable = value,
            "slab_unreclaimable" => stat.slab_unreclaimable = value,
            "pgfault" => stat.pgfault = value,
            "pgmajfault" => stat.pgmajfault = value,
            // Split by kind since Linux 5.9; the message has one field.
            "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => {
                stat.workingset_refault += value;
            }
            "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => {
                stat.workingset_activate += value;
            }
            "workingset_nodereclaim" => stat.workingset_nodereclaim = value,
            "pgrefill" => stat.pgrefill = value,
            "pgscan" => stat.pgscan = value,
            "pgsteal" => stat.pgsteal = value,
            "pgactivate" => stat.pgactivate = value,
            "pgdeactivate" => stat.pgdeactivate = value,
            "pglazyfree" => stat.pglazyfree = value,
            "pglazyfreed" => stat.pglazyfreed = value,
            "thp_fault_alloc" => stat.thp_fault_alloc = value,
            "thp_collapse_alloc" => stat.thp_collapse_alloc = value,
            _ => {}
        }
    }
    stat
}

pub(super) fn memory_events(text: &str) -> MemoryEvents {
    MemoryEvents {
        low: field(text, "low"),
        high: field(text, "high"),
        max: field(text, "max"),
        oom: field(text, "oom"),
        oom_kill: field(text, "oom_kill"),
        oom_group_kill: field(text, "oom_group_kill"),
        ..Default::default()
    }
}

/// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
pub(super) fn io_entries(text: &str) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut entry =
            IOEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// Lines such as `some avg10=0.12 avg60=0.00 avg300=0.00 total=345`; none without `CONFIG_PSI`.
pub(super) fn pressure(text: &str) -> Option<PSIStats> {
    let line = |kind: &str| -> MessageField<PSIData> {
        let Some(line) = text.lines().find_map(|line| line.strip_prefix(kind)) else {
            return MessageField::none();
        };
        let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
        let average = |key: &str| value(key).and_then(|value| value.parse().ok()).unwrap_or_default();
        MessageField::some(PSIData {
            avg10: average("avg10="),
            avg60: average("avg60="),
            avg300: average("avg300="),
            total: value("total=").and_then(|value| value.parse().ok()).unwrap_or_default(),
            ..Default::default()
        })
    };
    let stats = PSIStats { some: line("some "), full: line("full "), ..Default::default() };
    (!text.is_empty()).then_some(stats)
}

fn hugetlb(folder: &mut Folder) -> io::Result<Vec<HugeTlbStat>> {
    let mut stats = Vec::new();
    for pagesize in huge_page_sizes() {
        let current = folder.text(&format!("hugetlb.{pagesize}.current"))?;
        // Without the controller there is no file, and no page is counted.
        if current.is_empty() {
            continue;
        }
        stats.push(HugeTlbStat {
            current: one(&current),
            max: folder.number(&format!("hugetlb.{pagesize}.max"))?,
            failcnt: field(&folder.text(&format!("hugetlb.{pagesize}.events"))?, "max"),
            pagesize: pagesize.clone(),
            ..Default::default()
        });
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup's files, of a kernel 6.1 node.
    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 1\nthrottled_usec 9\n",
            ),
            ("cpu.pressure", "some avg10=1.25 avg60=0.50 avg300=0.10 total=345\n"),
            (
                "memory.stat",
                "anon 4096\nfile 8192\ninactive_file 100\nworkingset_refault_anon 1\nworkingset_refault_file 2\npgfault 7\n",
            ),
            ("memory.current", "12288\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "0\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("pids.current", "2\n"),
            ("pids.max", "100\n"),
            ("io.stat", "8:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:0 \n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_of_files_becomes_metrics() {
        let metrics = read(&mut Folder::open(sample().path()).unwrap()).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.nr_throttled), (1500, 1));
        assert_eq!((metrics.cpu.psi.some.avg10, metrics.cpu.psi.some.total), (1.25, 345));
        assert!(metrics.cpu.psi.full.is_none() && metrics.memory.psi.is_none());
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (12288, u64::MAX));
        assert_eq!((metrics.memory.anon, metrics.memory.workingset_refault), (4096, 3));
        assert_eq!((metrics.memory_events.oom_kill, metrics.memory_events.max), (1, 3));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, 100));
        assert_eq!((metrics.io.usage[0].major, metrics.io.usage[0].wbytes), (8, 20));
        assert_eq!(metrics.io.usage.len(), 2);
    }
}
