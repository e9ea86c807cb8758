//! For the fuzz targets: the requests of `weft.network.v1`, up to the store.

use protobuf::Message;
use weft_ipam::Owner;

use super::answer::attachment;
use super::{Config, api, attach, list};
use crate::fuzz::{NETWORK, check_error, check_ranges, some_record};
use crate::record::{PodName, Record};

/// Attach, and with the same names Detach, Check and Status.
pub(crate) fn attach(config: &Config, bytes: &[u8]) {
    let Ok(request) = api::AttachRequest::parse_from_bytes(bytes) else { return };
    let owner = match Owner::new(&request.container_id, &request.interface) {
        Ok(owner) => owner,
        Err(err) => return check_error(&err, bytes),
    };
    match attach::request(config, owner, request) {
        Ok(request) => check_ranges(&request.network.ranges),
        Err(err) => check_error(&err, bytes),
    }
}

/// Page by page every attachment that the filter lets through comes, once.
pub(crate) fn list(bytes: &[u8]) {
    let Ok(request) = api::ListRequest::parse_from_bytes(bytes) else { return };
    let page = |size: u32, token: &str| list::page(records(), &request.filter, size, token);
    if let Err(err) = page(request.page_size, &request.page_token) {
        check_error(&err, bytes);
    }
    let wanted: Vec<Record> =
        records().into_iter().filter(|record| list::matches(&request.filter, record)).collect();
    let (mut found, mut token) = (Vec::new(), String::new());
    while let Ok(next) = page(request.page_size.min(3), &token) {
        assert!(!next.records.is_empty() || next.next.is_empty(), "an empty page with another after it");
        found.extend(next.records);
        token = next.next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, wanted);
}

/// An attachment as clients are told of it.
pub(crate) fn tell(record: &Record) {
    let told = attachment(record.clone());
    let bytes = told.write_to_bytes().unwrap_or_default();
    assert_eq!(api::Attachment::parse_from_bytes(&bytes).ok(), Some(told));
}

fn records() -> Vec<Record> {
    let name = |name: &str| PodName { name: name.into(), namespace: "ns".into(), ..Default::default() };
    let one = |(container, interface): (&str, &str)| {
        let owner = Owner::new(container, interface).ok()?;
        Some(Record { pod: name(container), ..some_record(&owner) })
    };
    let owners = [("a", "eth0"), ("a", "eth1"), ("a/b", "eth0"), ("b", "eth0"), ("c", "eth0")];
    owners.into_iter().filter_map(one).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let range = api::Range {
        subnet: "10.1.0.0/24".into(),
        start: "10.1.0.9".into(),
        end: "10.1.0.99".into(),
        gateway: "10.1.0.1".into(),
        exclude: vec!["10.1.0.16/28".into()],
        ..Default::default()
    };
    let attach = api::AttachRequest {
        container_id: "c".into(),
        interface: "eth0".into(),
        netns_path: "/run/netns/a".into(),
        network: NETWORK.into(),
        ranges: vec![range],
        mtu: 1400,
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..Default::default()
    };
    let filter = api::Filter { pod_namespace: "ns".into(), pod_name: "a".into(), ..Default::default() };
    let list = api::ListRequest {
        filter: Some(filter).into(),
        page_size: 2,
        page_token: "eth0/a".into(),
        ..Default::default()
    };
    let bytes = |kind: u8, message: &dyn protobuf::MessageDyn| {
        [vec![kind], message.write_to_bytes_dyn().unwrap_or_default()].concat()
    };
    vec![bytes(b'a', &attach), bytes(b'l', &list), bytes(b'l', &api::ListRequest::new())]
}
