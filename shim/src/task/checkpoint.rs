//! Checkpoints: criu, which the OCI runtime runs, writes the state of all processes into a folder of images, and makes
//! them anew from there. A restored container is created without a process; its start restores it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use containerd_shim_protos::{events::task as event, topics};
use protobuf::{Message, UnknownValueRef};

use super::container::Container;
use super::error::Error;
use super::process::Phase;
use crate::oci;

/// The one type of options that is understood.
const OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// What a container is restored from.
#[derive(Debug)]
pub(super) struct Images {
    /// criu's images.
    pub(super) folder: PathBuf,
    /// Those of an earlier checkpoint that these build on, relative to `folder`; empty if they are complete.
    pub(super) parent: String,
    /// Where criu writes its log.
    pub(super) work: PathBuf,
}

impl Container {
    /// Writes a checkpoint; the container goes on unless the request wants it to end.
    pub(super) async fn checkpoint(&self, request: &CheckpointTaskRequest) -> Result<(), Error> {
        let options = options(request)?;
        let folder = if request.path.is_empty() { &options.image_path } else { &request.path };
        if folder.is_empty() {
            return Err(Error::Invalid {
                field: "path",
                got: String::new(),
                want: "a folder for the images",
            });
        }
        let _changing = self.life.changing.lock().await;
        match self.init.phase() {
            Phase::Running => {}
            phase => return Err(self.init.refuse("checkpoint", phase)),
        }
        let work = Work::of(&options, &self.bundle);
        let args = arguments(folder, &work.folder, &options);
        let written = self.runtime.checkpoint(&self.context.reaper, &self.id, args).await;
        let written = written.map_err(|err| work.explain(err, &self.bundle));
        work.remove();
        written?;
        let (container_id, checkpoint) = (self.id.clone(), folder.clone());
        let event = event::TaskCheckpointed { container_id, checkpoint, ..Default::default() };
        self.context.events.publish(topics::TASK_CHECKPOINTED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Makes the processes of a container that has none yet. After an error it still has none.
    pub(super) async fn restore(self: &Arc<Self>, images: &Images) -> Result<(), Error> {
        match self.launch().await {
            Ok(child) => {
                self.follow(child);
                Ok(())
            }
            Err(err) => {
                if let Err(left) = self.runtime.delete(&self.context.reaper, &self.id).await {
                    log::warn!("undo the restoration of {:?}: {}", self.id, crate::error::chain(&left));
                }
                Err(match err {
                    Error::Oci(err) => with_reason(err, &images.work.join("restore.log")).into(),
                    other => other,
                })
            }
        }
    }
}

/// criu's folder for its log.
struct Work {
    folder: PathBuf,
    /// It is not the client's.
    is_ours: bool,
}

impl Work {
    fn of(options: &CheckpointOptions, bundle: &Path) -> Work {
        match options.work_path.as_str() {
            "" => Work { folder: default_work(bundle).join("criu-work"), is_ours: true },
            path => Work { folder: path.into(), is_ours: false },
        }
    }

    /// Adds what criu has to say. A log of ours is kept in the bundle, where containerd's own shim keeps it.
    fn explain(&self, err: oci::Error, bundle: &Path) -> Error {
        let log = self.folder.join("dump.log");
        let kept = bundle.join("criu-dump.log");
        let is_kept = self.is_ours && std::fs::copy(&log, &kept).is_ok();
        with_reason(err, if is_kept { &kept } else { &log }).into()
    }

    fn remove(self) {
        if self.is_ours
            && let Err(err) = std::fs::remove_dir_all(&self.folder)
        {
            log::debug!("remove {}: {err}", self.folder.display());
        }
    }
}

/// containerd links a task's persistent folder into its bundle.
pub(super) fn default_work(bundle: &Path) -> PathBuf {
    let work = bundle.join("work");
    if work.is_dir() { work } else { bundle.to_owned() }
}

pub(super) fn options(request: &CheckpointTaskRequest) -> Result<CheckpointOptions, Error> {
    let Some(any) = request.options.as_ref() else { return Ok(CheckpointOptions::default()) };
    match any.type_url.trim_start_matches('/') {
        OPTIONS => CheckpointOptions::parse_from_bytes(&any.value)
            .map_err(|err| Error::Decode { field: "options", source: err.into() }),
        other => Err(Error::Invalid { field: "options", got: other.to_owned(), want: OPTIONS }),
    }
}

pub(super) fn arguments(images: &str, work: &Path, options: &CheckpointOptions) -> Vec<OsString> {
    let mut args: Vec<OsString> =
        vec!["--image-path".into(), images.into(), "--work-path".into(), work.into()];
    let named =
        [("--parent-path", parent(options)), ("--manage-cgroups-mode", options.cgroups_mode.as_str())];
    let namespaces = options.empty_namespaces.iter().map(|name| ("--empty-ns", name.as_str()));
    for (name, value) in named.into_iter().chain(namespaces).filter(|(_, value)| !value.is_empty()) {
        args.extend([name.into(), value.into()]);
    }
    let switches = [
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
        (!options.exit, "--leave-running"),
    ];
    args.extend(switches.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name.into()));
    args
}

/// `parent_path`, which containerd's API has since 1.12 and containerd-shim-protos 0.12 does not.
fn parent(options: &CheckpointOptions) -> &str {
    match options.special_fields.unknown_fields().get(10) {
        Some(UnknownValueRef::LengthDelimited(path)) => std::str::from_utf8(path).unwrap_or_default(),
        _ => "",
    }
}

/// The runtime says only that criu has failed, and old ones where its log was; the first error in there is why.
fn with_reason(err: oci::Error, log: &Path) -> oci::Error {
    let (oci::Error::Refused { verb, message }, Ok(text)) = (&err, std::fs::read_to_string(log)) else {
        return err;
    };
    let reason = text.lines().find_map(|line| line.find("Error (").and_then(|at| line.get(at..)));
    let message = message.split(": log file: ").next().unwrap_or_default();
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    oci::Error::Refused { verb, message: format!("{message}{reason} (log file: {})", log.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_its_switch() {
        let words = |options: &CheckpointOptions| {
            let args = arguments("/images", Path::new("/work"), options);
            args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        let always = "--image-path /images --work-path /work";
        assert_eq!(words(&CheckpointOptions::default()), format!("{always} --leave-running"));
        let mut all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into(), "uts".into()],
            cgroups_mode: "full".into(),
            ..Default::default()
        };
        all.special_fields.mut_unknown_fields().add_length_delimited(10, b"../first".to_vec());
        let want = "--parent-path ../first --manage-cgroups-mode full --empty-ns network --empty-ns uts \
                    --tcp-established --ext-unix-sk --shell-job --file-locks";
        assert_eq!(words(&all), format!("{always} {want}"));
    }

    #[test]
    fn a_failure_tells_crius_first_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        std::fs::write(&log, "(0.1) Version: 3\n(0.2) Error (a.c:1): first\n(0.3) Error (b.c:2): second\n")
            .unwrap();
        let refused = || oci::Error::Refused {
            verb: "checkpoint",
            message: "criu failed: log file: /w/dump.log".into(),
        };
        let want = format!(
            "OCI runtime checkpoint failed: criu failed: Error (a.c:1): first (log file: {})",
            log.display()
        );
        assert_eq!(with_reason(refused(), &log).to_string(), want);
        let nowhere = dir.path().join("nowhere");
        let as_it_is = "OCI runtime checkpoint failed: criu failed: log file: /w/dump.log";
        assert_eq!(with_reason(refused(), &nowhere).to_string(), as_it_is);
    }
}
