//! Containers without CRI: `ctr run`, nerdctl. One whose spec asks for a *new* network namespace and carries the
//! annotation `weft.dev/network: NAME` gets the namespace, and an interface on that network of the node's
//! configuration, before the OCI runtime is called.
//!
//! Under CRI the namespace and the address come first, from containerd and the CNI plugin; nothing here is used then.

use std::path::PathBuf;

use serde_json::Value;
use weft_ipam::Owner;
use weft_netns::NetNs;

use crate::asked::{self, Asked};
use crate::bandwidth::Bandwidth;
use crate::cni;
use crate::config::Config;
use crate::pod::{self, DetachError, Links, Request};
use crate::record::PodName;

/// The annotation that asks for a network; its value is the network's name.
pub(crate) const ANNOTATION: &str = "weft.dev/network";

/// Why a container that asked for a network has none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("annotation {ANNOTATION}: network {name:?} is not in the node's configuration")]
    NoNetwork { name: String },
    #[error("annotation {ANNOTATION}: the container does not ask for a network namespace of its own")]
    NoNamespace,
    #[error("network {name:?}")]
    Network { name: String, source: Box<cni::Failure> },
    #[error("addresses that are asked for")]
    Asked(#[from] asked::Error),
    #[error("make the container's network namespace")]
    Namespace(#[source] weft_netns::Error),
    #[error("make the folder of network namespaces {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("attach the container")]
    Attach(#[source] pod::Error),
}

/// Attaches the container if its spec asks for it, and writes the namespace's path into the spec.
///
/// # Errors
/// Nothing is left behind.
pub(crate) async fn attach(
    config: &Config,
    namespace: &str,
    id: &str,
    spec: &mut Value,
) -> Result<(), Error> {
    let Some(name) = spec["annotations"][ANNOTATION].as_str().map(str::to_owned) else { return Ok(()) };
    let asked = asked(spec)?;
    let entry = new_network_namespace(spec).ok_or(Error::NoNamespace)?;
    let network = config.network.get(&name).ok_or_else(|| Error::NoNetwork { name: name.clone() })?;
    let network = cni::network(&name, network);
    let network = network.map_err(|source| Error::Network { name, source: Box::new(source) })?;
    let owner = owner(namespace, id).map_err(Error::Attach)?;
    let netns = pin_path(config, namespace, id);
    entry["path"] = netns.to_string_lossy().into();
    make_namespace(&netns)?;
    let pod = PodName { namespace: namespace.to_owned(), name: id.to_owned(), ..PodName::default() };
    let (bandwidth, ports) = (Bandwidth::default(), Vec::new());
    let request = Request { owner, netns, network, asked, bandwidth, pod, ports };
    if let Err(err) = pod::attach(config, &request).await {
        // What stopped the attach is what the user has to know; a pin that stays is removed by `detach`.
        drop(NetNs::unpin(&request.netns));
        return Err(Error::Attach(err));
    }
    Ok(())
}

/// Undoes [`attach`]; a container that had no network is left alone.
///
/// # Errors
/// All that went wrong, after everything was tried.
pub(crate) async fn detach(config: &Config, namespace: &str, id: &str) -> Result<(), DetachError> {
    let pin = pin_path(config, namespace, id);
    if !pin.exists() {
        return Ok(());
    }
    let mut errors = match pod::detach_all(config, &container(namespace, id), Links::DieWithNamespace).await {
        Ok(()) => Vec::new(),
        Err(DetachError(errors)) => errors,
    };
    if let Err(err) = NetNs::unpin(&pin) {
        errors.push(pod::Error::Namespace(err));
    }
    if errors.is_empty() { Ok(()) } else { Err(DetachError(errors)) }
}

/// The addresses that the annotations ask for by name.
pub(crate) fn asked(spec: &Value) -> Result<Asked, Error> {
    let annotation = |name: &str| spec["annotations"][name].as_str();
    let ips = annotation(asked::IPS).map(asked::list).unwrap_or_default();
    let mac = annotation(asked::MAC).map(str::to_owned);
    Ok(Asked::first_of(vec![("annotation weft.dev/ips", ips)], vec![("annotation weft.dev/mac", mac)])?)
}

/// The entry of the spec that asks for a new network namespace (runtime-spec, config-linux.md: no `path`).
pub(crate) fn new_network_namespace(spec: &mut Value) -> Option<&mut Value> {
    let entries = spec.pointer_mut("/linux/namespaces")?.as_array_mut()?;
    entries
        .iter_mut()
        .find(|entry| entry["type"] == "network" && entry["path"].as_str().is_none_or(str::is_empty))
}

fn make_namespace(path: &std::path::Path) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::Folder { path: folder.into(), source })?;
    }
    NetNs::create().and_then(|netns| netns.pin(path)).map_err(Error::Namespace)
}

fn pin_path(config: &Config, namespace: &str, id: &str) -> PathBuf {
    config.run_dir.join("netns").join(format!("{namespace}-{id}"))
}

/// Unlike under CRI, ids are unique within a containerd namespace only. No CNI container id has a slash.
fn container(namespace: &str, id: &str) -> String {
    format!("{namespace}/{id}")
}

fn owner(namespace: &str, id: &str) -> Result<Owner, pod::Error> {
    Owner::new(&container(namespace, id), asked::INTERFACE).map_err(pod::Error::Lease)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_an_entry_without_a_path_asks_for_a_new_namespace() {
        for (entry, new) in [
            (json!({ "type": "network" }), true),
            (json!({ "type": "network", "path": "" }), true),
            (json!({ "type": "network", "path": "/run/netns/a" }), false),
            (json!({ "type": "ipc" }), false),
        ] {
            let mut spec = json!({ "linux": { "namespaces": [entry] } });
            assert_eq!(new_network_namespace(&mut spec).is_some(), new, "{spec}");
        }
        assert!(new_network_namespace(&mut json!({})).is_none());
    }

    #[test]
    fn the_annotations_of_a_container_ask_for_addresses() {
        let spec =
            json!({ "annotations": { "weft.dev/ips": "10.0.0.7", "weft.dev/mac": "02:00:00:00:00:07" } });
        let asked = asked(&spec).unwrap();
        assert_eq!(asked.ips, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(asked.mac, Some("02:00:00:00:00:07".parse().unwrap()));
        assert_eq!(super::asked(&json!({})).unwrap(), Asked::default());
        let err = super::asked(&json!({ "annotations": { "weft.dev/mac": "x" } })).unwrap_err();
        assert!(matches!(err, Error::Asked(asked::Error::Mac { .. })), "{err}");
    }

    #[test]
    fn a_linux_part_that_is_no_object_asks_for_no_namespace() {
        for mut spec in [json!({ "linux": 5 }), json!({ "linux": { "namespaces": 5 } }), json!([]), json!(9)]
        {
            assert!(new_network_namespace(&mut spec).is_none(), "{spec}");
        }
    }
}
