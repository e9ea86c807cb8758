//! The command lines and configuration files of Kubernetes' programs.
//!
//! The node has a network of its own, so every program has its usual port. Nothing is secret and nothing lasts: one token is the
//! administrator's, and it is what the programs use among themselves.

use std::path::Path;

use serde_json::{Value, json};

/// The name of the only node.
pub(super) const NODE: &str = "n1";
const API: &str = "https://127.0.0.1:6443";
const TOKEN: &str = "token";

/// etcd, without sync: the cluster does not outlive the machine.
pub(super) fn etcd(dir: &Path) -> Vec<String> {
    let data = dir.join("etcd").display().to_string();
    words(&["--unsafe-no-fsync", "--log-level", "warn", "--data-dir", &data])
}

/// The API server makes its certificate in `dir`; its key signs the tokens of service accounts too, which saves a tool that makes keys.
pub(super) fn api_server(dir: &Path) -> Vec<String> {
    let key = certificate(dir, "key");
    words(&[
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=127.0.0.1",
        "--secure-port=6443",
        &format!("--cert-dir={}", dir.display()),
        &format!("--service-account-key-file={key}"),
        &format!("--service-account-signing-key-file={key}"),
        "--service-account-issuer=https://kubernetes.default.svc",
        &format!("--token-auth-file={}", dir.join("tokens.csv").display()),
        "--authorization-mode=Node,RBAC",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--allow-privileged",
    ])
}

/// The controllers; with no other, there is no leader to elect.
pub(super) fn controller_manager(dir: &Path) -> Vec<String> {
    words(&[
        &format!("--kubeconfig={}", kubeconfig(dir)),
        "--leader-elect=false",
        &format!("--service-account-private-key-file={}", certificate(dir, "key")),
        &format!("--root-ca-file={}", certificate(dir, "crt")),
    ])
}

/// The scheduler.
pub(super) fn scheduler(dir: &Path) -> Vec<String> {
    words(&[&format!("--kubeconfig={}", kubeconfig(dir)), "--leader-elect=false"])
}

/// The kubelet.
pub(super) fn kubelet(dir: &Path) -> Vec<String> {
    words(&[
        &format!("--kubeconfig={}", kubeconfig(dir)),
        &format!("--config={}", dir.join("kubelet.json").display()),
        &format!("--hostname-override={NODE}"),
        "--node-ip=192.0.2.10",
    ])
}

/// The file that says where the API server is and who asks.
pub(super) fn kubeconfig(dir: &Path) -> String {
    dir.join("kubeconfig").display().to_string()
}

/// What the programs read before they start, by name.
pub(super) fn files(
    dir: &Path,
    socket: &Path,
    cgroup: &str,
    features: &Value,
) -> Vec<(&'static str, String)> {
    vec![
        ("tokens.csv", format!("{TOKEN},admin,admin,system:masters\n")),
        ("kubeconfig", access().to_string()),
        ("kubelet.json", kubelet_config(dir, socket, cgroup, features).to_string()),
    ]
}

fn access() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
        "clusters": [{ "name": "test", "cluster": { "server": API, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "admin", "user": { "token": TOKEN } }],
    })
}

/// Evicts nobody and collects no image: how full the machine's disk is is not the test's business.
fn kubelet_config(dir: &Path, socket: &Path, cgroup: &str, features: &Value) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "enforceNodeAllocatable": [],
        "evictionHard": {
            "imagefs.available": "0%", "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
        },
        "failCgroupV1": false,
        "failSwapOn": false,
        "featureGates": features,
        "imageGCHighThresholdPercent": 100,
        "oomScoreAdj": 0,
        "podLogsDir": dir.join("logs"),
        "volumePluginDir": dir.join("volume-plugins"),
    })
}

fn certificate(dir: &Path, end: &str) -> String {
    dir.join(format!("apiserver.{end}")).display().to_string()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
