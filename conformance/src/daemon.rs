//! The versions of containerd that weft is tried under, and what each wants of a configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::Subject;

/// A minor version of containerd; `conformance/tools/containerd/<minor>` pins the patch, and `conformance/tools` that of the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// 1.7: CRI is one plugin, which makes every sandbox itself.
    V1_7,
    /// 2.0: the first with sandboxes made by shims.
    V2_0,
    /// 2.1.
    V2_1,
    /// 2.2.
    V2_2,
    /// 2.3: `start` is asked by a message.
    V2_3,
    /// 2.4: a shim's sandbox needs no pause image.
    V2_4,
}

impl Daemon {
    /// What all other tests use.
    pub const NEWEST: Self = Self::V2_4;

    fn minor(self) -> &'static str {
        match self {
            Self::V1_7 => "1.7",
            Self::V2_0 => "2.0",
            Self::V2_1 => "2.1",
            Self::V2_2 => "2.2",
            Self::V2_3 => "2.3",
            Self::V2_4 => "2.4",
        }
    }

    /// The program, built if it has not been; `None` for the newest, which is among the tools.
    #[track_caller]
    pub(crate) fn program(self) -> Option<PathBuf> {
        if self == Self::NEWEST {
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/containerd/build.sh");
        let built = crate::run(Command::new(script).arg(self.minor()));
        Some(built.lines().last().expect("build.sh prints the program").into())
    }

    /// Every path is below `dir`; what no test uses is switched off, which halves the time to start.
    pub(crate) fn configuration(self, dir: &Path, subject: Subject, default: &str) -> String {
        let (base, runtimes) = if self == Self::V1_7 { (V1, WEFT_OF_V1) } else { (V2, WEFT_OF_V2) };
        let weft = match subject {
            Subject::Reference => "",
            Subject::Weft => runtimes,
        };
        // Version 4 of the format came with 2.3, and a list of folders for plugins with 2.1.
        let (format, sockets) = if self < Self::V2_3 { ("3", OLD_SOCKETS) } else { ("4", SOCKETS) };
        let plugins =
            if self < Self::V2_1 { "bin_dir = '@DIR@/cni/bin'" } else { "bin_dirs = ['@DIR@/cni/bin']" };
        (base.to_owned() + weft)
            // Before 2.3, CRI did not start without it.
            .replace(VERIFIER, if self < Self::V2_3 { "" } else { VERIFIER })
            .replace("@FORMAT@", format)
            .replace("@SOCKETS@", sockets)
            .replace("@PLUGINS@", plugins)
            .replace("@DIR@", &dir.to_string_lossy())
            .replace("@PAUSE@", crate::image::PAUSE)
            .replace("@DEFAULT@", default)
    }
}

const VERIFIER: &str = "  'io.containerd.image-verifier.v1.bindir',\n";

const SOCKETS: &str = r"[plugins.'io.containerd.server.v1.grpc']
  address = '@DIR@/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '@DIR@/containerd.sock.ttrpc'";

const OLD_SOCKETS: &str = r"[grpc]
  address = '@DIR@/containerd.sock'
[ttrpc]
  address = '@DIR@/containerd.sock.ttrpc'";

// The OOM score: not every machine that runs tests may lower it. AppArmor: a profile would be loaded into the machine's kernel.
// Bolt without sync: the node does not outlive the machine. A key that a version does not know is left out by it, with a warning.
const V2: &str = r"version = @FORMAT@
root = '@DIR@/root'
state = '@DIR@/state'
imports = []
disabled_plugins = [
  'io.containerd.differ.v1.erofs',
  'io.containerd.image-verifier.v1.bindir',
  'io.containerd.internal.v1.tracing',
  'io.containerd.metrics.v1.grpc-prometheus',
  'io.containerd.monitor.container.v1.restart',
  'io.containerd.mount-handler.v1.erofs',
  'io.containerd.snapshotter.v1.blockfile',
  'io.containerd.snapshotter.v1.btrfs',
  'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.erofs',
  'io.containerd.snapshotter.v1.zfs',
  'io.containerd.tracing.processor.v1.otlp',
]

@SOCKETS@
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '@DIR@/s'
[plugins.'io.containerd.internal.v1.opt']
  path = '@DIR@/opt'
[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '@PAUSE@'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  @PLUGINS@
  conf_dir = '@DIR@/cni/net.d'
  use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = '@DEFAULT@'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  sandboxer = 'podsandbox'
";

// No `options` table: with one, every container in a user namespace fails (client/task.go of containerd 2.4).
const WEFT_OF_V2: &str = r"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.weft]
  runtime_type = 'io.containerd.weft.v1'
  sandboxer = 'shim'
  disable_pause_image_pull = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.weft-podsandbox]
  runtime_type = 'io.containerd.weft.v1'
  sandboxer = 'podsandbox'
";

const V1: &str = r"version = 2
root = '@DIR@/root'
state = '@DIR@/state'
imports = []
disabled_plugins = [
  'io.containerd.internal.v1.tracing',
  'io.containerd.monitor.v1.restart',
  'io.containerd.snapshotter.v1.blockfile',
  'io.containerd.snapshotter.v1.btrfs',
  'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.zfs',
  'io.containerd.tracing.processor.v1.otlp',
]

@SOCKETS@
[plugins.'io.containerd.internal.v1.opt']
  path = '@DIR@/opt'
[plugins.'io.containerd.grpc.v1.cri']
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  sandbox_image = '@PAUSE@'
[plugins.'io.containerd.grpc.v1.cri'.cni]
  @PLUGINS@
  conf_dir = '@DIR@/cni/net.d'
[plugins.'io.containerd.grpc.v1.cri'.containerd]
  default_runtime_name = '@DEFAULT@'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
";

const WEFT_OF_V1: &str = r"
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.weft-podsandbox]
  runtime_type = 'io.containerd.weft.v1'
  sandbox_mode = 'podsandbox'
";
