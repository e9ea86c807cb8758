//! What a behaviour wants of a pod's network, and how either subject is told.

use serde_json::{Value, json};
use weft_conformance::Subject;

use crate::site::Site;

/// One pod's network as both subjects can be asked for it.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) version: &'static str,
    pub(crate) network: &'static str,
    pub(crate) interface: &'static str,
    /// Sets of ranges: the pod gets an address of each. A range is `subnet`, `rangeStart`, `rangeEnd`, `gateway`.
    pub(crate) sets: Value,
    pub(crate) masquerade: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) dns: Value,
    pub(crate) routes: Value,
    /// More keys of the first plugin, of the reference alone.
    pub(crate) bridge: Value,
    /// More keys of `bandwidth`, or of weft.
    pub(crate) bandwidth: Value,
    /// Capability arguments, for the plugins that say they have the capability.
    pub(crate) runtime: Value,
    /// `args.cni` of every plugin.
    pub(crate) args: Value,
    /// `CNI_ARGS`.
    pub(crate) env: &'static str,
    /// Plugins chained behind, the same for both.
    pub(crate) behind: Vec<Value>,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish {
            version: "1.1.0",
            network: "test",
            interface: "eth0",
            sets: json!([[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd00:88::/64" }]]),
            masquerade: true,
            mtu: None,
            dns: Value::Null,
            routes: Value::Null,
            bridge: json!({}),
            bandwidth: json!({}),
            runtime: json!({}),
            args: Value::Null,
            env: "",
            behind: Vec::new(),
        }
    }
}

impl Wish {
    pub(crate) fn chain(&self, site: &Site) -> Vec<Value> {
        let mut chain = match site.subject {
            Subject::Weft => vec![self.weft()],
            Subject::Reference => self.reference(site),
        };
        for plugin in &self.behind {
            let mut plugin = plugin.clone();
            if plugin["type"] == "tuning" {
                plugin["dataDir"] = site.data("tuning").display().to_string().into();
            }
            chain.push(plugin);
        }
        chain
    }

    /// What a runtime gives a plugin that says it has the capabilities.
    pub(crate) fn give_capabilities(&self, conf: &mut Value) {
        if let Some(able) = conf.as_object_mut().unwrap().remove("capabilities") {
            let asked = self.runtime.as_object().into_iter().flatten();
            let asked = asked.filter(|(key, _)| able[key.as_str()] == true);
            conf["runtimeConfig"] =
                Value::Object(asked.map(|(key, value)| (key.clone(), value.clone())).collect());
        }
    }

    /// Whether a plugin behind gets the host ports: then the chain's own does not, or both would publish them.
    fn ports_are_behind(&self) -> bool {
        self.behind.iter().any(|plugin| plugin["capabilities"]["portMappings"] == true)
    }

    /// bridge and host-local, and portmap and bandwidth where there is something for them; firewall and tuning are chained
    /// behind where they matter.
    fn reference(&self, site: &Site) -> Vec<Value> {
        let mut ipam =
            json!({ "type": "host-local", "dataDir": site.data("host-local"), "ranges": self.sets });
        let mut bridge = json!({
            "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": self.masquerade, "hairpinMode": true,
            "ipMasqBackend": "nftables", "capabilities": { "ips": true, "ipRanges": true, "mac": true },
        });
        if !self.routes.is_null() {
            ipam["routes"] = self.routes.clone();
            bridge["isDefaultGateway"] = false.into();
            bridge["isGateway"] = true.into();
        }
        bridge["ipam"] = ipam;
        self.common(&mut bridge);
        merge(&mut bridge, &self.bridge);
        let mut chain = vec![bridge];
        let is_asked = |able: &str| !self.runtime[able].is_null();
        if is_asked("portMappings") && !self.ports_are_behind() {
            let able = json!({ "portMappings": true });
            chain.push(json!({ "type": "portmap", "backend": "nftables", "capabilities": able }));
        }
        if is_asked("bandwidth") || self.bandwidth != json!({}) {
            let mut plugin = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
            merge(&mut plugin, &self.bandwidth);
            chain.push(plugin);
        }
        chain
    }

    fn weft(&self) -> Value {
        let mut weft = json!({
            "type": "weft", "ranges": self.sets, "ipMasq": self.masquerade,
            "capabilities": { "ips": true, "ipRanges": true, "mac": true, "bandwidth": true, "dns": true,
                "portMappings": !self.ports_are_behind() },
        });
        if !self.routes.is_null() {
            weft["routes"] = self.routes.clone();
        }
        self.common(&mut weft);
        merge(&mut weft, &self.bandwidth);
        weft
    }

    fn common(&self, conf: &mut Value) {
        if let Some(mtu) = self.mtu {
            conf["mtu"] = mtu.into();
        }
        if !self.dns.is_null() {
            conf["dns"] = self.dns.clone();
        }
    }
}

fn merge(conf: &mut Value, more: &Value) {
    for (key, value) in more.as_object().unwrap() {
        conf[key] = value.clone();
    }
}
