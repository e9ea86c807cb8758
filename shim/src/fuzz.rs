//! What the fuzz targets call: one function for each kind of input from outside, from its bytes to what is made of them. Bad
//! input has to end as an error that says what is wrong; what else may not happen is asserted here.

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use weft_ipam::{Owner, Store};

use crate::bandwidth::Bandwidth;
use crate::config::Config;
use crate::record::{DataPath, Names, Namespace, PodName, Record, State, VERSION};
use crate::{cni, daemon, nat, network, oci, routes, sandbox, standalone, state, task};

/// The network that is in the node's configuration.
pub(crate) const NETWORK: &str = "node";

/// A call of the CNI plugin: `NAME=VALUE` lines are its environment, and what follows an empty line its standard input.
/// `store` stays as it is.
pub fn cni(store: &Store, bytes: &[u8]) {
    let (variables, input) = environment(bytes);
    cni::fuzz::call(&node(), store, &|name| variable(&variables, name), input, bytes);
}

/// The node's configuration: `NAME=VALUE` lines are variables, and what follows an empty line the file.
pub fn config(bytes: &[u8]) {
    let (variables, text) = environment(bytes);
    let Ok(text) = std::str::from_utf8(text) else { return };
    let parsed = Config::parse(text, Path::new("fuzz.toml"));
    let loaded = parsed.and_then(|mut config| {
        config.override_from(&|name| variable(&variables, name))?;
        Ok(config)
    });
    match loaded {
        Ok(config) => {
            for (name, network) in &config.network {
                match cni::network(name, network) {
                    Ok(network) => check_ranges(&network.ranges),
                    Err(err) => check_error(&err, bytes),
                }
            }
        }
        Err(err) => check_error(&err, bytes),
    }
}

/// A record of the store.
pub fn record(bytes: &[u8]) {
    let Ok(owner) = Owner::new("c0ffee", "eth0") else { return };
    match Record::decode(&owner, bytes) {
        Ok(record) => check_record(&record),
        Err(err) => check_error(&err, bytes),
    }
}

/// A request to one of the services, or another text that containerd, an OCI runtime or the kernel gives to the shim. The first
/// byte says which.
pub fn request(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        b'a' => network::fuzz::attach(&node(), bytes),
        b'l' => network::fuzz::list(bytes),
        b'c' => task::fuzz::create(bytes),
        b'e' => task::fuzz::exec(bytes),
        b'k' => task::fuzz::checkpoint(bytes),
        b's' => sandbox::fuzz::create(&node(), bytes),
        b'j' => sandbox::fuzz::spec(&node(), bytes),
        b'n' => standalone(bytes),
        b'b' => daemon::fuzz::bootstrap(bytes),
        b'i' => daemon::fuzz::options(bytes),
        b'g' => task::fuzz::cgroup(&String::from_utf8_lossy(bytes)),
        b'o' => assert!(!oci::last_error(&String::from_utf8_lossy(bytes)).is_empty()),
        _ => {}
    }
}

/// The `config.json` of a container without CRI.
fn standalone(bytes: &[u8]) {
    let Ok(mut spec) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    if let Err(err) = standalone::asked(&spec) {
        check_error(&err, bytes);
    }
    standalone::new_network_namespace(&mut spec);
}

/// Requests to begin with, in the form that [`request`] takes.
#[must_use]
pub fn requests() -> Vec<Vec<u8>> {
    [network::fuzz::seeds(), task::fuzz::seeds(), sandbox::fuzz::seeds(), daemon::fuzz::seeds()].concat()
}

/// The message says something, in lower case unless it begins with a name, on one line, and is no longer than what it is about.
pub(crate) fn check_error(err: &dyn Error, input: &[u8]) {
    let text = err.to_string();
    let names = ["CNI_", "WEFT_", "IPv", "OCI "];
    let is_name = names.iter().any(|name| text.starts_with(name));
    assert!(is_name || !text.starts_with(|c: char| c.is_uppercase()), "{text:?}");
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
    let chain = crate::error::chain(err);
    assert!(chain.len() <= 4096 + 16 * input.len(), "{} bytes for {}", chain.len(), input.len());
}

pub(crate) fn check_ranges(ranges: &[weft_ipam::Range]) {
    for range in ranges {
        let (first, last) = range.ends();
        assert!(range.contains(first) && range.contains(last) && first <= last, "{range:?}");
        assert!(range.capacity() > 0 && !range.contains(range.gateway()), "{range:?}");
        assert!(range.subnet().contains(&first) && range.subnet().contains(&last), "{range:?}");
    }
}

/// Reads back as written, and everything that a detach makes of it can be made.
pub(crate) fn check_record(record: &Record) {
    let owner = match state::owner(record) {
        Ok(owner) => owner,
        Err(err) => return check_error(&err, record.container.as_bytes()),
    };
    match record.encode() {
        Ok(bytes) => assert_eq!(Record::decode(&owner, &bytes).ok().as_ref(), Some(record)),
        // Of a path, which JSON writes as text.
        Err(err) => check_error(&err, &[]),
    }
    if let Ok(names) = Names::of_record(record) {
        assert_eq!(names.ifb, Names::of(&owner).ifb);
    }
    for placed in nat::element::own(record) {
        assert!(!placed.element.key.is_empty(), "{placed:?}");
    }
    for address in &record.addresses {
        routes::pod_routes(record, routes::gateway(address), 1);
    }
    for limit in [&record.bandwidth.ingress, &record.bandwidth.egress].into_iter().flatten() {
        let bucket = limit.bucket(record.mtu);
        assert!(bucket.rate > 0 && bucket.burst > 0 && bucket.queue > 0, "{bucket:?}");
    }
    assert!(!record.to_string().is_empty());
    network::fuzz::tell(record);
}

/// One that is attached.
pub(crate) fn some_record(owner: &Owner) -> Record {
    let names = Names::of(owner);
    Record {
        version: VERSION,
        state: State::Attached,
        container: owner.container().into(),
        interface: owner.interface().into(),
        network: NETWORK.into(),
        netns: Namespace { path: "/run/netns/a".into(), dev: 4, inode: 7 },
        addresses: Vec::new(),
        host_link: names.host_link,
        host_index: 12,
        mac: names.mac.to_string(),
        host_mac: names.host_mac.to_string(),
        mtu: 1500,
        packets: weft_netns::PacketSizes::default(),
        data_path: DataPath::Redirect,
        data_path_reason: None,
        bandwidth: Bandwidth::default(),
        pod: PodName::default(),
        ports: Vec::new(),
        masquerade: None,
        destinations: Vec::new(),
        tombstone: None,
    }
}

/// A configuration with one network.
fn node() -> Config {
    let text = "[network.node]\nranges = [{ subnet = '10.88.0.0/24' }, { subnet = 'fd00:88::/64' }]";
    Config::parse(text, Path::new("fuzz.toml")).unwrap_or_default()
}

type Variables<'b> = Vec<(&'b [u8], &'b [u8])>;

fn environment(bytes: &[u8]) -> (Variables<'_>, &[u8]) {
    let (mut variables, mut rest) = (Vec::new(), bytes);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else { break };
        let (name, value) = line.split_at(equals);
        variables.push((name, value.get(1..).unwrap_or_default()));
    }
    (variables, rest)
}

/// As execve(2) passes it: without a zero byte.
fn variable(variables: &Variables<'_>, name: &str) -> Option<OsString> {
    let (_, value) = variables.iter().find(|(known, _)| *known == name.as_bytes())?;
    Some(OsString::from_vec(value.iter().copied().filter(|byte| *byte != 0).collect()))
}
