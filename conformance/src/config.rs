//! Who is tested, and the configuration files that follow from it.

use std::path::Path;

use serde_json::{Value, json};

/// Who runs the pods and their network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// containerd-shim-runc-v2 with a pause container; bridge, host-local and portmap.
    Reference,
    /// weft's shim as sandboxer, and weft's network.
    Weft,
}

impl Subject {
    /// The runtime handler of pods that name none. A node of weft's has `runc` too (weft's network under another runtime) and
    /// `weft-podsandbox` (weft's shim under containerd's own sandboxer, with a pause container).
    pub fn handler(self) -> &'static str {
        match self {
            Self::Reference => "runc",
            Self::Weft => "weft",
        }
    }

    /// Links of the node that stay when all pods are gone, by design.
    pub(crate) fn lasting_links(self) -> &'static [&'static str] {
        match self {
            Self::Reference => &["cni0"],
            Self::Weft => &[],
        }
    }
}

/// The reference network: a bridge with an address range per family, host ports by nftables.
pub fn reference_conflist(dir: &Path) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "reference",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": dir.join("ipam"),
                    "ranges": [[{ "subnet": "10.89.0.0/16" }], [{ "subnet": "fd00:89::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } },
        ],
    })
}

/// weft's network, with all it can do switched on.
pub fn weft_conflist() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "weft",
        "plugins": [{
            "type": "weft",
            "ranges": [{ "subnet": "10.88.0.0/16" }, { "subnet": "fd00:88::/64" }],
            "capabilities": { "portMappings": true, "bandwidth": true, "dns": true },
        }],
    })
}

/// containerd's configuration. Every path is below `dir`; what no test uses is switched off, which halves the time to start.
pub(crate) fn containerd(dir: &Path, subject: Subject, default: &str) -> String {
    let weft = match subject {
        Subject::Reference => "",
        Subject::Weft => WEFT_RUNTIMES,
    };
    CONTAINERD
        .replace("@DIR@", &dir.to_string_lossy())
        .replace("@PAUSE@", crate::image::PAUSE)
        .replace("@DEFAULT@", default)
        + weft
}

// The OOM score: not every machine that runs tests may lower it. AppArmor: a profile would be loaded into the machine's kernel.
// Bolt without sync: the node does not outlive the machine.
const CONTAINERD: &str = r"version = 4
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

[plugins.'io.containerd.server.v1.grpc']
  address = '@DIR@/containerd.sock'
[plugins.'io.containerd.server.v1.ttrpc']
  address = '@DIR@/containerd.sock.ttrpc'
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
  bin_dirs = ['@DIR@/cni/bin']
  conf_dir = '@DIR@/cni/net.d'
  use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = '@DEFAULT@'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  sandboxer = 'podsandbox'
";

// No `options` table: with one, every container in a user namespace fails (client/task.go of containerd 2.4).
const WEFT_RUNTIMES: &str = r"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.weft]
  runtime_type = 'io.containerd.weft.v1'
  sandboxer = 'shim'
  disable_pause_image_pull = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.weft-podsandbox]
  runtime_type = 'io.containerd.weft.v1'
  sandboxer = 'podsandbox'
";
