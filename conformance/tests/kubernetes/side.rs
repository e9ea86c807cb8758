//! One side of a comparison: a namespace of the cluster and the runtime of its pods.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use weft_conformance::kubernetes::{Cluster, is_true};
use weft_conformance::wait_until;

/// How long a pod may take to get where it is going on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A namespace whose pods one runtime runs.
pub(crate) struct Side<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) namespace: &'static str,
    class: Option<&'static str>,
}

impl<'c> Side<'c> {
    /// Makes the namespace; without a class its pods get containerd's default runtime.
    pub(crate) fn new(cluster: &'c Cluster, namespace: &'static str, class: Option<&'static str>) -> Self {
        cluster.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        Self { cluster, namespace, class }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.cluster.kubectl_command(&[&["--namespace", self.namespace], args].concat())
    }

    #[track_caller]
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.kubectl(&[&["--namespace", self.namespace], args].concat())
    }

    /// `kubectl exec POD -- COMMAND`.
    #[track_caller]
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// Creates an object in the namespace; a pod, or the pods of a deployment, with this side's runtime.
    #[track_caller]
    pub(crate) fn run(&self, object: &Value) {
        let mut object = object.clone();
        object["metadata"]["namespace"] = json!(self.namespace);
        if let Some(class) = self.class {
            match object["kind"].as_str() {
                Some("Pod") => object["spec"]["runtimeClassName"] = json!(class),
                Some("Deployment") => object["spec"]["template"]["spec"]["runtimeClassName"] = json!(class),
                _ => {}
            }
        }
        self.cluster.apply(&object);
    }

    /// An object of the namespace's, or a list, as `kubectl get` shows it in JSON.
    #[track_caller]
    pub(crate) fn get(&self, what: &[&str]) -> Value {
        let shown = self.kubectl(&[&["get", "-o", "json"], what].concat());
        let object: Value = serde_json::from_str(&shown).expect("kubectl prints JSON");
        let all = object["items"].as_array().into_iter().flatten().chain([&object]);
        all.filter(|object| object["kind"] == "Pod").for_each(|pod| self.cluster.leaves_nothing_of(pod));
        object
    }

    /// Waits until the pod is as `is` wants it; what it was then.
    #[track_caller]
    pub(crate) fn wait_pod(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let start = std::time::Instant::now();
        loop {
            let pod = self.get(&["pod", name]);
            if is(&pod) {
                return pod;
            }
            let status = &pod["status"];
            assert!(start.elapsed() < LONG, "{}/{name}: waited in vain: {what}: {status:#}", self.namespace);
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }

    /// Watches the pod until its first container waits for `reason`; what it was then.
    #[track_caller]
    pub(crate) fn wait_waiting(&self, name: &str, reason: &str) -> Value {
        let reason = format!("--for=jsonpath={{.status.containerStatuses[0].state.waiting.reason}}={reason}");
        let shown = self.kubectl(&["wait", "pod", name, &reason, "--timeout=180s", "-o", "json"]);
        serde_json::from_str(&shown).expect("kubectl prints JSON")
    }

    #[track_caller]
    pub(crate) fn wait_ready(&self, name: &str) -> Value {
        self.wait_pod(name, "ready", |pod| is_true(pod, "Ready"))
    }

    /// Waits until the object is gone.
    #[track_caller]
    pub(crate) fn wait_gone(&self, what: &str) {
        wait_until(LONG, &format!("{}: {what} is gone", self.namespace), || {
            self.cluster
                .try_kubectl(&["--namespace", self.namespace, "get", what])
                .is_err_and(|why| why.contains("NotFound"))
        });
    }
}
