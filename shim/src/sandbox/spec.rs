//! The OCI configurations around a sandbox: that of the sandbox itself, which containerd shows to its plugins, and
//! those of member containers, which are completed with what the pod has and containerd leaves out.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::files::Dir;
use super::plan::{self, Plan};
use super::user::Range;

/// What containers of a pod may need to know of it.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) dir: &'a Dir,
    pub(super) hostname: &'a str,
    pub(super) cgroups_path: Option<&'a str>,
    /// The process with the pod's network, IPC and UTS namespaces.
    pub(super) own: u32,
    /// The process that containerd is told; it has the pod's PID and user namespaces too.
    pub(super) reported: u32,
}

impl Facts<'_> {
    /// The sandbox's own configuration: its namespaces are those that the pod has to itself.
    pub(super) fn sandbox(&self) -> Value {
        let of = |name: &str| format!("/proc/{}/ns/{name}", self.reported);
        let mut namespaces = vec![json!({ "type": "mount" })];
        if let Some(netns) = &self.plan.netns {
            namespaces.push(json!({ "type": "network", "path": netns }));
            namespaces.push(json!({ "type": "uts", "path": of("uts") }));
        }
        if self.plan.own_ipc {
            namespaces.push(json!({ "type": "ipc", "path": of("ipc") }));
        }
        if self.plan.shared_pid {
            namespaces.push(json!({ "type": "pid", "path": of("pid") }));
        }
        if self.plan.user.is_some() {
            namespaces.push(json!({ "type": "user", "path": of("user") }));
        }
        let mut linux = json!({ "namespaces": namespaces, "sysctl": self.plan.sysctls });
        if let Some(user) = self.plan.user {
            let map = |ids: Range| json!([{ "containerID": 0, "hostID": ids.host, "size": ids.length }]);
            (linux["uidMappings"], linux["gidMappings"]) = (map(user.uids), map(user.gids));
        }
        if let Some(path) = self.cgroups_path {
            linux["cgroupsPath"] = path.into();
        }
        json!({
            "ociVersion": "1.1.0",
            "hostname": self.hostname,
            "annotations": self.plan.config.annotations,
            "linux": linux,
        })
    }

    /// The JSON that containerd's `podsandbox` puts under `info` of a verbose status; parts that only a pause
    /// container has are left out.
    pub(super) fn info(&self, state: &str) -> Value {
        json!({
            "pid": self.reported,
            "processStatus": state,
            "runtimeType": "io.containerd.weft.v1",
            "config": config(self.plan),
            "runtimeSpec": self.sandbox(),
        })
    }

    /// Completes the configuration of a member container.
    pub(super) fn adapt(&self, spec: &mut Value) {
        let access = match spec.pointer("/root/readonly") {
            Some(Value::Bool(true)) => "ro",
            _ => "rw",
        };
        if let Some(spec) = spec.as_object_mut()
            && spec.get("mounts").is_none_or(Value::is_null)
        {
            spec.insert("mounts".into(), json!([]));
        }
        if let Some(mounts) = spec.get_mut("mounts").and_then(Value::as_array_mut) {
            for name in ["hostname", "hosts", "resolv.conf"] {
                let destination = format!("/etc/{name}");
                if find(mounts, &destination).is_none() {
                    mounts.push(bind(self.dir.path(name), &destination, access));
                }
            }
            self.adapt_shm(mounts);
        }
        if let Some(namespaces) = spec.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
            if self.plan.user.is_some() {
                namespaces
                    .retain(|namespace| !self.own_name(namespace).is_some_and(|name| self.is_nodes(name)));
            }
            namespaces.iter_mut().for_each(|namespace| self.adapt_namespace(namespace));
        }
    }

    /// Puts the pod's shared memory where containerd has put its default, a tmpfs named `shm` of the container's own
    /// (`pkg/oci/mounts.go`). Whatever else is there was asked for by the user.
    fn adapt_shm(&self, mounts: &mut Vec<Value>) {
        let source = if self.plan.own_ipc { self.dir.path("shm") } else { "/dev/shm".into() };
        let shm = bind(source, "/dev/shm", "rw");
        match find(mounts, "/dev/shm") {
            None => mounts.push(shm),
            Some(index) if mounts[index]["type"] == "tmpfs" && mounts[index]["source"] == "shm" => {
                mounts[index] = shm
            }
            Some(_) => {}
        }
    }

    /// A path to a namespace of the reported process, or of process 1, which is a client's word for the sandbox, gets
    /// the process that surely has it. All other paths are meant as they are.
    fn adapt_namespace(&self, namespace: &mut Value) {
        if let Some(name) = self.own_name(namespace) {
            let pid = if matches!(name, "pid" | "user") { self.reported } else { self.own };
            namespace["path"] = format!("/proc/{pid}/ns/{name}").into();
        }
    }

    /// The kernel's name of a namespace of the sandbox.
    fn own_name<'a>(&self, namespace: &'a Value) -> Option<&'a str> {
        let own = [format!("/proc/{}/ns/", self.reported), "/proc/1/ns/".to_owned()];
        let path = namespace["path"].as_str().unwrap_or_default();
        own.iter().find_map(|prefix| path.strip_prefix(prefix.as_str()))
    }

    /// Whether the sandbox has the node's. The OCI runtime has it then too, and hands it on if the configuration does not
    /// name it; to join it from within a user namespace nobody has the right, and runc before 1.2 tries that.
    fn is_nodes(&self, name: &str) -> bool {
        match name {
            "net" | "uts" => self.plan.netns.is_none(),
            "ipc" => !self.plan.own_ipc,
            "pid" => !self.plan.shared_pid,
            _ => false,
        }
    }
}

