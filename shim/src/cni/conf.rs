//! The network configuration on standard input (CNI specification 1.1, section 1).
//!
//! Unknown fields are left alone: the runtime passes on what other plugins of a chain need. `runtimeConfig` comes
//! in two spellings, because containerd encodes its Go types without tags (`HostPort` for `hostPort`).

use serde::Deserialize;
use serde_json::Value;
use weft_ipam::{Range, RangeSpec};

use super::error::Failure;
use crate::config::{self, Config};
use crate::pod::Network;

/// The versions that are spoken.
pub(super) const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// The version of an answer to a question whose version is not known.
pub(super) const LATEST: &str = "1.1.0";
/// What a configuration without `cniVersion` is (specification 0.1).
const UNSTATED: &str = "0.1.0";

/// One checked configuration.
#[derive(Debug)]
pub(super) struct Conf {
    pub(super) version: String,
    pub(super) name: String,
    ranges: Vec<config::Range>,
    mtu: Option<u32>,
    pub(super) dns: Dns,
    runtime: RuntimeConfig,
    pub(super) prev_result: Option<Value>,
    pub(super) valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(default)]
    ranges: Vec<config::Range>,
    mtu: Option<u32>,
    #[serde(default)]
    dns: Dns,
    #[serde(rename = "runtimeConfig")]
    runtime: Option<RuntimeConfig>,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    valid_attachments: Option<Vec<Attachment>>,
}

/// Name resolution, passed on to the result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Dns {
    #[serde(default, alias = "Servers", alias = "servers", deserialize_with = "list")]
    pub(super) nameservers: Vec<String>,
    #[serde(default)]
    pub(super) domain: Option<String>,
    #[serde(default, alias = "Searches", alias = "searches", deserialize_with = "list")]
    pub(super) search: Vec<String>,
    #[serde(default, alias = "Options", deserialize_with = "list")]
    pub(super) options: Vec<String>,
}

/// The capability arguments that weft looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "portMappings", deserialize_with = "list")]
    port_mappings: Vec<PortMapping>,
    bandwidth: Option<Bandwidth>,
    dns: Option<Dns>,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct PortMapping {
    #[serde(rename = "hostPort", alias = "HostPort")]
    host_port: u16,
}

/// Bits per second; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Bandwidth {
    #[serde(default, rename = "ingressRate", alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(default, rename = "egressRate", alias = "EgressRate")]
    egress_rate: u64,
}

/// One attachment that the runtime still knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    pub(super) container_id: String,
    pub(super) ifname: String,
}

/// Go encodes an empty slice as `null`.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The version that a call asks with, in which its errors are reported, and the answer to VERSION.
pub(super) fn asked_version(text: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(text).ok();
    let asked = asked.as_ref().and_then(|conf| conf["cniVersion"].as_str());
    asked.unwrap_or(LATEST).to_owned()
}

impl Conf {
    pub(super) fn parse(text: &[u8]) -> Result<Conf, Failure> {
        let value: Value = serde_json::from_slice(text).map_err(Failure::Json)?;
        let version = value["cniVersion"].as_str().unwrap_or(UNSTATED).to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Failure::Version { found: version });
        }
        let raw: Raw = serde_json::from_value(value).map_err(Failure::Json)?;
        let name = raw.name.filter(|name| !name.is_empty());
        Ok(Conf {
            version: raw.version.unwrap_or(version),
            name: name.ok_or(Failure::Conf { field: "name", problem: "is missing".into() })?,
            ranges: raw.ranges,
            mtu: raw.mtu,
            dns: raw.dns,
            runtime: raw.runtime.unwrap_or_default(),
            prev_result: raw.prev_result,
            valid_attachments: raw.valid_attachments,
        })
    }

    /// The ranges of the configuration, else those of the node's configuration under the same name.
    pub(super) fn network(&self, config: &Config) -> Result<Network, Failure> {
        let node = config.network.get(&self.name);
        let ranges =
            if self.ranges.is_empty() { node.map_or(&[][..], |node| &node.ranges) } else { &self.ranges };
        network(&self.name, ranges, self.mtu.or(node.and_then(|node| node.mtu)))
    }

    /// A pod must not start without what was asked for it.
    pub(super) fn refuse_unsupported(&self) -> Result<(), Failure> {
        if let Some(port) = self.runtime.port_mappings.iter().find(|port| port.host_port != 0) {
            let wanted = format!("host port {}", port.host_port);
            return Err(Failure::Unsupported { wanted, remedy: "chain the portmap plugin behind weft" });
        }
        let limits = self.runtime.bandwidth.as_ref();
        if limits.is_some_and(|limits| limits.ingress_rate != 0 || limits.egress_rate != 0) {
            let wanted = "a bandwidth limit".into();
            return Err(Failure::Unsupported {
                wanted,
                remedy: "remove the bandwidth annotations of the pod",
            });
        }
        Ok(())
    }

    /// What the result says about name resolution: the capability argument, else the configuration.
    pub(super) fn resolver(&self) -> &Dns {
        self.runtime.dns.as_ref().unwrap_or(&self.dns)
    }
}

