//! A pod as the kubelet makes and removes it.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use weft_conformance::{ContainerSpec, Dice, Pod, PodSpec, Protocol, image};

use crate::observer::Living;
use crate::{Campaign, Wish};

impl Campaign<'_> {
    pub(crate) fn through_cri(&self, wish: &Wish, dice: &mut Dice) {
        let pod = self.outage.birth(|| {
            let asked = self.node.request_pod(&spec(wish));
            asked.inspect(|pod| self.outage.knows(pod.id(), None))
        });
        let pod = match pod {
            Ok(pod) => pod,
            // What is left of it is what containerd, or `clear_away`, takes down.
            Err(why) => return self.tally.failed("RunPodSandbox: failed", &why),
        };
        self.tally.add("RunPodSandbox: done", 1);
        if let Some(told) = self.repeat("inspectp", || self.outcome(&pod)) {
            self.live(wish, &pod, &told, dice);
        }
        self.remove(pod.id());
    }

    /// What CRI says of the pod; nothing if it has none of it any more.
    fn outcome(&self, pod: &Pod<'_>) -> Result<Value, String> {
        match pod.try_inspect() {
            Err(why) if why.contains("not found") || why.contains("NotFound") => Ok(Value::Null),
            told => told,
        }
    }

    fn live(&self, wish: &Wish, pod: &Pod<'_>, told: &Value, dice: &mut Dice) {
        self.outage.knows(pod.id(), namespace(told));
        let addresses = Pod::ips_of(told);
        addresses.iter().for_each(|address| self.node.leaves_no(&address.to_string()));
        let living = Living {
            addresses,
            port: wish.port,
            host_end: None,
            name: format!("{} {}", wish.name, pod.id()),
        };
        self.register.enter(pod.id(), living);
        if dice.below(5) == 0 {
            // It may fail for anything that is killed; with the pod it goes.
            let container = pod.try_create(&ContainerSpec::new("main", image::BUSYBOX));
            let started = container.and_then(|container| self.crictl(&["start", container.id()]));
            match started {
                Ok(_) => self.tally.add("containers: done", 1),
                Err(why) => self.tally.failed("containers: failed", &why),
            }
        }
        thread::park_timeout(Duration::from_millis(dice.below(300) as u64));
        self.register.leave(pod.id());
    }
}

/// Of a pod on the pod network.
fn namespace(told: &Value) -> Option<PathBuf> {
    let namespaces = told["info"]["runtimeSpec"]["linux"]["namespaces"].as_array()?;
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
    network["path"].as_str().map(PathBuf::from)
}

fn spec(wish: &Wish) -> PodSpec {
    // One name for all pods of a worker: it is that of the cgroup, which stays until the node goes.
    let attempt: u32 = wish.name.trim_start_matches('p').parse().expect("a number");
    let mut spec =
        PodSpec::new(&format!("w{}", wish.worker)).with(json!({ "metadata": { "attempt": attempt } }));
    if let Some(port) = wish.port {
        spec = spec.host_port(Protocol::Tcp, port, 80).host_port(Protocol::Udp, port, 80);
    }
    if let Some(address) = &wish.address {
        spec = spec.annotation("weft.dev/ips", address);
    }
    if wish.limited {
        spec = spec
            .annotation("kubernetes.io/ingress-bandwidth", "100M")
            .annotation("kubernetes.io/egress-bandwidth", "100M");
    }
    spec
}
