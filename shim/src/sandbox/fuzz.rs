//! For the fuzz targets: what containerd says of a pod, and the configurations of its containers.

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

use super::cgroup::{Cgroup, Hierarchies};
use super::files::Dir;
use super::plan::Plan;
use super::spec::Facts;
use crate::config::Config;
use crate::fuzz::check_error;
use crate::proto::cri::{
    IDMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, UserNamespace,
};

/// CreateSandbox, up to the namespaces.
pub(crate) fn create(config: &Config, bytes: &[u8]) {
    let Ok(request) = CreateSandboxRequest::parse_from_bytes(bytes) else { return };
    let id = request.sandbox_id.clone();
    let plan = match Plan::of(request) {
        Ok(plan) => plan,
        Err(err) => return check_error(&err, bytes),
    };
    if let Ok(hierarchies) = Hierarchies::here()
        && let Err(err) = Cgroup::plan(&hierarchies, plan.cgroup_parent(), &id)
    {
        check_error(&err, bytes);
    }
    for key in plan.sysctls.keys() {
        assert!(!key.contains('/') && !key.contains(".."), "{key:?} leads out of /proc/sys");
    }
    let dir = Dir::of(config, "k8s.io", "p");
    let facts = facts(&plan, &dir);
    assert!(facts.sandbox().is_object() && facts.info("SANDBOX_READY").is_object());
}

/// A container's `config.json` in a pod.
pub(crate) fn spec(config: &Config, bytes: &[u8]) {
    let Ok(mut spec) = serde_json::from_slice::<Value>(bytes) else { return };
    let request = CreateSandboxRequest { netns_path: "/n".into(), ..Default::default() };
    let Ok(plan) = Plan::of(request) else { return };
    let dir = Dir::of(config, "k8s.io", "p");
    facts(&plan, &dir).adapt(&mut spec);
    let once = spec.clone();
    facts(&plan, &dir).adapt(&mut spec);
    assert_eq!(spec, once, "what is adapted stays as it is");
}

fn facts<'a>(plan: &'a Plan, dir: &'a Dir) -> Facts<'a> {
    Facts { plan, dir, hostname: "h", cgroups_path: None, own: 10, reported: 11 }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let map = |host_id| IDMapping { host_id, length: 65536, ..Default::default() };
    let user = UserNamespace {
        mode: NamespaceMode::POD.into(),
        uids: vec![map(65536)],
        gids: vec![map(65536)],
        ..Default::default()
    };
    let namespaces = NamespaceOption {
        pid: NamespaceMode::CONTAINER.into(),
        userns_options: Some(user).into(),
        ..Default::default()
    };
    let security =
        LinuxSandboxSecurityContext { namespace_options: Some(namespaces).into(), ..Default::default() };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/pod1".into(),
        security_context: Some(security).into(),
        sysctls: [("net.ipv4.tcp_syncookies".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let pod = PodSandboxConfig { hostname: "h".into(), linux: Some(linux).into(), ..Default::default() };
    let value = pod.write_to_bytes().unwrap_or_default();
    let options = Any { type_url: "runtime.v1.PodSandboxConfig".into(), value, ..Default::default() };
    let request = CreateSandboxRequest {
        sandbox_id: "p".into(),
        bundle_path: "/run/b".into(),
        netns_path: "/run/netns/a".into(),
        options: Some(options).into(),
        ..Default::default()
    };
    vec![[vec![b's'], request.write_to_bytes().unwrap_or_default()].concat()]
}
