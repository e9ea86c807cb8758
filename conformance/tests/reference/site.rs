//! A node of one subject: a namespace that plays the host, one that plays the outside, pods, and the chain of plugins, called as
//! libcni calls it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_conformance::Subject;

use crate::space::Space;
use crate::wish::Wish;

/// The host's addresses on its uplink, and those of the outside.
pub(crate) const HOST: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
pub(crate) const BEYOND: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

pub(crate) struct Site {
    pub(crate) subject: Subject,
    pub(crate) host: Space,
    pub(crate) outside: Space,
    made: AtomicU32,
    dir: TempDir,
}

/// What a plugin answered.
type Answer = Result<Value, Value>;

impl Site {
    pub(crate) fn new(subject: Subject) -> Site {
        let dir = tempfile::Builder::new().prefix("weft-reference-").tempdir().unwrap();
        let bpf = dir.path().join("bpf");
        std::fs::create_dir(&bpf).unwrap();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let [host, outside] = ["host", "outside"].map(|name| Space::create(dir.path().join(name)));
        let beyond = outside.path().display();
        for line in [
            "ip link set lo up",
            &format!("ip link add uplink type veth peer name outside netns {beyond}"),
            "sysctl -qw net.ipv6.conf.uplink.accept_dad=0",
            &format!("ip addr add {}/24 dev uplink", HOST[0]),
            &format!("ip addr add {}/64 dev uplink nodad", HOST[1]),
            "ip link set uplink up",
        ] {
            host.must(line);
        }
        for line in [
            "ip link set lo up",
            "sysctl -qw net.ipv6.conf.outside.accept_dad=0",
            &format!("ip addr add {}/24 dev outside", BEYOND[0]),
            &format!("ip addr add {}/64 dev outside nodad", BEYOND[1]),
            "ip link set outside up",
            &format!("ip route add 10.88.0.0/16 via {}", HOST[0]),
            &format!("ip route add fd00:88::/32 via {}", HOST[1]),
        ] {
            outside.must(line);
        }
        weft_conformance::wait_until(Duration::from_secs(10), "the uplink has a carrier", || {
            host.ip("link show uplink")[0]["operstate"] == "UP"
        });
        host.must(&format!("ip route add default via {}", BEYOND[0]));
        host.must(&format!("ip route add default via {}", BEYOND[1]));
        Site { subject, host, outside, made: AtomicU32::new(0), dir }
    }

    /// Attaches a new pod.
    pub(crate) fn add(&self, wish: &Wish) -> Pod<'_> {
        let mut pod = self.pod(wish);
        pod.result = pod.again().unwrap_or_else(|error| panic!("ADD: {error}"));
        // The bridge does not answer before.
        self.host.settle();
        pod
    }

    /// The error of an ADD that must fail.
    pub(crate) fn refuses(&self, wish: &Wish) -> Value {
        self.pod(wish).again().expect_err("ADD succeeded")
    }

    /// A pod that is not attached yet.
    pub(crate) fn pod(&self, wish: &Wish) -> Pod<'_> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let space = Space::create(self.dir.path().join(format!("pod{number}")));
        space.must("ip link set lo up");
        Pod { site: self, id: format!("pod{number}"), space, wish: wish.clone(), result: Value::Null }
    }

    /// Runs one plugin. `Ok(Null)` is success without a word.
    pub(crate) fn plugin(
        &self,
        conf: &Value,
        verb: &str,
        change: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Answer {
        let mut command = self.command(conf, verb);
        let output = self.host.exec(change(&mut command), conf.to_string().as_bytes());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = match said.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| panic!("{verb} {}: {text}", conf["type"])),
        };
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// A plugin's program with what is the same for all pods.
    pub(crate) fn command(&self, conf: &Value, verb: &str) -> Command {
        let (name, dir) = (conf["type"].as_str().unwrap(), self.dir.path());
        let mut command = Command::new(if name == "weft" { weft("weft-cni") } else { reference(name) });
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("CNI_COMMAND", verb).env("CNI_PATH", reference(""));
        command.env("WEFT_RUN_DIR", dir.join("run")).env("WEFT_BPF_DIR", dir.join("bpf/weft"));
        command
    }

    /// Where the plugins of the reference keep what they know.
    pub(crate) fn data(&self, plugin: &str) -> PathBuf {
        self.dir.path().join(plugin)
    }

    /// The configuration of the chain's first plugin, in full.
    pub(crate) fn first(&self, wish: &Wish) -> Value {
        let mut conf = wish.chain(self).remove(0);
        conf["cniVersion"] = wish.version.into();
        conf["name"] = wish.network.into();
        conf
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        umount2(&self.dir.path().join("bpf"), MntFlags::MNT_DETACH).unwrap();
    }
}

