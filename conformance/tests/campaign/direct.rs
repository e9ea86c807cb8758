//! A pod of another runtime: a namespace, and the CNI plugin called by hand.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Output, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_conformance::{Dice, run, try_run};

use crate::observer::Living;
use crate::{Campaign, Wish, conflist};

/// In thousandths of what a call takes: some kills come too late.
const INSTANTS: usize = 1200;

/// What came of a call.
enum Answer {
    Done(Value),
    Refused(String),
    Killed,
}

impl Campaign<'_> {
    pub(crate) fn direct(&self, wish: &Wish, dice: &mut Dice) {
        run(self.node.command("ip").args(["netns", "add", &wish.name]));
        self.node.leaves_no(&wish.name);
        // containerd calls as the first, and then takes the namespace down at once.
        let of_cri = dice.below(2) == 0;
        if self.add(wish, of_cri, dice) {
            thread::park_timeout(Duration::from_millis(dice.below(300) as u64));
        }
        self.register.leave(&wish.name);
        // Some get no DEL.
        if dice.below(4) > 0 {
            self.del(wish, of_cri, dice);
        } else {
            self.tally.add("DEL: never called", 1);
        }
        run(self.node.command("ip").args(["netns", "del", &wish.name]));
    }

    /// Whether the pod is attached.
    fn add(&self, wish: &Wish, of_cri: bool, dice: &mut Dice) -> bool {
        for _ in 0..1 + dice.below(3) {
            match self.call("ADD", wish, of_cri, dice, 3) {
                Answer::Done(result) => {
                    self.tally.add("ADD: done", 1);
                    self.is_attached(wish, &result);
                    return true;
                }
                Answer::Killed => self.tally.add("ADD: killed", 1),
                Answer::Refused(why) => {
                    self.tally.failed("ADD: refused", &why);
                    // What a pod that is gone, and that nobody has reconciled yet, still has.
                    let may_be = ["is leased to", "is taken by", "no free IPv"];
                    if !may_be.iter().any(|words| why.contains(words)) {
                        self.register.fault(format!("ADD {}: {why}", wish.name));
                    }
                    return false;
                }
            }
        }
        false
    }

    fn is_attached(&self, wish: &Wish, result: &Value) {
        let ips = result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
        let addresses: Vec<IpAddr> =
            ips.map(|ip| ip.split('/').next().and_then(|ip| ip.parse().ok()).expect("an address")).collect();
        let told = run(self.node.command("ip").args(["-n", &wish.name, "-json", "addr", "show", "eth0"]));
        let told: Value = serde_json::from_str(&told).expect("ip prints JSON");
        for address in &addresses {
            self.node.leaves_no(&address.to_string());
            if !told.to_string().contains(&format!("\"{address}\"")) {
                self.register.fault(format!("{} has not the address {address}: {told}", wish.name));
            }
        }
        let host_end = told[0]["link_index"].as_u64();
        let living = Living { addresses, port: wish.port, host_end, name: wish.name.clone() };
        self.register.enter(&wish.name, living);
    }

    fn del(&self, wish: &Wish, of_cri: bool, dice: &mut Dice) {
        // As a runtime does; the last attempts meet nobody who kills them but the killer.
        for attempt in 0.. {
            match self.call("DEL", wish, of_cri, dice, if attempt < 2 { 2 } else { 0 }) {
                Answer::Done(_) => break,
                Answer::Killed if attempt < 100 => self.tally.add("DEL: killed", 1),
                Answer::Killed => self.register.fault(format!("DEL {} is killed each time", wish.name)),
                Answer::Refused(why) => {
                    self.register.fault(format!("DEL {}: {why}", wish.name));
                    break;
                }
            }
        }
        self.tally.add("DEL: done", 1);
        let link = try_run(self.node.command("ip").args(["-n", &wish.name, "link", "show", "eth0"]));
        if !of_cri && link.is_ok() {
            self.register.fault(format!("eth0 of {} is there after DEL", wish.name));
        }
    }

    /// Calls the plugin; `one_in` says how many calls there are to one that is killed, 0 for none.
    fn call(&self, verb: &str, wish: &Wish, of_cri: bool, dice: &mut Dice, one_in: usize) -> Answer {
        let plugin = self.node.dir().join("cni/bin/weft");
        let (is_killed, instant) = (one_in > 0 && dice.below(one_in) == 0, dice.below(INSTANTS) as u64);
        let mut command = if is_killed {
            let instant = self.call_us.load(Ordering::Relaxed) * instant / 1000;
            let instant = Duration::from_micros(instant.max(1)).as_secs_f64();
            let mut timeout = self.node.command("timeout");
            timeout.args(["-s", "KILL", &format!("{instant:.6}")]).arg(plugin);
            timeout
        } else {
            self.node.command(plugin)
        };
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &wish.name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", format!("/run/netns/{}", wish.name))
            .env("CNI_PATH", "/");
        if of_cri {
            command.env("CNI_ARGS", format!("K8S_POD_INFRA_CONTAINER_ID={}", wish.name));
        }
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run nsenter(1)");
        // One that is killed does not read it.
        drop(child.stdin.take().map(|mut stdin| stdin.write_all(configuration(wish).to_string().as_bytes())));
        let answer = answer(&child.wait_with_output().expect("wait for a child"));
        if let (Answer::Done(_), Ok(took)) = (&answer, u64::try_from(started.elapsed().as_micros())) {
            // The last ones count most: the machine is more or less busy.
            let before = self.call_us.load(Ordering::Relaxed);
            self.call_us.store((3 * before + took) / 4, Ordering::Relaxed);
        }
        answer
    }
}

fn answer(output: &Output) -> Answer {
    let said = String::from_utf8_lossy(&output.stdout);
    let told: Result<Value, _> = serde_json::from_str(&said);
    match (output.status.success(), told) {
        (true, told) => Answer::Done(told.unwrap_or_default()),
        (false, Ok(error)) if error["code"].is_u64() => Answer::Refused(error.to_string()),
        // It may have had the time to answer.
        (false, _) if output.stderr.is_empty() => Answer::Killed,
        (false, _) => Answer::Refused(format!("{said}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// What libcni makes of the list for one call.
fn configuration(wish: &Wish) -> Value {
    let list = conflist();
    let mut conf = list["plugins"][0].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    conf["name"] = list["name"].clone();
    let mut runtime = json!({});
    if let Some(port) = wish.port {
        let mapping = |protocol: &str| json!({ "hostPort": port, "containerPort": 80, "protocol": protocol });
        runtime["portMappings"] = json!([mapping("tcp"), mapping("udp")]);
    }
    if let Some(address) = &wish.address {
        runtime["ips"] = json!([address]);
    }
    if wish.limited {
        let (rate, burst) = (100_000_000, 1_000_000);
        runtime["bandwidth"] =
            json!({ "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst });
    }
    conf["runtimeConfig"] = runtime;
    conf
}
