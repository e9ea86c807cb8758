//! The network configuration on standard input (CNI specification 1.1, section 1).
//!
//! Unknown fields are left alone, but for those of [`foreign`](super::foreign). `runtimeConfig` comes
//! in two spellings, because containerd encodes its Go types without tags (`HostPort` for `hostPort`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use weft_ipam::{Range, RangeSpec};

use super::bandwidth::Stated;
use super::env::Env;
use super::error::Failure;
use super::foreign;
use crate::asked::{self, Asked};
use crate::bandwidth::Bandwidth;
use crate::config::{self, Config};
use crate::pod::Network;
use crate::record::{HostPort, Protocol};

/// The versions that are spoken.
pub(super) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
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
    masquerade: Option<bool>,
    masquerade_except: Option<Vec<IpNet>>,
    routes: Vec<IpNet>,
    pub(super) dns: Dns,
    bandwidth: Stated,
    runtime: RuntimeConfig,
    args: Args,
    pub(super) prev_result: Option<Value>,
    pub(super) valid_attachments: Option<Vec<Attachment>>,
    /// A key that nobody may rely on, and why.
    narrowing: Option<(&'static str, &'static str)>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(default, deserialize_with = "config::sets")]
    ranges: Vec<config::Range>,
    mtu: Option<u32>,
    /// The second name is that of the `bridge` plugin.
    #[serde(alias = "ipMasq")]
    masquerade: Option<bool>,
    #[serde(rename = "masqueradeExcept")]
    masquerade_except: Option<Vec<IpNet>>,
    #[serde(default, deserialize_with = "list")]
    routes: Vec<Destination>,
    #[serde(default)]
    dns: Dns,
    #[serde(rename = "runtimeConfig")]
    runtime: Option<RuntimeConfig>,
    args: Option<Args>,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    valid_attachments: Option<Vec<Attachment>>,
}

/// A route of the pod as a result has it; the way is always the pod's gateway.
#[derive(Debug, Deserialize)]
struct Destination {
    dst: IpNet,
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
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
struct RuntimeConfig {
    #[serde(default, rename = "portMappings", deserialize_with = "list")]
    port_mappings: Vec<PortMapping>,
    bandwidth: Option<Stated>,
    dns: Option<Dns>,
    #[serde(default, deserialize_with = "list")]
    ips: Vec<String>,
    /// Sets of ranges, before those of the configuration.
    #[serde(default, rename = "ipRanges", deserialize_with = "config::sets")]
    ip_ranges: Vec<config::Range>,
    mac: Option<String>,
    /// All of the pod's.
    #[serde(default, rename = "io.kubernetes.cri.pod-annotations")]
    annotations: Option<BTreeMap<String, String>>,
}

/// `args` of the configuration: what an orchestrator that writes configurations asks for (CNI CONVENTIONS.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Args {
    #[serde(default)]
    cni: CniArgs,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct CniArgs {
    #[serde(default, deserialize_with = "list")]
    ips: Vec<String>,
    mac: Option<String>,
}

/// One host port, as the `portMappings` capability has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct PortMapping {
    #[serde(rename = "hostPort", alias = "HostPort")]
    host_port: i64,
    #[serde(rename = "containerPort", alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

impl PortMapping {
    /// `None` for a container's port that is published nowhere (host port 0).
    fn check(&self) -> Result<Option<HostPort>, String> {
        let port = |name: &str, value: i64| {
            u16::try_from(value).map_err(|_range| format!("{name} is {value}, want a number up to 65535"))
        };
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(format!("protocol is {other:?}, want tcp, udp or sctp")),
        };
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => {
                let at: IpAddr =
                    text.parse().map_err(|_syntax| format!("hostIP is {text:?}, want an address"))?;
                Some(at.to_canonical())
            }
        };
        let host_port = port("hostPort", self.host_port)?;
        let pod_port = port("containerPort", self.container_port)?;
        if host_port == 0 {
            return Ok(None);
        }
        if pod_port == 0 {
            return Err(format!("containerPort of host port {host_port} is 0"));
        }
        Ok(Some(HostPort { protocol, host_port, pod_port, host_ip }))
    }
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

/// Names the field: what the parser says of a value that it does not like is where, and not what.
fn shape(err: serde_path_to_error::Error<serde_json::Error>) -> Failure {
    // A key may be anything.
    let field = err.path().to_string().escape_debug().to_string();
    match err.into_inner() {
        // A field of the outermost object that is missing, or there twice: it says which.
        source if field == "." => Failure::Json(source),
        source => Failure::Shape { field, source },
    }
}

