//! Who lives, and what the kernel says of it all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use weft_conformance::{Node, run, try_run};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A pod between the answer that it is there and the request that it go.
#[derive(Debug, Clone)]
pub(crate) struct Living {
    pub(crate) addresses: Vec<IpAddr>,
    /// Of the host's, TCP and UDP.
    pub(crate) port: Option<u16>,
    /// The index of the link that it is reached by, where it is known.
    pub(crate) host_end: Option<u64>,
    /// For people.
    pub(crate) name: String,
}

#[derive(Default)]
struct State {
    living: BTreeMap<String, Living>,
    residents: BTreeSet<String>,
    /// Their shims were killed.
    doomed: BTreeSet<String>,
    faults: Vec<String>,
    looks: u64,
}

/// All pods that live.
#[derive(Default)]
pub(crate) struct Register(Mutex<State>);

impl Register {
    pub(crate) fn fault(&self, what: String) {
        self.state().faults.push(what);
    }

    /// What was wrong so far; and that somebody has looked.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut state = self.state();
        let mut faults = std::mem::take(&mut state.faults);
        if std::mem::take(&mut state.looks) == 0 {
            faults.push("nobody has looked at the kernel".into());
        }
        faults
    }

    /// A pod has been made; what it has must be its own.
    pub(crate) fn enter(&self, id: &str, pod: Living) {
        let mut state = self.state();
        if state.doomed.contains(id) {
            return;
        }
        let mut faults = Vec::new();
        for other in state.living.values() {
            for address in pod.addresses.iter().filter(|address| other.addresses.contains(address)) {
                faults.push(format!("{address} is given to {}, and {} has it", pod.name, other.name));
            }
            if pod.port.is_some() && pod.port == other.port {
                faults.push(format!("{:?} is given to {}, and {} has it", pod.port, pod.name, other.name));
            }
        }
        state.faults.extend(faults);
        state.living.insert(id.to_owned(), pod);
    }

    /// A pod that nobody touches.
    pub(crate) fn enter_resident(&self, id: &str, pod: Living) {
        self.state().residents.insert(id.to_owned());
        self.enter(id, pod);
    }

    /// Its end is going to be asked for.
    pub(crate) fn leave(&self, id: &str) {
        self.state().living.remove(id);
    }

    /// It is going to be killed.
    pub(crate) fn doom(&self, id: &str) {
        let mut state = self.state();
        state.doomed.insert(id.to_owned());
        state.living.remove(id);
    }

    pub(crate) fn is_resident(&self, id: &str) -> bool {
        self.state().residents.contains(id)
    }

    /// Looks at the kernel again and again.
    pub(crate) fn watch(&self, node: &Node, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            let before = self.state().living.clone();
            let kernel = Kernel::look(node);
            let mut state = self.state();
            // Who lived all the while has what it was told.
            let lived = before.iter().filter(|(id, _)| state.living.contains_key(*id)).map(|(_, pod)| pod);
            let lived: Vec<_> = lived.cloned().collect();
            state.faults.extend(kernel.contradicts(&lived));
            state.looks += 1;
            drop(state);
            thread::park_timeout(PAUSE);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }
}

/// Routes, links and ports of the host, as `ip` and `nft` tell them.
struct Kernel {
    /// The links that lead to an address.
    routes: BTreeMap<IpAddr, Vec<String>>,
    links: BTreeMap<u64, String>,
    /// Protocol and port, and the address and port that it leads to.
    ports: Vec<(String, u64, IpAddr, u64)>,
}

impl Kernel {
    fn look(node: &Node) -> Self {
        let ip = |args: &[&str]| -> Vec<Value> {
            let told = run(node.command("ip").arg("-json").args(args));
            serde_json::from_str(&told).expect("ip prints JSON")
        };
        let mut routes: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for route in ["-4", "-6"].iter().flat_map(|family| ip(&[family, "route", "show", "table", "main"])) {
            let to = route["dst"].as_str().and_then(|to| to.parse().ok());
            if let (Some(to), Some(link)) = (to, route["dev"].as_str()) {
                routes.entry(to).or_default().push(link.to_owned());
            }
        }
        let links = ip(&["link", "show"]).into_iter();
        let links = links
            .filter_map(|link| Some((link["ifindex"].as_u64()?, link["ifname"].as_str()?.to_owned())))
            .collect();
        Self { routes, links, ports: ports(node) }
    }

    fn contradicts(&self, living: &[Living]) -> Vec<String> {
        let mut faults = Vec::new();
        let mut links = BTreeMap::new();
        for pod in living {
            let leads_to_pod: Vec<_> =
                self.ports.iter().filter(|port| pod.addresses.contains(&port.2)).collect();
            let wanted = if pod.port.is_some() { 2 * pod.addresses.len() } else { 0 };
            let own =
                |port: &&&(String, u64, IpAddr, u64)| Some(port.1) == pod.port.map(u64::from) && port.3 == 80;
            if leads_to_pod.len() != wanted || leads_to_pod.iter().filter(own).count() != wanted {
                faults.push(format!("{pod:?} has the ports {leads_to_pod:?}"));
            }
            for address in &pod.addresses {
                let led = self.routes.get(address).cloned().unwrap_or_default();
                let [link] = &led[..] else {
                    faults.push(format!("{address} of {pod:?} is at the links {led:?}"));
                    continue;
                };
                let is_it = |index| self.links.get(&index) == Some(link);
                if !pod.host_end.is_none_or(is_it) {
                    faults.push(format!("{address} is at {link}, which is not that of {pod:?}"));
                }
                if let Some(other) = links.insert((link.clone(), address.is_ipv4()), &pod.name) {
                    faults.push(format!("{link} is that of {other} and of {}", pod.name));
                }
            }
        }
        faults
    }
}

fn ports(node: &Node) -> Vec<(String, u64, IpAddr, u64)> {
    let mut ports = Vec::new();
    for map in ["ports4", "ports6"] {
        // There is none before the first pod that needs it.
        let told = try_run(node.command("nft").args(["-j", "list", "map", "inet", "weft", map]));
        let told: Value = told.ok().and_then(|told| serde_json::from_str(&told).ok()).unwrap_or_default();
        let objects = told["nftables"].as_array().into_iter().flatten();
        let elements = objects.flat_map(|object| object["map"]["elem"].as_array().into_iter().flatten());
        // A port that is withdrawn ends with the kernel's next tick.
        for element in elements.filter(|element| element[0]["elem"]["expires"].is_null()) {
            let (from, to) = (&element[0]["concat"], &element[1]["concat"]);
            let parsed = (|| {
                let protocol = from[0].as_str().map_or_else(|| from[0].to_string(), str::to_owned);
                Some((protocol, from[1].as_u64()?, to[0].as_str()?.parse().ok()?, to[1].as_u64()?))
            })();
            ports.push(parsed.unwrap_or_else(|| panic!("what nft says of {map}: {element}")));
        }
    }
    ports
}
