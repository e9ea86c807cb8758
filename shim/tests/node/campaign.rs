//! Random kills: ADD and DEL end with `kill -9` at any instant, some pods get no DEL, and their namespaces stay or go. One
//! reconcile later nothing is left, no address was in two pods, and pods that nobody touched lost no packet.
//!
//! `WEFT_CAMPAIGN_SEED` and `WEFT_CAMPAIGN_ROUNDS` (4 pods each) repeat one, or make it longer.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::{Node, Pinging, conf, wait_until};
use serde_json::{Value, json};

/// xorshift64: the same sequence for the same seed, which is all that is asked of it.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Called as by a CRI runtime: DEL leaves the links to the namespace.
fn of_cri(pod: &str) -> bool {
    pod.ends_with('0')
}

fn spawn(node: &Node, verb: &str, pod: &str) -> Child {
    let mut command = node.command(env!("CARGO_BIN_EXE_weft-cni"));
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", pod)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/");
    command.env("CNI_NETNS", node.dir.path().join(format!("netns-{pod}")));
    if of_cri(pod) {
        command.env("CNI_ARGS", format!("K8S_POD_INFRA_CONTAINER_ID={pod}"));
    }
    command.stdin(std::fs::File::open(node.dir.path().join("conf")).unwrap()).stdout(Stdio::null());
    node.host.run(|| command.spawn().unwrap()).unwrap()
}

/// Kills half of the processes within the time that they need, and waits for all. Whether each was done.
fn killed_or_done(dice: &mut Dice, mut processes: Vec<Child>) -> Vec<bool> {
    for process in &mut processes {
        if dice.below(2) == 0 {
            std::thread::park_timeout(Duration::from_micros(dice.below(8_000)));
            process.kill().unwrap();
        }
    }
    processes.into_iter().map(|mut process| process.wait().unwrap().success()).collect()
}

/// No two living namespaces have an address in common.
fn assert_addresses_differ<'a>(node: &Node, pods: impl Iterator<Item = &'a String>, when: &str) {
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    for pod in pods {
        for link in node.ip_in_pod(pod, &["addr", "show"]).as_array().unwrap() {
            let addresses =
                link["addr_info"].as_array().unwrap().iter().map(|a| a["local"].as_str().unwrap());
            for address in
                addresses.filter(|address| address.starts_with("10.88") || address.starts_with("fd00"))
            {
                let other = holders.insert(address.to_owned(), pod.clone());
                assert_eq!(other, None, "{when}: {address} is in {pod} too");
            }
        }
    }
}

/// The pods of one round; returns those whose namespace stays.
fn round(node: &Node, dice: &mut Dice, round: u64) -> Vec<String> {
    let pods: Vec<String> = (0..4).map(|n| format!("p{round}-{n}")).collect();
    let mut adds = Vec::new();
    for pod in &pods {
        node.pod(pod);
        adds.push(spawn(node, "ADD", pod));
    }
    killed_or_done(dice, adds);
    let (with_del, without): (Vec<String>, Vec<String>) = pods.into_iter().partition(|_| dice.below(3) > 0);
    let dels = with_del.iter().map(|pod| spawn(node, "DEL", pod)).collect();
    let mut left = without;
    for (pod, done) in with_del.into_iter().zip(killed_or_done(dice, dels)) {
        if of_cri(&pod) {
            // Such a runtime repeats DEL until it succeeds, and then ends the namespace.
            assert!(done || spawn(node, "DEL", &pod).wait().unwrap().success(), "{pod}");
            node.remove_pod(&pod);
        } else {
            left.push(pod);
        }
    }
    let (left, gone): (Vec<_>, Vec<_>) = left.into_iter().partition(|_| dice.below(2) == 0);
    gone.iter().for_each(|pod| node.remove_pod(pod));
    left
}

#[test]
fn a_campaign_of_kills() {
    let seed = number("WEFT_CAMPAIGN_SEED", u64::from(std::process::id()) | 1 << 40);
    let rounds = number("WEFT_CAMPAIGN_ROUNDS", 30);
    println!("WEFT_CAMPAIGN_SEED={seed}");
    let mut dice = Dice(seed);
    let node = Node::new();
    // Few addresses, so that they are used again and again, and run out.
    let mut small = conf();
    small["ranges"] = json!([{ "subnet": "10.88.0.0/27" }, { "subnet": "fd00:88::/64" }]);
    std::fs::write(node.dir.path().join("conf"), small.to_string()).unwrap();
    node.add("x");
    let y = node.add("y").addresses();
    let mut pinging: Vec<Pinging> = Vec::new();
    let mut left: Vec<String> = Vec::new();
    for number in 0..rounds {
        if number % 15 == 0 {
            pinging.drain(..).for_each(Pinging::assert_no_loss);
            pinging.extend(y.iter().map(|address| Pinging::start(&node.pod_ns("x"), address)));
        }
        left.extend(round(&node, &mut dice, number));
        let oldest = left.len().saturating_sub(10);
        left.drain(..oldest).for_each(|pod| node.remove_pod(&pod));
        let living = ["x".to_owned(), "y".to_owned()];
        assert_addresses_differ(&node, left.iter().chain(&living), &format!("seed {seed}, round {number}"));
        if dice.below(4) == 0 {
            assert_eq!(node.reconcile(&[]).1, 0, "seed {seed}, round {number}");
        }
    }
    pinging.into_iter().for_each(Pinging::assert_no_loss);
    for pod in &left {
        node.remove_pod(pod);
    }
    wait_until("the kernel has ended the namespaces", || node.links().len() == 2);
    let (report, code) = node.reconcile(&[]);
    assert_eq!((code, &report["tombstones"], &report["failed"]), (0, &json!([]), &json!([])), "seed {seed}");
    let pods = node.weft(&["pods", "-o", "json"]);
    let names: Vec<&Value> = pods.as_array().unwrap().iter().map(|pod| &pod["container"]).collect();
    assert_eq!(names, ["x", "y"], "seed {seed}");
    assert_eq!((node.links().len(), node.routes().len(), node.map_entries()), (2, 4, 4), "seed {seed}");
    for pod in ["x", "y"] {
        assert!(node.cni("DEL", pod, &conf()).status.success());
    }
    node.assert_empty();
}
