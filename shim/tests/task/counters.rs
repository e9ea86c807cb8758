//! Where a task's counters are read from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containerd_shim_protos::api::*;
use protobuf::well_known_types::any::Any;

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
    shim.kill(&bundle, "", 9, false).await.unwrap();
    shim.wait(&bundle, "").await.unwrap();
    shim.delete(&bundle, "").await.unwrap();
}
