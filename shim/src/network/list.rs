//! Which attachments are told, and how many at a time.
//!
//! A page ends where the next begins by key, not by number, so what comes and goes between two pages moves nothing.

use crate::proto::network as api;
use crate::record::Record;

/// The most attachments in one answer: ttrpc's messages have 4 MB at most (`MESSAGE_LENGTH_MAX`), and one attachment about 1 kB.
pub(crate) const PAGE: usize = 1000;

/// Some attachments, and where the rest begins.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) records: Vec<Record>,
    /// Empty: there are no more.
    pub(crate) next: String,
}

/// A page token that was not made here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("page_token {0:?} is none that was given out")]
pub(crate) struct UnknownToken(pub(super) String);

/// The next page of `records`, which are in the order of container and interface.
///
/// # Errors
/// [`UnknownToken`].
pub(crate) fn page(
    records: Vec<Record>,
    filter: &api::Filter,
    size: u32,
    token: &str,
) -> Result<Page, UnknownToken> {
    let size = usize::try_from(size).ok().filter(|size| (1..=PAGE).contains(size)).unwrap_or(PAGE);
    // No name of a link has a slash.
    let behind = match (token, token.split_once('/')) {
        ("", _) => None,
        (_, Some((interface, container))) => Some((container, interface)),
        (token, None) => return Err(UnknownToken(token.to_owned())),
    };
    let key = |record: &Record| (record.container.clone(), record.interface.clone());
    let is_next = |record: &Record| {
        behind.is_none_or(|behind| (record.container.as_str(), record.interface.as_str()) > behind)
    };
    let mut records: Vec<Record> =
        records.into_iter().filter(|record| is_next(record) && matches(filter, record)).collect();
    let more = records.len() > size;
    records.truncate(size);
    let last = records.last().filter(|_| more).map(key);
    let next = last.map(|(container, interface)| format!("{interface}/{container}")).unwrap_or_default();
    Ok(Page { records, next })
}

/// Whether the attachment has all that the filter names.
pub(crate) fn matches(filter: &api::Filter, record: &Record) -> bool {
    let same = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
    same(&filter.pod_namespace, &record.pod.namespace)
        && same(&filter.pod_name, &record.pod.name)
        && same(&filter.network, &record.network)
        && same(&filter.container_id, &record.container)
        && filter.labels.iter().all(|(key, value)| record.pod.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(container: &str, interface: &str) -> Record {
        serde_json::from_value(json!({
            "version": 1, "state": "attached", "container": container, "interface": interface, "network": "n",
            "netns": { "path": "/run/netns/a", "dev": 1, "inode": 2 }, "addresses": [], "host_link": "weft0",
            "host_index": 1, "mac": "", "host_mac": "", "mtu": 1500, "data_path": "redirect",
            "pod": { "namespace": "ns", "name": container, "uid": "", "labels": { "app": "web" } },
        }))
        .unwrap()
    }

    fn all() -> Vec<Record> {
        [("a", "eth0"), ("a", "eth1"), ("b", "eth0"), ("k8s.io/c", "eth0"), ("z", "eth0")]
            .map(|(container, interface)| record(container, interface))
            .into()
    }

    #[test]
    fn pages_of_any_size_tell_each_attachment_once() {
        for size in 0..7 {
            let (mut seen, mut token) = (Vec::new(), String::new());
            loop {
                let page = page(all(), &api::Filter::new(), size, &token).unwrap();
                assert!(page.records.len() <= usize::try_from(size).unwrap() || size == 0);
                seen.extend(page.records);
                token = page.next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(seen, all(), "pages of {size}");
        }
    }

    #[test]
    fn what_goes_between_two_pages_moves_nothing() {
        let first = page(all(), &api::Filter::new(), 2, "").unwrap();
        let rest: Vec<Record> = all().into_iter().filter(|record| record.container != "a").collect();
        let second = page(rest, &api::Filter::new(), 2, &first.next).unwrap();
        let names: Vec<_> = second.records.iter().map(|record| record.container.as_str()).collect();
        assert_eq!(names, ["b", "k8s.io/c"]);
    }

    #[test]
    fn a_token_that_was_not_given_out_is_an_error() {
        assert_eq!(
            page(all(), &api::Filter::new(), 2, "x").unwrap_err().to_string(),
            "page_token \"x\" is none that was given out"
        );
    }

    #[test]
    fn a_filter_lets_through_what_has_all_that_it_names() {
        let label = |value: &str| [("app".to_owned(), value.to_owned())].into();
        let filters = [
            (api::Filter { pod_namespace: "ns".into(), pod_name: "b".into(), ..Default::default() }, 1),
            (api::Filter { pod_namespace: "other".into(), ..Default::default() }, 0),
            (api::Filter { container_id: "a".into(), ..Default::default() }, 2),
            (api::Filter { network: "n".into(), labels: label("web"), ..Default::default() }, 5),
            (api::Filter { labels: label("db"), ..Default::default() }, 0),
        ];
        for (filter, count) in filters {
            assert_eq!(page(all(), &filter, 0, "").unwrap().records.len(), count, "{filter}");
        }
    }
}
