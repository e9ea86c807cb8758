//! Checkpoint and restore through the built shim, with runc and criu on this kernel. Needs root and criu.
//!
//! criu knows the insides of a kernel, and a release of it works with few of them. `criu check` says whether it works
//! with this one: then processes go on where they were, with their memory; else a client gets criu's reason, and nothing
//! is broken. Either is asserted in full.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::let_underscore_must_use, reason = "dropping a fixture must not panic")]
#![expect(dead_code, reason = "the fixture has more than these tests use")]

#[path = "task/fixture.rs"]
mod fixture;

use std::path::Path;
use std::process::Command;

use containerd_shim_protos::api::*;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use fixture::*;
use protobuf::{Message, MessageField};
use ttrpc::Code;

/// Counts, in memory only; its parent stays the same shell.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done";

fn criu_works() -> bool {
    Command::new("criu").arg("check").output().unwrap().status.success()
}

fn checkpoint_request(bundle: &Bundle, images: &Path, options: &CheckpointOptions) -> CheckpointTaskRequest {
    let options = protobuf::well_known_types::any::Any {
        type_url: "containerd.runc.v1.CheckpointOptions".into(),
        value: options.write_to_bytes().unwrap(),
        ..Default::default()
    };
    CheckpointTaskRequest {
        id: bundle.id.clone(),
        path: images.display().to_string(),
        options: MessageField::some(options),
        ..Default::default()
    }
}