fn find(mounts: &[Value], destination: &str) -> Option<usize> {
    mounts.iter().position(|mount| {
        mount["destination"].as_str().is_some_and(|path| path.trim_end_matches('/') == destination)
    })
}

fn bind(source: PathBuf, destination: &str, access: &str) -> Value {
    let options = ["rbind", "rprivate", access];
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

/// The configuration in the JSON of CRI's Go types, which leave out what is empty.
fn config(plan: &Plan) -> Value {
    let config = &plan.config;
    let mut json = Map::new();
    if let Some(data) = config.metadata.as_ref() {
        let data = json!({ "name": data.name, "uid": data.uid, "namespace": data.namespace, "attempt": data.attempt });
        json.insert("metadata".into(), data);
    }
    if let Some(dns) = config.dns_config.as_ref() {
        let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        json.insert("dns_config".into(), dns);
    }
    let modes = plan::namespaces(config);
    let modes =
        json!({ "network": modes.network.value(), "pid": modes.pid.value(), "ipc": modes.ipc.value() });
    let linux = plan::linux(config);
    json.insert("hostname".into(), config.hostname.clone().into());
    json.insert("log_directory".into(), config.log_directory.clone().into());
    json.insert("labels".into(), json!(config.labels));
    json.insert("annotations".into(), json!(config.annotations));
    let linux = json!({
        "cgroup_parent": linux.cgroup_parent,
        "sysctls": linux.sysctls,
        "security_context": { "namespace_options": modes },
    });
    json.insert("linux".into(), linux);
    Value::Object(json)
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::sandbox_api::CreateSandboxRequest;

    use super::*;
    use crate::config::Config;

    fn adapted(mut spec: Value) -> Value {
        let plan = Plan::of(CreateSandboxRequest { netns_path: "/n".into(), ..Default::default() }).unwrap();
        let dir = Dir::of(&Config::default(), "k8s.io", "p");
        let facts =
            Facts { plan: &plan, dir: &dir, hostname: "h", cgroups_path: None, own: 10, reported: 11 };
        facts.adapt(&mut spec);
        spec
    }

    #[test]
    fn what_containerd_leaves_out_is_added_and_what_the_user_wants_stays() {
        let spec = adapted(json!({
            "root": { "readonly": true },
            "mounts": [
                { "destination": "/etc/hosts/", "type": "bind", "source": "/mine" },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
            ],
        }));
        let dir = "/run/weft/pods/k8s.io/p";
        let bind = |name: &str, access: &str, to: &str| {
            json!({ "destination": to, "type": "bind", "source": format!("{dir}/{name}"),
                    "options": ["rbind", "rprivate", access] })
        };
        let want = json!([
            { "destination": "/etc/hosts/", "type": "bind", "source": "/mine" },
            bind("shm", "rw", "/dev/shm"),
            bind("hostname", "ro", "/etc/hostname"),
            bind("resolv.conf", "ro", "/etc/resolv.conf"),
        ]);
        assert_eq!(spec["mounts"], want);
    }

    #[test]
    fn a_users_shared_memory_is_not_replaced() {
        let mine = json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs" });
        let spec = adapted(json!({ "mounts": [mine] }));
        assert_eq!(spec["mounts"][0], mine);
        assert_eq!(adapted(json!({}))["mounts"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn only_paths_to_the_sandbox_are_rewritten() {
        let paths =
            ["/proc/11/ns/net", "/proc/1/ns/ipc", "/proc/11/ns/pid", "/proc/99/ns/pid", "/proc/10/ns/uts"];
        let namespaces: Vec<Value> = paths.iter().map(|path| json!({ "path": path })).collect();
        let spec = adapted(json!({ "linux": { "namespaces": namespaces } }));
        let got: Vec<&str> = spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|namespace| namespace["path"].as_str().unwrap())
            .collect();
        let want =
            ["/proc/10/ns/net", "/proc/10/ns/ipc", "/proc/11/ns/pid", "/proc/99/ns/pid", "/proc/10/ns/uts"];
        assert_eq!(got, want);
    }

    #[test]
    fn a_configuration_of_another_shape_is_left_to_the_oci_runtime() {
        for spec in [json!(9), json!([]), json!(null), json!("x")] {
            assert_eq!(adapted(spec.clone()), spec);
        }
        for odd in [json!({ "mounts": 5, "linux": 6 }), json!({ "mounts": {}, "linux": { "namespaces": 7 } })]
        {
            assert_eq!(adapted(odd.clone()), odd);
        }
        let mounts = adapted(json!({ "mounts": [5, []] }));
        assert_eq!(mounts["mounts"].as_array().unwrap().len(), 2 + 4);
        assert_eq!(adapted(json!({ "mounts": null }))["mounts"].as_array().unwrap().len(), 4);
    }
}
