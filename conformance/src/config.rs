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
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
                "hairpinMode": true,
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

/// weft's network, as it is installed.
pub fn weft_conflist() -> Value {
    let shipped = include_str!("../../packaging/cni/10-weft.conflist");
    serde_json::from_str(shipped).expect("the configuration that is installed is JSON")
}