/// A pod and what it was attached with.
pub(crate) struct Pod<'a> {
    site: &'a Site,
    pub(crate) id: String,
    pub(crate) space: Space,
    pub(crate) wish: Wish,
    /// Of the whole chain.
    pub(crate) result: Value,
}

impl Pod<'_> {
    /// ADD of the chain, each plugin with the result of the one before.
    pub(crate) fn again(&self) -> Answer {
        let mut result = Value::Null;
        for plugin in self.wish.chain(self.site) {
            result = self.call("ADD", plugin, &result, true)?;
        }
        Ok(result)
    }

    /// DEL of the chain, last plugin first.
    pub(crate) fn try_del(&self, has_namespace: bool) -> Result<(), Value> {
        for plugin in self.wish.chain(self.site).into_iter().rev() {
            self.call("DEL", plugin, &self.result, has_namespace)?;
        }
        Ok(())
    }

    pub(crate) fn del(&self) {
        self.try_del(true).unwrap_or_else(|error| panic!("DEL: {error}"));
    }

    /// CHECK of the chain.
    pub(crate) fn check(&self) -> Result<(), Value> {
        for plugin in self.wish.chain(self.site) {
            self.call("CHECK", plugin, &self.result, true)?;
        }
        Ok(())
    }

    fn call(&self, verb: &str, mut conf: Value, previous: &Value, has_namespace: bool) -> Answer {
        let wish = &self.wish;
        conf["cniVersion"] = wish.version.into();
        conf["name"] = wish.network.into();
        if !previous.is_null() {
            conf["prevResult"] = previous.clone();
        }
        wish.give_capabilities(&mut conf);
        if !wish.args.is_null() {
            conf["args"] = json!({ "cni": wish.args });
        }
        let netns = if has_namespace { self.space.path().as_os_str() } else { "".as_ref() };
        self.site.plugin(&conf, verb, |command| {
            command
                .env("CNI_CONTAINERID", &self.id)
                .env("CNI_IFNAME", wish.interface)
                .env("CNI_NETNS", netns)
                .env("CNI_ARGS", wish.env)
        })
    }

    /// All addresses of the result, without their prefix lengths, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let ips = self.result["ips"].as_array().unwrap_or_else(|| panic!("{}", self.result));
        let texts = ips.iter().map(|ip| ip["address"].as_str().unwrap());
        let mut all: Vec<String> = texts.map(|text| text.split('/').next().unwrap().to_owned()).collect();
        all.sort_by_key(|address| address.contains(':'));
        all
    }

    /// The first address.
    pub(crate) fn address(&self) -> String {
        self.addresses().remove(0)
    }

    /// The interface as `ip` sees it from inside.
    pub(crate) fn link(&self) -> Value {
        self.space.ip(&format!("addr show {}", self.wish.interface))[0].clone()
    }

    /// Its own entry among the interfaces of the result.
    pub(crate) fn reported(&self) -> Value {
        own_interface(&self.result)
    }
}

/// The pod's own entry among the interfaces of a result.
pub(crate) fn own_interface(result: &Value) -> Value {
    let mut interfaces = result["interfaces"].as_array().unwrap().iter();
    let own = interfaces.find(|interface| interface["sandbox"].as_str().is_some_and(|path| !path.is_empty()));
    own.unwrap().clone()
}

fn weft(name: &str) -> PathBuf {
    let dir = std::env::var_os("WEFT_BIN_DIR").expect("WEFT_BIN_DIR names the directory of weft's binaries");
    PathBuf::from(dir).join(name)
}

fn reference(plugin: &str) -> PathBuf {
    weft_conformance::Tools::find().cni().join(plugin)
}
