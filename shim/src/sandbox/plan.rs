//! What kind of sandbox a pod wants: CRI's pod configuration, parsed once into checked values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use protobuf::well_known_types::any::Any;
use protobuf::{Enum, Message};

use super::Error;
use super::user::User;
use crate::proto::cri::{DNSConfig, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig};

/// The type of the options that CRI sends.
const CONFIG: &str = "runtime.v1.PodSandboxConfig";

/// Sysctls of the pod's network that containerd sets too, unless the pod says otherwise: any process may bind low
/// ports and send pings, as no port or packet can leave the pod's own network.
const DEFAULTS: [(&str, &str); 2] = [("net.ipv4.ip_unprivileged_port_start", "0"), (PINGS, "0 2147483647")];

/// Not set in a user namespace, to which not all of the groups are mapped.
const PINGS: &str = "net.ipv4.ping_group_range";

/// `kernel.*` of an IPC namespace (ipc_namespaces(7)).
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

/// A checked configuration.
#[derive(Debug)]
pub(super) struct Plan {
    /// As CRI sent it; empty if nothing was sent.
    pub(super) config: PodSandboxConfig,
    /// Where containerd keeps what it knows of the pod.
    pub(super) bundle: Option<PathBuf>,
    /// The pod's network namespace; `None` with the node's network, and then the node's UTS namespace too.
    pub(super) netns: Option<PathBuf>,
    /// Whether the pod has an IPC namespace, and with it shared memory, of its own.
    pub(super) own_ipc: bool,
    /// Whether the pod's containers share a PID namespace, which needs a process 1.
    pub(super) shared_pid: bool,
    /// The pod's user namespace; `None` in the node's.
    pub(super) user: Option<User>,
    /// Only such as belong to a namespace of the pod's own.
    pub(super) sysctls: BTreeMap<String, String>,
}

impl Plan {
    /// Reads the request. Without options the answer is a pod with defaults.
    ///
    /// # Errors
    /// What cannot be decoded, what is not supported, and what would change the node.
    pub(super) fn of(request: CreateSandboxRequest) -> Result<Plan, Error> {
        let config = request.options.into_option().map_or(Ok(PodSandboxConfig::new()), |any| decode(&any))?;
        let namespaces = namespaces(&config);
        let user = namespaces.userns_options.as_ref().map_or(Ok(None), User::of)?;
        let node = |mode: protobuf::EnumOrUnknown<NamespaceMode>| mode.value() == NamespaceMode::NODE.value();
        let netns = Some(PathBuf::from(request.netns_path));
        let bundle = Some(PathBuf::from(request.bundle_path)).filter(|path| path.is_absolute());
        let mut plan = Plan {
            bundle,
            netns: netns.filter(|path| !path.as_os_str().is_empty() && !node(namespaces.network)),
            own_ipc: !node(namespaces.ipc),
            shared_pid: namespaces.pid.value() == NamespaceMode::POD.value(),
            user,
            sysctls: linux(&config).sysctls.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            config,
        };
        plan.check_sysctls()?;
        if plan.netns.is_some() {
            let user = plan.user;
            for (key, value) in DEFAULTS.into_iter().filter(|(key, _)| user.is_none() || *key != PINGS) {
                plan.sysctls.entry(key.into()).or_insert_with(|| value.into());
            }
        }
        Ok(plan)
    }

    pub(super) fn dns(&self) -> Option<&DNSConfig> {
        self.config.dns_config.as_ref()
    }

    /// Empty where the pod has no cgroup.
    pub(super) fn cgroup_parent(&self) -> &str {
        &linux(&self.config).cgroup_parent
    }

    /// The same rule as in OCI runtimes: what does not belong to a namespace of the pod would be the node's.
    fn check_sysctls(&self) -> Result<(), Error> {
        let own = |key: &str| {
            let net = key.starts_with("net.") && self.netns.is_some();
            let ipc = key.starts_with("fs.mqueue.")
                || key.strip_prefix("kernel.").is_some_and(|name| IPC.contains(&name));
            (net || ipc && self.own_ipc) && !key.contains('/') && !key.contains("..")
        };
        match self.sysctls.keys().find(|key| !own(key)) {
            Some(key) => Err(Error::NodeSysctl(key.clone())),
            None => Ok(()),
        }
    }
}

