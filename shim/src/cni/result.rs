//! The result of ADD, and the answer to VERSION (CNI specification 1.1, section 5; 0.4.0 and 0.2.0 for the older shapes).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::conf::{Conf, Dns, VERSIONS};
use crate::record::{Names, Record};
use crate::routes::{gateway, host_prefix, pod_routes};

/// What is spoken, in an answer of the version that was asked with.
pub(super) fn versions(asked: String) -> Value {
    json!({ "cniVersion": asked, "supportedVersions": VERSIONS })
}

/// The result for an attached interface: both ends, the addresses of the pod's end, and its routes.
pub(super) fn of(record: &Record, conf: &Conf) -> Value {
    if ["0.1.0", "0.2.0"].contains(&conf.version.as_str()) {
        return oldest(record, conf);
    }
    let v0 = conf.version.starts_with('0');
    let ips: Vec<Value> = record.addresses.iter().map(|address| ip(*address, v0)).collect();
    let routes: Vec<Value> = record.first_addresses().flat_map(|address| routes(record, address)).collect();
    let mut interfaces = vec![
        json!({ "name": record.host_link, "mac": record.host_mac }),
        json!({ "name": record.interface, "mac": record.mac, "sandbox": record.netns.path }),
    ];
    if record.bandwidth.egress.is_some() {
        interfaces.push(json!({ "name": Names::derived(record).ifb }));
    }
    json!({
        "cniVersion": conf.version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": dns(conf.resolver()),
    })
}

/// Up to 0.2.0 a result has one address of each family, and no interfaces.
fn oldest(record: &Record, conf: &Conf) -> Value {
    let mut result = json!({ "cniVersion": conf.version, "dns": dns(conf.resolver()) });
    for address in record.first_addresses() {
        result[if address.is_ipv4() { "ip4" } else { "ip6" }] = json!({
            "ip": format!("{address}/{}", host_prefix(address)),
            "gateway": gateway(&address),
            "routes": routes(record, address),
        });
    }
    result
}

/// `interface` is the index of the pod's end in `interfaces`; `version` exists before 1.0.0 only.
fn ip(address: IpAddr, v0: bool) -> Value {
    let mut ip = json!({
        "interface": 1,
        "address": format!("{address}/{}", host_prefix(address)),
        "gateway": gateway(&address),
    });
    if v0 {
        ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
    }
    ip
}

/// What is reached through an address's gateway.
fn routes(record: &Record, address: IpAddr) -> Vec<Value> {
    let gateway = gateway(&address);
    let reached = pod_routes(record, gateway, 0).into_iter().filter(|route| route.via.is_some());
    reached
        .map(|route| json!({ "dst": format!("{}/{}", route.destination, route.prefix), "gw": gateway }))
        .collect()
}

fn dns(dns: &Dns) -> Value {
    let lists = [("nameservers", &dns.nameservers), ("search", &dns.search), ("options", &dns.options)];
    let lists = lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(key, list)| (key.to_owned(), json!(list)));
    let domain = dns.domain.iter().map(|domain| ("domain".to_owned(), json!(domain)));
    Value::Object(lists.chain(domain).collect::<Map<_, _>>())
}
