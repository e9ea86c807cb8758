//! A task's counters, on a node with either version of cgroups, and where they are read from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::*;
use containerd_shim_protos::cgroups::metrics::Metrics as MetricsV1;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as MetricsV2;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::json;

use crate::cgroup::{assert_v2, is_v2};
use crate::fixture::*;

/// Descriptors of files in the cgroup of `bundle`.
fn cgroup_files(shim: &Shim, bundle: &Bundle) -> BTreeMap<String, PathBuf> {
    let folder = format!("/proc/{}/fd", shim.process.id());
    let links = std::fs::read_dir(folder).unwrap().flatten().filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        let is_its = target.starts_with("/sys/fs/cgroup") && target.to_str()?.contains(&bundle.id);
        is_its.then(|| (entry.file_name().into_string().unwrap(), target))
    });
    links.collect()
}

async fn stats(shim: &Shim, bundle: &Bundle) -> Any {
    let request = StatsRequest { id: bundle.id.clone(), ..Default::default() };
    shim.task.stats(context(), &request).await.unwrap().stats.unwrap()
}

/// What both versions count, in bytes and nanoseconds.
struct Counted {
    memory: u64,
    memory_limit: u64,
    memory_peak: u64,
    cache: u64,
    cpu: u64,
    processes: u64,
    oom_kills: u64,
}

async fn counted(shim: &Shim, bundle: &Bundle) -> Counted {
    let any = stats(shim, bundle).await;
    if is_v2() {
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = MetricsV2::parse_from_bytes(&any.value).unwrap();
        return Counted {
            memory: metrics.memory.usage,
            memory_limit: metrics.memory.usage_limit,
            memory_peak: metrics.memory.max_usage,
            cache: metrics.memory.file,
            cpu: metrics.cpu.usage_usec * 1000,
            processes: metrics.pids.current,
            oom_kills: metrics.memory_events.oom_kill,
        };
    }
    assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
    let metrics = MetricsV1::parse_from_bytes(&any.value).unwrap();
    Counted {
        memory: metrics.memory.usage.usage,
        memory_limit: metrics.memory.usage.limit,
        memory_peak: metrics.memory.usage.max,
        cache: metrics.memory.total_cache,
        cpu: metrics.cpu.usage.total,
        processes: metrics.pids.current,
        oom_kills: metrics.memory_oom_control.oom_kill,
    }
}

/// The kernel's own word: the first number of a file, whichever version it is of.
fn kernel(bundle: &Bundle, v1: &str, v2: &str) -> u64 {
    let file = match (is_v2(), v1.split_once('.')) {
        (false, Some((controller, _))) => format!("{controller}/{}/{v1}", bundle.id),
        _ => format!("{}/{v2}", bundle.id),
    };
    let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).unwrap();
    text.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
}

/// The counters, and `memory.stat` as it was before and after: the kernel adds up what its processors have counted now and then,
/// in its own time (`flush_memcg_stats_dwork` in mm/memcontrol.c).
async fn at_rest(shim: &Shim, bundle: &Bundle) -> (Any, String) {
    let file = Path::new("/sys/fs/cgroup").join(&bundle.id).join("memory.stat");
    let mut before = std::fs::read_to_string(&file).unwrap();
    for _ in 0..1000 {
        let metrics = stats(shim, bundle).await;
        let after = std::fs::read_to_string(&file).unwrap();
        if before == after {
            return (metrics, after);
        }
        before = after;
    }
    panic!("memory.stat of a sleeping container never rests");
}