/// Checks the ranges of the network `name`.
pub(crate) fn network(name: &str, ranges: &[config::Range], mtu: Option<u32>) -> Result<Network, Failure> {
    if ranges.is_empty() {
        let problem = format!("are missing, and the node's configuration has no [network.{name}]");
        return Err(Failure::Conf { field: "ranges", problem });
    }
    let check = |range: &config::Range| {
        Range::new(RangeSpec {
            subnet: range.subnet,
            start: range.start,
            end: range.end,
            gateway: range.gateway,
            exclude: range.exclude.clone(),
        })
    };
    let ranges = ranges.iter().map(check).collect::<Result<_, _>>().map_err(Failure::Range)?;
    Ok(Network { name: name.to_owned(), ranges, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Conf, Failure> {
        Conf::parse(text.as_bytes())
    }

    #[test]
    fn both_spellings_of_a_capability_argument_are_read() {
        for (port, rate) in [("hostPort", "ingressRate"), ("HostPort", "IngressRate")] {
            let conf = parse(&format!(
                r#"{{"cniVersion":"1.1.0","name":"n","runtimeConfig":{{
                    "portMappings":[{{"{port}":8080}}],"bandwidth":{{"{rate}":1000}}}}}}"#
            ))
            .unwrap();
            assert_eq!(conf.runtime.port_mappings[0].host_port, 8080);
            assert_eq!(conf.runtime.bandwidth.unwrap().ingress_rate, 1000);
        }
        for (servers, searches) in [("servers", "searches"), ("Servers", "Searches")] {
            let conf = parse(&format!(
                r#"{{"cniVersion":"1.0.0","name":"n","runtimeConfig":{{
                    "dns":{{"{servers}":["192.0.2.53"],"{searches}":["example"],"Options":null}}}}}}"#
            ))
            .unwrap();
            assert_eq!(conf.resolver().nameservers, ["192.0.2.53"]);
            assert_eq!(conf.resolver().search, ["example"]);
        }
    }

    #[test]
    fn the_null_annotations_of_containerd_are_no_error() {
        parse(r#"{"cniVersion":"0.4.0","name":"n","runtimeConfig":{"io.kubernetes.cri.pod-annotations":null,"portMappings":null}}"#)
            .unwrap();
    }

    #[test]
    fn a_host_port_is_refused_rather_than_forgotten() {
        let conf =
            parse(r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[{"HostPort":80}]}}"#)
                .unwrap();
        let err = conf.refuse_unsupported().unwrap_err();
        assert_eq!(
            err.to_string(),
            "host port 80 is not supported by this version: chain the portmap plugin behind weft"
        );
    }

    #[test]
    fn the_nodes_ranges_serve_a_configuration_without_any() {
        let mut config = Config::default();
        let conf = parse(r#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap();
        assert!(matches!(conf.network(&config), Err(Failure::Conf { field: "ranges", .. })));
        let range = serde_json::from_str(r#"{"subnet":"10.1.0.0/24"}"#).unwrap();
        config.network.insert("n".into(), config::Network { ranges: vec![range], mtu: Some(1400) });
        assert_eq!(conf.network(&config).unwrap().mtu, Some(1400));
    }
}
