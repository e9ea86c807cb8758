//! For the fuzz targets: a call up to the first system call.

use weft_ipam::Store;

use super::env::{Command, Env, Variables};
use super::{Conf, Config, Failure, check, conf, error, request, result};
use crate::fuzz::{check_error, check_ranges, check_record, some_record};
use crate::pod;
use crate::record::Record;

/// Whatever the runtime says, it gets an answer or an error object. `all` is what it says: variables and input.
pub(crate) fn call(config: &Config, store: &Store, variables: Variables<'_>, input: &[u8], all: &[u8]) {
    let failure = match answer(config, variables, input) {
        Ok(Some((request, conf))) => return added(store, &request, &conf, all),
        Ok(None) => return,
        Err(failure) => failure,
    };
    check_error(&failure, all);
    if let Failure::Json(err) = &failure
        && err.is_data()
    {
        assert!(err.to_string().contains('`'), "{err} names no field");
    }
    let object = error::object(&conf::asked_version(input), &failure);
    assert!(object["msg"].as_str().is_some_and(|text| !text.is_empty()), "{object}");
    assert!(object["code"].as_u64().is_some_and(|code| code > 0), "{object}");
}

/// The request of an ADD, with its configuration.
fn answer(
    config: &Config,
    variables: Variables<'_>,
    input: &[u8],
) -> Result<Option<(pod::Request, Conf)>, Failure> {
    let command = Command::of(variables)?;
    if command == Command::Version {
        result::versions(conf::asked_version(input));
        return Ok(None);
    }
    let conf = Conf::parse(input)?;
    assert!(conf::VERSIONS.contains(&conf.version.as_str()));
    match command {
        Command::Add => {
            let request = request(config, &conf, &Env::of(command, variables)?)?;
            return Ok(Some((request, conf)));
        }
        Command::Del | Command::Check => {
            let env = Env::of(command, variables)?;
            let owner = env.owner()?;
            env.links();
            check::same_as_reported(&some_record(&owner), conf.prev_result.as_ref())?;
        }
        Command::Status => check_ranges(&conf.network(config)?.ranges),
        Command::Gc | Command::Version => {}
    }
    Ok(None)
}

/// What is asked for is what is leased, and the result says so.
fn added(store: &Store, request: &pod::Request, conf: &Conf, all: &[u8]) {
    let network = &request.network;
    check_ranges(&network.ranges);
    for port in &request.ports {
        assert!(port.host_port != 0 && port.pod_port != 0, "{port}");
    }
    let Ok(mut txn) = store.write() else { return };
    let leased = txn.reserve_these(&network.name, &network.ranges, &request.asked.ips, &request.owner);
    let leases = match leased {
        Ok(leases) => leases,
        Err(err) => {
            check_error(&err, all);
            let left = txn.reader().leases().map(|leases| leases.len());
            assert_eq!(left.ok(), Some(0), "refused with {err}, and leased all the same");
            return;
        }
    };
    let addresses: Vec<_> = leases.iter().map(|lease| lease.address).collect();
    assert!(request.asked.ips.iter().all(|asked| addresses.contains(asked)), "{addresses:?}");
    assert!(addresses.iter().all(|one| network.ranges.iter().any(|range| range.contains(*one))));
    let record = Record {
        network: network.name.clone(),
        netns: crate::record::Namespace { path: request.netns.clone(), dev: 4, inode: 7 },
        mtu: network.mtu.unwrap_or(1500),
        mac: request.asked.mac.map_or_else(|| some_record(&request.owner).mac, |mac| mac.to_string()),
        bandwidth: request.bandwidth.clone(),
        pod: request.pod.clone(),
        masquerade: crate::nat::masquerade(network, &addresses),
        ports: request.ports.clone(),
        addresses,
        ..some_record(&request.owner)
    };
    check_record(&record);
    let result = result::of(&record, conf);
    let Some(ips) = result["ips"].as_array() else {
        // The form of 0.1.0 and 0.2.0, which have no CHECK.
        let told = ["ip4", "ip6"].iter().filter(|family| result.get(**family).is_some()).count();
        assert_eq!(told, record.first_addresses().count(), "{result}");
        return;
    };
    assert_eq!(ips.len(), record.addresses.len(), "{result}");
    assert_eq!(check::same_as_reported(&record, Some(&result)).map_err(|err| err.to_string()), Ok(()));
}