#[tokio::test]
async fn counters_are_those_of_the_kernel() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("stats", "head -c 20000000 /dev/zero > /tmp/x; exec sleep 1000");
    shim.run(&bundle).await;
    let mut metrics = counted(&shim, &bundle).await;
    for _ in 0..500 {
        if metrics.memory > 20_000_000 && metrics.processes == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        metrics = counted(&shim, &bundle).await;
    }
    assert!(metrics.memory > 20_000_000, "{}", metrics.memory);
    assert!(metrics.memory_peak >= metrics.memory);
    assert!(metrics.memory_peak <= kernel(&bundle, "memory.max_usage_in_bytes", "memory.peak"));
    assert!(metrics.cache > 19_000_000);
    let unit = if is_v2() { 1000 } else { 1 };
    assert!(metrics.cpu > 0 && metrics.cpu <= kernel(&bundle, "cpuacct.usage", "cpu.stat") * unit);
    assert_eq!(metrics.processes, 1);
    if is_v2() {
        let (metrics, stat) = at_rest(&shim, &bundle).await;
        assert_v2(&bundle.id, &MetricsV2::parse_from_bytes(&metrics.value).unwrap(), &stat);
    }

    let limits = Any { value: br#"{"memory":{"limit":67108864}}"#.to_vec(), ..Default::default() };
    let id = bundle.id.clone();
    let request = UpdateTaskRequest { id, resources: MessageField::some(limits), ..Default::default() };
    shim.task.update(context(), &request).await.unwrap();
    assert_eq!(counted(&shim, &bundle).await.memory_limit, 67_108_864);
    shim.kill(&bundle, "", 9, false).await.unwrap();
    shim.wait(&bundle, "").await.unwrap();
    assert!(counted(&shim, &bundle).await.memory_peak > 20_000_000, "until the deletion");
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("oom", "");
    bundle.configure("exec tail /dev/zero", |config| {
        config["linux"]["resources"] = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    });
    shim.run(&bundle).await;
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 137);
    assert_eq!(counted(&shim, &bundle).await.oom_kills, 1);
    shim.delete(&bundle, "").await.unwrap();
    let events = shim.events_until(&format!("delete {}", bundle.id)).await;
    assert!(events.contains(&format!("oom {}", bundle.id)), "{events:?}");
}

#[tokio::test]
async fn counters_are_read_from_files_that_stay_open() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("open", "sleep 1000");
    shim.run(&bundle).await;
    assert_eq!(cgroup_files(&shim, &bundle), BTreeMap::new(), "nobody has asked");
    let first = stats(&shim, &bundle).await;
    let files = cgroup_files(&shim, &bundle);
    assert!((10..=48).contains(&files.len()), "{files:?}");
    assert!(files.values().any(|file| file.ends_with("memory.stat")), "{files:?}");
    for _ in 0..50 {
        stats(&shim, &bundle).await;
    }
    assert_eq!(cgroup_files(&shim, &bundle), files, "the same, under the same numbers");
    assert!(!first.value.is_empty());

    shim.kill(&bundle, "", 9, false).await.unwrap();
    shim.wait(&bundle, "").await.unwrap();
    assert_eq!(cgroup_files(&shim, &bundle), BTreeMap::new(), "the last ones are kept, not their files");
    let last = stats(&shim, &bundle).await;
    assert_eq!(last.type_url, first.type_url);
    assert!(last.value.len() * 2 > first.value.len(), "{} of {}", last.value.len(), first.value.len());
    assert_eq!(stats(&shim, &bundle).await, last);
    shim.delete(&bundle, "").await.unwrap();
}

/// As on a node where somebody has removed it; there are no counters then, and none are made up.
#[tokio::test]
async fn a_cgroup_that_is_gone_has_no_counters() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("gone-cgroup", "sleep 1000");
    shim.run(&bundle).await;
    stats(&shim, &bundle).await;
    let pid = shim.state(&bundle, "").await.unwrap().pid;
    let mut folders: Vec<PathBuf> =
        cgroup_files(&shim, &bundle).values().map(|file| file.parent().unwrap().to_owned()).collect();
    folders.dedup();
    for folder in &folders {
        // Up and out, and the folder goes.
        std::fs::write(folder.parent().unwrap().join("cgroup.procs"), pid.to_string()).unwrap();
        until("the cgroup can be removed", || match std::fs::remove_dir(folder) {
            Err(err) => err.kind() == std::io::ErrorKind::NotFound,
            Ok(()) => true,
        })
        .await;
    }
    let request = StatsRequest { id: bundle.id.clone(), ..Default::default() };
    let (code, message) = refusal(shim.task.stats(context(), &request).await);
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert!(message.starts_with(&format!("read the counters of {:?}: ", bundle.id)), "{message}");
    assert_eq!(cgroup_files(&shim, &bundle), BTreeMap::new());
    shim.end(&bundle).await;
}