impl Conf {
    pub(super) fn parse(text: &[u8]) -> Result<Conf, Failure> {
        let value: Value = serde_json::from_slice(text).map_err(Failure::Json)?;
        let version = value["cniVersion"].as_str().unwrap_or(UNSTATED).to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Failure::Version { found: version });
        }
        if !value.is_object() {
            return Err(Failure::Conf { field: "all of it", problem: "is no JSON object".into() });
        }
        let narrowing = foreign::narrowing(&value);
        let bandwidth: Stated = serde_path_to_error::deserialize(&value).map_err(shape)?;
        let raw: Raw = serde_path_to_error::deserialize(value).map_err(shape)?;
        let name = raw.name.filter(|name| !name.is_empty());
        Ok(Conf {
            version: raw.version.unwrap_or(version),
            name: name.ok_or(Failure::Conf { field: "name", problem: "is missing".into() })?,
            ranges: raw.ranges,
            mtu: raw.mtu,
            masquerade: raw.masquerade,
            masquerade_except: raw.masquerade_except,
            routes: raw.routes.iter().map(|route| route.dst.trunc()).collect(),
            dns: raw.dns,
            bandwidth,
            runtime: raw.runtime.unwrap_or_default(),
            args: raw.args.unwrap_or_default(),
            prev_result: raw.prev_result,
            valid_attachments: raw.valid_attachments,
            narrowing,
        })
    }

    /// The ranges of the configuration, else those of the node's configuration under the same name; those that the runtime
    /// names come first.
    pub(super) fn network(&self, config: &Config) -> Result<Network, Failure> {
        if let Some((field, problem)) = self.narrowing {
            return Err(Failure::Conf { field, problem: problem.into() });
        }
        let mut network = config.network.get(&self.name).cloned().unwrap_or_default();
        if !self.ranges.is_empty() {
            network.ranges.clone_from(&self.ranges);
        }
        network.ranges = behind(&self.runtime.ip_ranges, network.ranges)?;
        network.mtu = self.mtu.or(network.mtu);
        network.masquerade = self.masquerade.or(network.masquerade);
        if let Some(except) = &self.masquerade_except {
            network.masquerade_except.clone_from(except);
        }
        let network = crate::cni::network(&self.name, &network)?;
        Ok(Network { routes: self.routes.clone(), ..network })
    }

    /// The host ports that are asked for, each once.
    pub(super) fn ports(&self) -> Result<Vec<HostPort>, Failure> {
        let mut ports = Vec::new();
        for mapping in &self.runtime.port_mappings {
            let checked = mapping.check();
            let port = checked.map_err(|problem| Failure::Conf { field: "portMappings:", problem })?;
            ports.extend(port.filter(|port| !ports.contains(port)));
        }
        Ok(ports)
    }

    /// The limits of the pod.
    pub(super) fn bandwidth(&self) -> Result<Bandwidth, Failure> {
        self.bandwidth.limits(self.runtime.bandwidth.as_ref())
    }

    /// The addresses that are asked for by name, in the order of the places that say so.
    pub(super) fn asked(&self, env: &Env) -> Result<Asked, Failure> {
        let of_pod = self.runtime.annotations.as_ref().filter(|_| env.interface() == asked::INTERFACE);
        let annotation = |name: &str| of_pod.and_then(|all| all.get(name)).map(String::as_str);
        let list = |text: Option<&str>| text.map(asked::list).unwrap_or_default();
        let said = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        let (runtime, args) = (&self.runtime, &self.args.cni);
        let ips = vec![
            ("runtimeConfig.ips", runtime.ips.clone()),
            ("args.cni.ips", args.ips.clone()),
            ("IP in CNI_ARGS", list(env.arg("IP"))),
            ("annotation weft.dev/ips", list(annotation(asked::IPS))),
        ];
        let macs = vec![
            ("runtimeConfig.mac", said(runtime.mac.as_deref())),
            ("args.cni.mac", said(args.mac.as_deref())),
            ("MAC in CNI_ARGS", said(env.arg("MAC"))),
            ("annotation weft.dev/mac", said(annotation(asked::MAC))),
        ];
        Ok(Asked::first_of(ips, macs)?)
    }

    /// What the result says about name resolution: the capability argument, else the configuration.
    pub(super) fn resolver(&self) -> &Dns {
        self.runtime.dns.as_ref().unwrap_or(&self.dns)
    }
}