/// The numbers in a log; the last line may be half written.
fn counted(log: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

/// Starts a counter that writes into the returned log.
async fn count(shim: &Shim, bundle: &Bundle) -> std::path::PathBuf {
    let log = bundle.path.join("counter.log");
    let stdout = format!("file://{}", log.display());
    let request = CreateTaskRequest { stdout, ..shim.create_request(bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(bundle, "").await.unwrap();
    until("it counts", || counted(&log).len() > 3).await;
    log
}

async fn goes_on(log: &Path) {
    let before = counted(log).len();
    until("it goes on", || counted(log).len() > before + 3).await;
}

#[tokio::test]
async fn a_counter_goes_on_after_checkpoint_and_restore() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("counter", COUNTER);
    let images = shim.dir.path().join("images");
    let log = count(&shim, &bundle).await;
    let stay = CheckpointOptions::default();
    let written = shim.task.checkpoint(context(), &checkpoint_request(&bundle, &images, &stay)).await;
    match criu_works() {
        false => says_why(&shim, &bundle, &log, refusal(written)).await,
        true => {
            written.unwrap();
            assert_eq!(shim.status(&bundle, "").await, Status::RUNNING);
            goes_on(&log).await;
            comes_back(&shim, &bundle, &log).await;
        }
    }
}

/// The container ends with its checkpoint, and another one goes on from there.
async fn comes_back(shim: &Shim, bundle: &Bundle, log: &Path) {
    let images = shim.dir.path().join("images-at-the-end");
    let leave = CheckpointOptions { exit: true, ..Default::default() };
    shim.task.checkpoint(context(), &checkpoint_request(bundle, &images, &leave)).await.unwrap();
    assert_eq!(shim.wait(bundle, "").await.unwrap(), 137);
    shim.delete(bundle, "").await.unwrap();
    let events = shim.events_until(&format!("delete {}", bundle.id)).await;
    assert_eq!(events.iter().filter(|event| **event == format!("checkpointed {}", bundle.id)).count(), 2);
    let last = *counted(log).last().unwrap();
    assert!(!bundle.path.join("criu-dump.log").exists());

    let restored = shim.bundle("restored", COUNTER);
    let new_log = restored.path.join("counter.log");
    let request = CreateTaskRequest {
        checkpoint: images.display().to_string(),
        stdout: format!("file://{}", new_log.display()),
        ..shim.create_request(&restored)
    };
    assert_eq!(shim.task.create(context(), &request).await.unwrap().pid, 0, "there is no process yet");
    assert_eq!(shim.status(&restored, "").await, Status::CREATED);
    let pid = shim.start_task(&restored, "").await.unwrap().pid;
    assert_eq!(shim.status(&restored, "").await, Status::RUNNING);
    assert!(std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("echo $i"));
    until("it counts again", || counted(&new_log).len() > 3).await;
    assert_eq!(counted(&new_log)[0], last + 1, "from where it was");
    shim.exec(&restored, "e", "exit 4").await.unwrap();
    shim.start_task(&restored, "e").await.unwrap();
    assert_eq!(shim.wait(&restored, "e").await.unwrap(), 4);
    shim.delete(&restored, "e").await.unwrap();
    shim.end(&restored).await;
}

/// criu's own reason, and a container that has not noticed.
async fn says_why(shim: &Shim, bundle: &Bundle, log: &Path, (code, message): Failure) {
    let kept = bundle.path.join("criu-dump.log");
    let reason = std::fs::read_to_string(&kept).unwrap();
    let reason = reason.lines().find_map(|line| line.find("Error (").map(|at| &line[at..])).unwrap();
    let why = format!(
        "OCI runtime checkpoint failed: criu failed: type DUMP errno 0: {reason} (log file: {})",
        kept.display()
    );
    assert_eq!((code, message), (Code::INTERNAL, why));
    assert!(!bundle.path.join("criu-work").exists());
    assert_eq!(shim.status(bundle, "").await, Status::RUNNING);
    goes_on(log).await;
    shim.end(bundle).await;
    let events = shim.events_until(&format!("delete {}", bundle.id)).await;
    assert!(!events.contains(&format!("checkpointed {}", bundle.id)), "{events:?}");
}

#[tokio::test]
async fn a_restoration_that_fails_says_why_and_leaves_nothing() {
    let shim = Shim::new().await;
    let before = shim.holdings();
    let bundle = shim.bundle("torn", COUNTER);
    // What runc reads of the images itself; criu finds no more.
    let images = shim.dir.path().join("torn-images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("descriptors.json"), r#"["/dev/null","/dev/null","/dev/null"]"#).unwrap();
    let checkpoint = images.display().to_string();
    let request = CreateTaskRequest { checkpoint, ..shim.create_request(&bundle) };
    assert_eq!(shim.task.create(context(), &request).await.unwrap().pid, 0);
    for _ in 0..2 {
        let (code, message) = refusal(shim.start_task(&bundle, "").await);
        let log = bundle.path.join("restore.log");
        let text = std::fs::read_to_string(&log).unwrap();
        let reason = text.lines().find_map(|line| line.find("Error (").map(|at| &line[at..])).unwrap();
        let why = format!(
            "OCI runtime restore failed: criu failed: type RESTORE errno 0: {reason} (log file: {})",
            log.display()
        );
        assert_eq!((code, message), (Code::INTERNAL, why));
        assert_eq!(shim.status(&bundle, "").await, Status::CREATED);
    }
    assert_eq!(refusal(shim.kill(&bundle, "", 9, false).await).0, Code::NOT_FOUND);
    assert_eq!(shim.delete(&bundle, "").await.unwrap().pid, 0);
    assert_eq!(refusal(shim.state(&bundle, "").await).0, Code::NOT_FOUND);
    shim.events_until(&format!("delete {}", bundle.id)).await;
    until("nothing is left", || {
        let after = shim.holdings();
        (after.0, after.1, after.2) == (before.0 + 1, before.1, before.2)
    })
    .await;
    assert_eq!(std::fs::read_dir(shim.dir.path().join("runtime/weft-test")).unwrap().count(), 0);
    let cgroups = Command::new("find").args(["/sys/fs/cgroup", "-name", &bundle.id]).output().unwrap();
    assert_eq!(String::from_utf8(cgroups.stdout).unwrap(), "");
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_is_refused() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("refused", "sleep 1000");
    let images = shim.dir.path().join("images");
    let request = checkpoint_request(&bundle, &images, &CheckpointOptions::default());
    assert_eq!(refusal(shim.task.checkpoint(context(), &request).await).0, Code::NOT_FOUND);
    shim.task.create(context(), &shim.create_request(&bundle)).await.unwrap();
    let early = refusal(shim.task.checkpoint(context(), &request).await);
    assert_eq!(early.0, Code::FAILED_PRECONDITION);
    assert_eq!(early.1, format!("checkpoint {:?}: the process is not started", bundle.id));
    shim.start_task(&bundle, "").await.unwrap();
    let nowhere = CheckpointTaskRequest { path: String::new(), ..request.clone() };
    assert_eq!(
        refusal(shim.task.checkpoint(context(), &nowhere).await),
        (Code::INVALID_ARGUMENT, "path: got \"\", want a folder for the images".into())
    );
    let mut other = request.clone();
    other.options.as_mut().unwrap().type_url = "some.Options".into();
    assert_eq!(refusal(shim.task.checkpoint(context(), &other).await).0, Code::INVALID_ARGUMENT);
    shim.end(&bundle).await;
    assert!(!images.exists());
}