/// The pod's Linux part, which may be absent.
pub(super) fn linux(config: &PodSandboxConfig) -> &LinuxPodSandboxConfig {
    config.linux.as_ref().unwrap_or_else(|| LinuxPodSandboxConfig::default_instance())
}

/// The pod's namespace modes; the defaults are `POD`.
pub(super) fn namespaces(config: &PodSandboxConfig) -> &NamespaceOption {
    let security = linux(config).security_context.as_ref();
    let options = security.and_then(|context| context.namespace_options.as_ref());
    options.unwrap_or_else(|| NamespaceOption::default_instance())
}

fn decode(any: &Any) -> Result<PodSandboxConfig, Error> {
    // A prefix up to the last slash is allowed (google/protobuf/any.proto).
    if any.type_url.rsplit('/').next() != Some(CONFIG) {
        return Err(Error::Options(any.type_url.clone()));
    }
    PodSandboxConfig::parse_from_bytes(&any.value).map_err(Error::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::{IDMapping, LinuxSandboxSecurityContext, UserNamespace};

    fn request(netns: &str, namespaces: NamespaceOption, sysctls: &[(&str, &str)]) -> CreateSandboxRequest {
        let security =
            LinuxSandboxSecurityContext { namespace_options: Some(namespaces).into(), ..Default::default() };
        let linux = LinuxPodSandboxConfig {
            security_context: Some(security).into(),
            sysctls: sysctls.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..Default::default()
        };
        let config = PodSandboxConfig { linux: Some(linux).into(), ..Default::default() };
        let value = config.write_to_bytes().unwrap();
        let options = Any { type_url: CONFIG.into(), value, ..Default::default() };
        CreateSandboxRequest { options: Some(options).into(), netns_path: netns.into(), ..Default::default() }
    }

    #[test]
    fn a_sysctl_of_the_node_is_refused() {
        let plan = |sysctls: &[_]| Plan::of(request("/run/netns/a", NamespaceOption::new(), sysctls));
        let mine = plan(&[("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shmmax", "1")]).unwrap();
        assert_eq!(mine.sysctls["net.ipv4.ip_unprivileged_port_start"], "80");
        assert_eq!(mine.sysctls["net.ipv4.ping_group_range"], "0 2147483647");
        for key in ["kernel.panic", "vm.swappiness", "net.ipv4/../../kernel/panic", "net...kernel.panic"] {
            assert!(matches!(plan(&[(key, "1")]), Err(Error::NodeSysctl(got)) if got == key), "{key}");
        }
        let host = request("", NamespaceOption::new(), &[("net.ipv4.ip_forward", "1")]);
        assert!(matches!(Plan::of(host), Err(Error::NodeSysctl(_))));
    }

    #[test]
    fn the_nodes_network_has_no_defaults() {
        let network = NamespaceOption { network: NamespaceMode::NODE.into(), ..Default::default() };
        let plan = Plan::of(request("", network, &[])).unwrap();
        assert!(plan.netns.is_none() && plan.sysctls.is_empty() && plan.own_ipc && plan.shared_pid);
    }

    #[test]
    fn a_pod_with_a_user_namespace_maps_not_all_groups_that_ping() {
        let map = IDMapping { host_id: 1000, length: 65536, ..Default::default() };
        let user = UserNamespace { uids: vec![map.clone()], gids: vec![map], ..Default::default() };
        let namespaces = NamespaceOption { userns_options: Some(user).into(), ..Default::default() };
        let plan = Plan::of(request("/run/netns/a", namespaces, &[])).unwrap();
        assert_eq!(plan.user.unwrap().uids.host, 1000);
        assert_eq!(Vec::from_iter(plan.sysctls.keys()), ["net.ipv4.ip_unprivileged_port_start"]);
    }

    #[test]
    fn options_of_another_kind_are_named() {
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), ..Default::default() };
        let request = CreateSandboxRequest { options: Some(options).into(), ..Default::default() };
        assert!(matches!(Plan::of(request), Err(Error::Options(url)) if url == "runtimeoptions.v1.Options"));
        assert!(Plan::of(CreateSandboxRequest::new()).is_ok());
    }
}
