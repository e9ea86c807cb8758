//! What Attach asks for, checked: the same [`pod::Request`] that CNI ADD makes of its configuration.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_ipam::Owner;
use weft_netns::LinkName;

use crate::asked::Asked;
use crate::bandwidth::Bandwidth;
use crate::cni;
use crate::config::{self, Config};
use crate::pod;
use crate::proto::network as api;
use crate::record::PodName;

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("netns_path is empty")]
    NoNamespace,
    #[error("network is empty")]
    NoNetwork,
    #[error("interface")]
    Interface(#[source] weft_netns::Error),
    #[error("{field} {text:?} is no {want}")]
    Address { field: &'static str, text: String, want: &'static str },
    #[error("network {name:?}")]
    Network { name: String, source: Box<cni::Failure> },
}

/// Checks the request.
pub(super) fn request(
    config: &Config,
    owner: Owner,
    request: api::AttachRequest,
) -> Result<pod::Request, Error> {
    owner.interface().parse::<LinkName>().map_err(Error::Interface)?;
    if request.netns_path.is_empty() {
        return Err(Error::NoNamespace);
    }
    if request.network.is_empty() {
        return Err(Error::NoNetwork);
    }
    let mut network = config.network.get(&request.network).cloned().unwrap_or_default();
    if !request.ranges.is_empty() {
        network.ranges = request.ranges.iter().map(range).collect::<Result<_, _>>()?;
    }
    if request.mtu != 0 {
        network.mtu = Some(request.mtu);
    }
    let network = cni::network(&request.network, &network)
        .map_err(|source| Error::Network { name: request.network, source: Box::new(source) })?;
    let pod = PodName {
        namespace: request.pod_namespace,
        name: request.pod_name,
        uid: request.pod_uid,
        labels: request.labels.into_iter().collect(),
    };
    Ok(pod::Request {
        owner,
        netns: request.netns_path.into(),
        network,
        pod,
        asked: Asked::default(),
        bandwidth: Bandwidth::default(),
        ports: Vec::new(),
    })
}

fn range(range: &api::Range) -> Result<config::Range, Error> {
    let optional = |field, text: &str| match text {
        "" => Ok(None),
        text => parse::<IpAddr>(field, text, "address").map(Some),
    };
    let block = |field, text: &str| parse::<IpNet>(field, text, "subnet in CIDR form");
    Ok(config::Range {
        subnet: block("subnet", &range.subnet)?,
        start: optional("start", &range.start)?,
        end: optional("end", &range.end)?,
        gateway: optional("gateway", &range.gateway)?,
        exclude: range.exclude.iter().map(|text| block("exclude", text)).collect::<Result<_, _>>()?,
    })
}

/// What the parser says adds nothing to what was wanted.
fn parse<T: std::str::FromStr>(field: &'static str, text: &str, want: &'static str) -> Result<T, Error> {
    text.parse().ok().ok_or_else(|| Error::Address { field, text: text.to_owned(), want })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn good() -> api::AttachRequest {
        api::AttachRequest {
            netns_path: "/run/netns/a".into(),
            network: "n".into(),
            ranges: vec![api::Range { subnet: "10.1.0.0/24".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn asked(request: api::AttachRequest) -> Result<pod::Request, String> {
        let owner = Owner::new("c", "eth0").unwrap();
        super::request(&Config::default(), owner, request).map_err(|err| chain(&err))
    }

    #[test]
    fn a_request_is_what_cni_would_have_asked() {
        let labels = [("app".to_owned(), "web".to_owned())].into();
        let request = asked(api::AttachRequest { mtu: 1400, labels, ..good() }).unwrap();
        assert_eq!((request.network.name.as_str(), request.network.mtu), ("n", Some(1400)));
        assert_eq!(request.network.ranges[0].subnet(), "10.1.0.0/24".parse().unwrap());
        assert_eq!(request.pod.labels["app"], "web");
    }

    #[test]
    fn the_nodes_networks_serve_a_request_without_ranges() {
        let mut config = Config::default();
        let owner = || Owner::new("c", "eth0").unwrap();
        let bare = || api::AttachRequest { ranges: Vec::new(), ..good() };
        let err = super::request(&config, owner(), bare()).unwrap_err();
        assert!(chain(&err).contains("no [network.n]"), "{}", chain(&err));
        let range = serde_json::from_str(r#"{"subnet":"10.1.0.0/24"}"#).unwrap();
        config.network.insert(
            "n".into(),
            config::Network { ranges: vec![range], mtu: Some(1300), ..Default::default() },
        );
        assert_eq!(super::request(&config, owner(), bare()).unwrap().network.mtu, Some(1300));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let range = |change: fn(&mut api::Range)| {
            let mut request = good();
            change(&mut request.ranges[0]);
            request
        };
        for (request, wanted) in [
            (api::AttachRequest { netns_path: String::new(), ..good() }, "netns_path is empty"),
            (api::AttachRequest { network: String::new(), ..good() }, "network is empty"),
            (range(|range| range.subnet = "10.1".into()), "subnet \"10.1\" is no subnet in CIDR form"),
            (range(|range| range.start = "x".into()), "start \"x\" is no address"),
            (range(|range| range.end = "10.9.0.1".into()), "10.9.0.1"),
        ] {
            let text = asked(request).unwrap_err();
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }
}
