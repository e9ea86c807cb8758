//! `weft pod NAME`: everything about one pod.

use std::io::Write;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::args::Format;
use super::show::{addresses, data_path, line, pod_name, print_json};
use super::status::{counters_json, ways};
use super::{Error, Node};
use crate::fast_path::is_hooked;
use crate::proto::network as api;
use crate::record::Record;
use crate::routes::{gateways, host_prefix, host_route, pod_routes};

/// One block an interface.
pub(super) async fn print(
    node: &Node<'_>,
    name: &str,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let records = find(node.records(&api::Filter::new()).await?, name)?;
    let stats = node.stats(&records).await?;
    let stats = |record: &Record| stats.iter().find(|stats| stats.interface == record.interface);
    if format == Format::Json {
        let all: Vec<Value> = records.iter().map(|record| as_json(record, stats(record))).collect();
        return print_json(out, &json!(all));
    }
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            line(out, "")?;
        }
        for (key, value) in facts(record, stats(record)) {
            line(out, format!("{key:<16}{value}").trim_end())?;
        }
    }
    Ok(())
}

/// The interfaces of the one pod that is called so: `namespace/name`, `name`, or the beginning of its container's id.
pub(super) fn find(records: Vec<Record>, name: &str) -> Result<Vec<Record>, Error> {
    let exact = |record: &Record| record.container == name;
    let called =
        |record: &Record| record.pod.is_known() && (pod_name(&record.pod) == name || record.pod.name == name);
    let begins = |record: &Record| record.container.starts_with(name);
    let ways: [&dyn Fn(&Record) -> bool; 3] = [&exact, &called, &begins];
    // The first way that finds anything decides: an id that another one begins with is still that id.
    let found = ways.into_iter().map(|way| records.iter().filter(|record| way(record)).collect::<Vec<_>>());
    let Some(found) = found.into_iter().find(|found| !found.is_empty() && !name.is_empty()) else {
        return Err(Error::NoPod(name.to_owned()));
    };
    let mut pods: Vec<String> =
        found.iter().map(|record| format!("{} ({})", pod_name(&record.pod), record.container)).collect();
    pods.dedup();
    if pods.len() > 1 {
        return Err(Error::ManyPods { name: name.to_owned(), pods: pods.join(", ") });
    }
    Ok(found.into_iter().cloned().collect())
}

fn as_json(record: &Record, stats: Option<&api::Stats>) -> Value {
    let traffic = |traffic: Option<&api::Traffic>| {
        traffic.map(|traffic| {
            json!({
                "packets": traffic.packets, "bytes": traffic.bytes,
                "dropped": traffic.dropped, "errors": traffic.errors,
            })
        })
    };
    let routes = |routes: Vec<(String, String)>| -> Value {
        routes.into_iter().map(|(destination, way)| json!({ "dst": destination, "via": way })).collect()
    };
    json!({
        "record": record,
        "routes": { "pod": routes(in_the_pod(record)), "host": routes(on_the_host(record)) },
        "received": traffic(stats.and_then(|stats| stats.received.as_ref())),
        "sent": traffic(stats.and_then(|stats| stats.sent.as_ref())),
        "counters": stats.and_then(|stats| stats.data_path.as_ref()).map(counters_json),
    })
}

