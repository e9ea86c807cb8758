//! What the shim does with the cgroup of a container, on the hierarchy that this machine has: version 1 or version 2.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api::*;
use containerd_shim_protos::cgroups_v2::metrics::Metrics;

use crate::fixture::*;

const MOUNT: &str = "/sys/fs/cgroup";

pub(crate) fn is_v2() -> bool {
    Path::new(MOUNT).join("cgroup.controllers").exists()
}

/// All folders of a container's cgroup: one in version 2, one for each controller in version 1.
pub(crate) fn folders(id: &str) -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from(MOUNT)];
    roots.extend(std::fs::read_dir(MOUNT).unwrap().map(|entry| entry.unwrap().path()));
    // A folder where no hierarchy is mounted is no cgroup: crun makes one in its place.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    roots.retain(|root| mounts.contains(&format!(" {} cgroup", root.display())));
    roots.into_iter().map(|root| root.join(id)).filter(|folder| folder.is_dir()).collect()
}

/// A file of a container's cgroup; its version 1 controller is the first word of its name.
fn file(id: &str, name: &str) -> String {
    let root = Path::new(MOUNT);
    let controller = if is_v2() { "" } else { name.split('.').next().unwrap() };
    std::fs::read_to_string(root.join(controller).join(id).join(name)).unwrap()
}

fn number(id: &str, name: &str) -> u64 {
    file(id, name).trim().parse().unwrap()
}

/// The value of a line `key value`.
fn field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {key} in {text}")).parse().unwrap()
}

/// The container sleeps: what it has counted stays, but for what the kernel still gives back.
pub(crate) fn assert_v2(id: &str, metrics: &Metrics, stat: &str) {
    let (memory, cpu) = (&metrics.memory, &metrics.cpu);
    let time = file(id, "cpu.stat");
    assert!(memory.file > 19_000_000 && memory.shmem > 19_000_000, "{memory:?}");
    assert_eq!(memory.shmem, field(stat, "shmem"));
    assert_eq!(memory.anon, field(stat, "anon"));
    assert_eq!(memory.inactive_file, field(stat, "inactive_file"));
    assert_eq!(memory.active_file, field(stat, "active_file"));
    assert_eq!(memory.unevictable, field(stat, "unevictable"));
    assert_eq!(memory.pgfault, field(stat, "pgfault"));
    assert_eq!(memory.kernel_stack, field(stat, "kernel_stack"));
    assert_eq!((memory.usage_limit, file(id, "memory.max").as_str()), (u64::MAX, "max\n"));
    assert!(memory.swap_usage == 0 && memory.swap_limit == u64::MAX, "{memory:?}");
    // memory.peak came with Linux 5.19.
    assert!(memory.max_usage > 20_000_000 && memory.max_usage <= number(id, "memory.peak"), "{memory:?}");
    assert!(cpu.user_usec + cpu.system_usec > 0 && cpu.usage_usec <= field(&time, "usage_usec"), "{cpu:?}");
    assert_eq!(cpu.nr_periods, field(&time, "nr_periods"));
    assert_eq!(metrics.pids.limit, u64::MAX, "pids.max is {}", file(id, "pids.max"));
    let events = file(id, "memory.events");
    assert_eq!(metrics.memory_events.oom_kill, field(&events, "oom_kill"));
    assert_eq!(metrics.memory_events.max, field(&events, "max"));
}

/// The second witness of a pause is the kernel's: `freezer.state` of version 1, `cgroup.events` of version 2.
#[tokio::test]
async fn a_paused_task_is_frozen_in_the_kernel() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("frozen", "sleep 1000 & sleep 1000");
    shim.run(&bundle).await;
    let is_frozen = || match is_v2() {
        true => field(&file(&bundle.id, "cgroup.events"), "frozen") == 1,
        false => file(&bundle.id, "freezer.state") == "FROZEN\n",
    };
    assert!(!is_frozen());
    let pause = PauseRequest { id: bundle.id.clone(), ..Default::default() };
    shim.task.pause(context(), &pause).await.unwrap();
    until("the kernel has frozen all", is_frozen).await;
    let resume = ResumeRequest { id: bundle.id.clone(), ..Default::default() };
    shim.task.resume(context(), &resume).await.unwrap();
    until("the kernel has thawed all", || !is_frozen()).await;
    shim.task.pause(context(), &pause).await.unwrap();
    shim.kill(&bundle, "", 9, true).await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 137, "frozen ones die of a signal to all");
    shim.delete(&bundle, "").await.unwrap();
    assert_eq!(folders(&bundle.id), Vec::<PathBuf>::new());
}