/// Ranges and the sets of them that come before: more sets, not more ranges of the same.
fn behind(first: &[config::Range], ranges: Vec<config::Range>) -> Result<Vec<config::Range>, Failure> {
    let next = first.iter().map(|range| u16::from(range.set) + 1).max().unwrap_or(0);
    let mut all = first.to_vec();
    for range in ranges {
        let set = u8::try_from(u16::from(range.set) + next);
        let problem = || Failure::Conf { field: "ranges", problem: "are more than 255 sets".into() };
        all.push(config::Range { set: set.map_err(|_large| problem())?, ..range });
    }
    Ok(all)
}

/// Checks what the network `name` is.
pub(crate) fn network(name: &str, network: &config::Network) -> Result<Network, Failure> {
    if name.contains(char::is_control) {
        let problem = format!("is {name:?}, want no control characters");
        return Err(Failure::Conf { field: "name", problem });
    }
    if network.ranges.is_empty() {
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
        .map(|checked| checked.in_set(range.set))
    };
    let ranges = network.ranges.iter().map(check).collect::<Result<_, _>>().map_err(Failure::Range)?;
    Ok(Network {
        name: name.to_owned(),
        ranges,
        mtu: network.mtu,
        masquerade: network.masquerade,
        masquerade_except: network.masquerade_except.clone(),
        routes: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Conf, Failure> {
        Conf::parse(text.as_bytes())
    }

    /// Found by the fuzz target `cni`: the error named a type of ours.
    #[test]
    fn what_is_no_object_is_refused_as_such() {
        let err = parse("\"tcp\"").err().unwrap();
        assert_eq!(err.to_string(), "network configuration: all of it is no JSON object");
    }

    #[test]
    fn both_spellings_of_a_capability_argument_are_read() {
        for (port, inside, rate, burst) in [
            ("hostPort", "containerPort", "ingressRate", "ingressBurst"),
            ("HostPort", "ContainerPort", "IngressRate", "IngressBurst"),
        ] {
            let conf = parse(&format!(
                r#"{{"cniVersion":"1.1.0","name":"n","runtimeConfig":{{
                    "portMappings":[{{"{port}":8080,"{inside}":80}}],"bandwidth":{{"{rate}":1000,"{burst}":2000}}}}}}"#
            ))
            .unwrap();
            let ports = conf.ports().unwrap();
            assert_eq!((ports[0].host_port, ports[0].pod_port), (8080, 80));
            assert_eq!(conf.bandwidth().unwrap().ingress.unwrap().rate, 1000);
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
    fn every_mistake_in_a_port_mapping_has_its_words() {
        for (mapping, problem) in [
            (r#"{"hostPort":70000,"containerPort":80}"#, "hostPort is 70000, want a number up to 65535"),
            (r#"{"hostPort":-1,"containerPort":80}"#, "hostPort is -1, want a number up to 65535"),
            (r#"{"hostPort":80,"containerPort":0}"#, "containerPort of host port 80 is 0"),
            (
                r#"{"hostPort":80,"containerPort":80,"protocol":"icmp"}"#,
                "protocol is \"icmp\", want tcp, udp or sctp",
            ),
            (r#"{"hostPort":80,"containerPort":80,"hostIP":"here"}"#, "hostIP is \"here\", want an address"),
        ] {
            let conf = format!(
                r#"{{"cniVersion":"1.1.0","name":"n","runtimeConfig":{{"portMappings":[{mapping}]}}}}"#
            );
            let err = parse(&conf).unwrap().ports().unwrap_err();
            assert_eq!(err.to_string(), format!("network configuration: portMappings: {problem}"));
        }
    }

    #[test]
    fn a_port_that_is_published_nowhere_or_twice_is_no_second_port() {
        let conf = parse(
            r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"portMappings":[
                {"hostPort":0,"containerPort":80},{"hostPort":53,"containerPort":53,"protocol":"UDP"},
                {"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":""}]}}"#,
        )
        .unwrap();
        let port = HostPort { protocol: Protocol::Udp, host_port: 53, pod_port: 53, host_ip: None };
        assert_eq!(conf.ports().unwrap(), [port]);
    }

    #[test]
    fn limits_may_stand_in_the_configuration_itself() {
        let conf = parse(
            r#"{"cniVersion":"1.1.0","name":"n","egressRate":1000,"egressBurst":2000,
                "runtimeConfig":{"bandwidth":{"EgressRate":5000,"EgressBurst":5000}}}"#,
        )
        .unwrap();
        assert_eq!(conf.bandwidth().unwrap().egress.unwrap().rate, 1000);
    }

    #[test]
    fn ranges_of_the_runtime_come_before_those_of_the_configuration() {
        let conf = parse(
            r#"{"cniVersion":"1.1.0","name":"n","ranges":[{"subnet":"10.1.0.0/24"}],"runtimeConfig":{
                "ipRanges":[[{"subnet":"10.2.0.0/24","rangeStart":"10.2.0.9"}],[{"subnet":"fd00::/64"}]]}}"#,
        )
        .unwrap();
        let ranges = conf.network(&Config::default()).unwrap().ranges;
        let subnets: Vec<String> = ranges.iter().map(|range| range.subnet().to_string()).collect();
        assert_eq!(subnets, ["10.2.0.0/24", "fd00::/64", "10.1.0.0/24"]);
        assert_eq!(ranges.iter().map(Range::set).collect::<Vec<_>>(), [1, 2, 3], "each a set of its own");
    }

    #[test]
    fn a_list_among_the_ranges_is_a_set() {
        let sets = |ranges: &str| {
            let conf = parse(&format!(r#"{{"cniVersion":"1.1.0","name":"n","ranges":{ranges}}}"#))?;
            let ranges = conf.network(&Config::default())?.ranges;
            Ok::<_, Failure>(ranges.iter().map(Range::set).collect::<Vec<_>>())
        };
        let [a, b, c] = ["a", "b", "c"].map(|x| format!(r#"{{"subnet":"fd00:{x}::/64"}}"#));
        assert_eq!(sets(&format!("[{a},{b},{c}]")).unwrap(), [0, 0, 0]);
        assert_eq!(sets(&format!("[[{a},{b}],[{c}]]")).unwrap(), [1, 1, 2], "as host-local writes it");
        assert_eq!(sets(&format!("[[{a}],{b},[{c}]]")).unwrap(), [1, 0, 2]);
        let err = sets(&format!(r#"[{a},[{b},{{"subnet":7}}]]"#)).unwrap_err();
        let text = crate::error::chain(&err);
        assert!(text.starts_with("network configuration: ranges[1][1].subnet: invalid type"), "{text}");
        let text = crate::error::chain(&sets("[7]").unwrap_err());
        assert!(
            text.contains("ranges[0]: invalid type: integer `7`, expected a range or a list of ranges"),
            "{text}"
        );
    }

    #[test]
    fn the_nodes_ranges_serve_a_configuration_without_any() {
        let mut config = Config::default();
        let conf = parse(r#"{"cniVersion":"1.1.0","name":"n"}"#).unwrap();
        assert!(matches!(conf.network(&config), Err(Failure::Conf { field: "ranges", .. })));
        let range = serde_json::from_str(r#"{"subnet":"10.1.0.0/24"}"#).unwrap();
        config.network.insert(
            "n".into(),
            config::Network { ranges: vec![range], mtu: Some(1400), ..Default::default() },
        );
        assert_eq!(conf.network(&config).unwrap().mtu, Some(1400));
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_place() {
        for (part, text) in [
            (r#""mtu":"x""#, r#"network configuration: mtu: invalid type: string "x", expected u32"#),
            (
                r#""ranges":[{"subnet":"10.0.0.0/8"},{"subnet":7}]"#,
                "network configuration: ranges[1].subnet: ",
            ),
            (r#""ranges":[{"su\net":7}]"#, r"network configuration: ranges[0].su\net: unknown field"),
            (
                r#""runtimeConfig":{"portMappings":[{"hostPort":"a"}]}"#,
                "network configuration: runtimeConfig.portMappings[0].hostPort: invalid type",
            ),
        ] {
            let err = parse(&format!(r#"{{"cniVersion":"1.1.0","name":"n",{part}}}"#)).unwrap_err();
            assert!(crate::error::chain(&err).starts_with(text), "{}", crate::error::chain(&err));
        }
    }

    #[test]
    fn a_network_whose_name_would_break_lines_is_refused() {
        let conf =
            parse("{\"cniVersion\":\"1.1.0\",\"name\":\"a\\nb\",\"ranges\":[{\"subnet\":\"10.0.0.0/24\"}]}");
        let err = conf.unwrap().network(&Config::default()).unwrap_err();
        assert_eq!(err.to_string(), r#"network configuration: name is "a\nb", want no control characters"#);
    }
}