fn facts(record: &Record, stats: Option<&api::Stats>) -> Vec<(&'static str, String)> {
    let identity = record.identity();
    let mut facts = vec![
        ("pod", pod_name(&record.pod)),
        ("uid", record.pod.uid.clone()),
        ("container", record.container.clone()),
        ("network", record.network.clone()),
        ("interface", record.interface.clone()),
        ("addresses", addresses(record)),
        ("mac", record.mac.clone()),
        ("mtu", record.mtu.to_string()),
        ("namespace", format!("{} ({identity})", record.netns.path.display())),
        ("host link", format!("{} (index {}, {})", record.host_link, record.host_index, record.host_mac)),
        ("data path", data_path(record).to_owned()),
    ];
    facts.extend(record.data_path_reason.iter().map(|reason| ("", reason.clone())));
    facts.extend(record.pod.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))));
    let routes = |title, routes: Vec<(String, String)>| {
        routes.into_iter().map(move |(destination, way)| (title, format!("{destination} via {way}")))
    };
    facts.extend(routes("route in the pod", in_the_pod(record)));
    facts.extend(routes("route to it", on_the_host(record)));
    let traffic = |title, traffic: Option<&api::Traffic>| {
        let text = traffic.map(|traffic| {
            format!(
                "{} packets, {} bytes, {} dropped, {} errors",
                traffic.packets, traffic.bytes, traffic.dropped, traffic.errors
            )
        });
        (title, text.unwrap_or_else(|| "the link is gone".to_owned()))
    };
    facts.push(traffic("received", stats.and_then(|stats| stats.received.as_ref())));
    facts.push(traffic("sent", stats.and_then(|stats| stats.sent.as_ref())));
    if is_hooked(record) {
        facts.extend(data_path_counters(stats.and_then(|stats| stats.data_path.as_ref())));
    }
    facts.into_iter().map(|(key, value)| (key, if value.is_empty() { "-".into() } else { value })).collect()
}

/// What became of what the pod sent, and why it was dropped.
fn data_path_counters(counters: Option<&api::DataPathCounters>) -> Vec<(&'static str, String)> {
    let Some(counters) = counters else { return vec![("redirected", "not counted".to_owned())] };
    let of = |count: &api::Count| format!("{} packets, {} bytes", count.packets, count.bytes);
    let drops = counters.drops.iter().filter(|drop| drop.packets > 0);
    let reasons = drops.map(|drop| ("", format!("{} {}", drop.packets, drop.reason)));
    ways(counters).into_iter().map(|(way, count)| (way, of(count))).chain(reasons).collect()
}

/// Destination and way of each, as attach makes them of the record.
fn in_the_pod(record: &Record) -> Vec<(String, String)> {
    let of = |gateway| {
        pod_routes(record, gateway, 0).into_iter().map(|route| {
            let way = route.via.map_or_else(|| record.interface.clone(), |via| via.to_string());
            (format!("{}/{}", route.destination, route.prefix), way)
        })
    };
    gateways(record).flat_map(of).collect()
}

fn on_the_host(record: &Record) -> Vec<(String, String)> {
    let of = |address: &IpAddr| {
        let route = host_route(*address, record.host_index);
        (format!("{}/{}", route.destination, host_prefix(*address)), record.host_link.clone())
    };
    record.addresses.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(container: &str, namespace: &str, name: &str) -> Record {
        serde_json::from_value(json!({
            "version": 1, "state": "attached", "container": container, "interface": "eth0", "network": "n",
            "netns": { "path": "/run/netns/a", "dev": 1, "inode": 2 }, "addresses": ["10.0.0.2"],
            "host_link": "weft0", "host_index": 1, "mac": "", "host_mac": "", "mtu": 1500, "data_path": "redirect",
            "pod": { "namespace": namespace, "name": name, "uid": "" },
        }))
        .unwrap()
    }

    fn found(name: &str) -> Result<String, String> {
        let records = vec![
            record("abc", "default", "web"),
            record("abcd", "default", "db"),
            record("f00", "other", "web"),
            record("k8s/x", "", ""),
        ];
        let found = find(records, name).map_err(|err| err.to_string())?;
        assert_eq!(found.len(), 1);
        Ok(found[0].container.clone())
    }

    #[test]
    fn a_pod_is_found_by_any_name_that_is_its_alone() {
        for (name, container) in [
            ("abc", "abc"),
            ("abcd", "abcd"),
            ("f", "f00"),
            ("db", "abcd"),
            ("other/web", "f00"),
            ("k8s/x", "k8s/x"),
        ] {
            assert_eq!(found(name).as_deref(), Ok(container), "{name}");
        }
        assert_eq!(found("x").unwrap_err(), "no pod is called \"x\", and no container's id begins so");
        assert!(found("").is_err());
        let err = found("web").unwrap_err();
        assert_eq!(err, "\"web\" may be any of default/web (abc), other/web (f00)");
        assert!(found("ab").unwrap_err().contains("default/db (abcd)"));
    }
}
