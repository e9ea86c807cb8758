//! Addresses that a pod asks for by name: IP addresses out of its network's ranges, and the MAC address of its end.
//!
//! They can be said in four places, and the first of these that says anything counts: the runtime's capability
//! arguments (`runtimeConfig.ips`, `mac`), the configuration's `args.cni`, `CNI_ARGS` (`IP`, `MAC`), and the pod's
//! annotations. That is the order of the reference plugin `static` for addresses and of `bridge` for the MAC address; the
//! annotations come last because they are said once for the pod, and the others for one interface of it.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_netns::Mac;

/// The annotation with the addresses of `eth0`: separated by commas, one at most of each family, or of each set of ranges.
pub(crate) const IPS: &str = "weft.dev/ips";
/// The annotation with the MAC address of `eth0`.
pub(crate) const MAC: &str = "weft.dev/mac";
/// The interface that annotations speak of: the one whose addresses are the pod's for Kubernetes. Others are told apart by
/// whoever asks for them (Multus: `ips` and `mac` of a network selection, which become capability arguments).
pub(crate) const INTERFACE: &str = "eth0";

/// What an interface is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) mac: Option<Mac>,
}

/// Why what was asked for is no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{place}: {text:?} is no IP address, with or without a prefix length")]
    Ip { place: &'static str, text: String },
    #[error("{place}")]
    Mac { place: &'static str, source: weft_netns::Error },
    #[error("{place}: {mac} is {problem}")]
    NoUnicast { place: &'static str, mac: Mac, problem: &'static str },
}

/// One place that may say something; nothing is as good as an empty list.
pub(crate) type Said<T> = (&'static str, T);

impl Asked {
    /// Takes of each the first place that says anything.
    pub(crate) fn first_of(
        ips: Vec<Said<Vec<String>>>,
        macs: Vec<Said<Option<String>>>,
    ) -> Result<Asked, Error> {
        let ips = ips.into_iter().find(|(_, ips)| !ips.is_empty());
        let mac = macs.into_iter().find_map(|(place, mac)| mac.map(|mac| (place, mac)));
        Ok(Asked {
            ips: ips.map_or(Ok(Vec::new()), |(place, texts)| addresses(place, &texts))?,
            mac: mac.map(|(place, text)| unicast(place, &text)).transpose()?,
        })
    }
}

/// The members of a list in one text.
pub(crate) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned).collect()
}

/// A prefix length is read and not used: a pod's address is a host of its own. The same address twice is one.
fn addresses(place: &'static str, texts: &[String]) -> Result<Vec<IpAddr>, Error> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        let address = text.parse::<IpNet>().map(|net| net.addr()).ok().or_else(|| text.parse().ok());
        let address = address.ok_or_else(|| Error::Ip { place, text: text.clone() })?.to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn unicast(place: &'static str, text: &str) -> Result<Mac, Error> {
    let mac: Mac = text.trim().parse().map_err(|source| Error::Mac { place, source })?;
    // The kernel takes neither (`is_valid_ether_addr` in include/linux/etherdevice.h), and says EADDRNOTAVAIL only.
    match mac.bytes() {
        [0, 0, 0, 0, 0, 0] => Err(Error::NoUnicast { place, mac, problem: "all zeroes" }),
        [first, ..] if first & 1 == 1 => Err(Error::NoUnicast { place, mac, problem: "a group's address" }),
        _ => Ok(mac),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn asked(ips: &[&str], mac: Option<&str>) -> Result<Asked, Error> {
        let ips = ips.iter().map(|text| (*text).to_owned()).collect();
        Asked::first_of(vec![("there", ips)], vec![("there", mac.map(str::to_owned))])
    }

    #[test]
    fn the_first_place_that_says_anything_counts() {
        let said = |text: &str| vec![text.to_owned()];
        let asked = Asked::first_of(
            vec![("a", vec![]), ("b", said("10.0.0.2/24")), ("c", said("nonsense"))],
            vec![("a", None), ("b", Some("02:00:00:00:00:01".into())), ("c", Some("nonsense".into()))],
        );
        let mac = Some(Mac::new([2, 0, 0, 0, 0, 1]));
        assert_eq!(asked.unwrap(), Asked { ips: vec!["10.0.0.2".parse().unwrap()], mac });
        assert_eq!(Asked::first_of(vec![], vec![]).unwrap(), Asked::default());
    }

    #[test]
    fn an_address_may_have_a_prefix_length_and_is_taken_once() {
        let ips = asked(&["10.0.0.2/24", "fd00::2", "10.0.0.2", "::ffff:10.0.0.2"], None).unwrap().ips;
        assert_eq!(ips, ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
        assert_eq!(list(" 10.0.0.2, fd00::2 ,,"), ["10.0.0.2", "fd00::2"]);
    }

    #[test]
    fn what_is_no_address_is_named_with_its_place() {
        for text in ["", "10.0.0", "10.0.0.2/33", "10.0.0.2/", "web", "fd00::2::1", "10.0.0.2 "] {
            let err = asked(&[text], None).unwrap_err();
            let wanted = format!("there: {text:?} is no IP address, with or without a prefix length");
            assert_eq!(err.to_string(), wanted);
        }
        for (text, wanted) in [
            (
                "02:00:00:00:00",
                "there: mac address \"02:00:00:00:00\": want six bytes in hexadecimal, separated by colons",
            ),
            ("00:00:00:00:00:00", "there: 00:00:00:00:00:00 is all zeroes"),
            ("01:00:5e:00:00:01", "there: 01:00:5e:00:00:01 is a group's address"),
            ("ff:ff:ff:ff:ff:ff", "there: ff:ff:ff:ff:ff:ff is a group's address"),
        ] {
            assert_eq!(chain(&asked(&[], Some(text)).unwrap_err()), wanted);
        }
    }
}
