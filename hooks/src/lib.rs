//! The eBPF programs of the pod data path: loading, pinning, attaching, upgrading.
