//! Which host ports a pod can have, and which of them the kernel has.

use std::net::IpAddr;

use weft_netns::Netfilter;

use super::{Error, TABLE, element, is_local, kernel};
use crate::pod;
use crate::record::HostPort;

/// Refuses a port at an address of a family that the pod has no address of: it would lead to nowhere, and nobody would know.
/// `portmap` skips it in silence.
///
/// # Errors
/// [`Error::Unservable`].
pub(crate) fn refuse_unservable(ports: &[HostPort], addresses: &[IpAddr]) -> Result<(), Error> {
    for port in ports {
        let Some(at) = port.host_ip else { continue };
        if !addresses.iter().any(|address| address.is_ipv4() == at.is_ipv4()) {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let family = if at.is_ipv4() { "v4" } else { "v6" };
            return Err(Error::Unservable { port: *port, family, addresses: addresses.join(", ") });
        }
    }
    Ok(())
}

/// What the kernel's table says of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    Yes,
    /// There is no such port.
    No,
    /// It leads to something else.
    Elsewhere,
}

/// The kernel's table, to be looked at.
pub(crate) struct Table(Netfilter);

impl Table {
    /// That of the calling thread's namespace, which may be missing.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open() -> Result<Table, pod::Error> {
        Netfilter::open().map(Table).map_err(kernel("look at the host ports"))
    }

    /// Whether the port leads to the address.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn published(&self, port: &HostPort, address: IpAddr) -> Result<Published, pod::Error> {
        let wanted = element::publish(port, address);
        let there = self.0.element(TABLE, &wanted.set, &wanted.element);
        Ok(match there.map_err(kernel("look up a host port"))? {
            None => Published::No,
            Some(there) if there == wanted.element => Published::Yes,
            Some(_) => Published::Elsewhere,
        })
    }
}

/// Whether the port is at an address that the host does not have now, and so leads nothing anywhere.
pub(crate) fn is_absent(port: &HostPort) -> bool {
    port.host_ip.is_some_and(|at| !at.is_unspecified() && !is_local(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Protocol;

    fn refused(host_ip: Option<&str>, addresses: &[&str]) -> Option<String> {
        let host_ip = host_ip.map(|text| text.parse().unwrap());
        let port = HostPort { protocol: Protocol::Udp, host_port: 53, pod_port: 5353, host_ip };
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        refuse_unservable(&[port], &addresses).err().map(|err| err.to_string())
    }

    #[test]
    fn a_port_needs_an_address_of_its_family() {
        let (v4, v6) = ("10.0.0.2", "fd00::2");
        for (host_ip, addresses) in [
            (None, &[v6][..]),
            (Some("192.0.2.1"), &[v4]),
            (Some("0.0.0.0"), &[v6, v4]),
            (Some("::1"), &[v4, v6]),
        ] {
            assert_eq!(refused(host_ip, addresses), None, "{host_ip:?} {addresses:?}");
        }
        let text = "host port 192.0.2.1:53/udp is at an IPv4 address, and the pod has none to lead it to: its \
                    addresses are fd00::2";
        assert_eq!(refused(Some("192.0.2.1"), &[v6]).as_deref(), Some(text));
        assert!(
            refused(Some("0.0.0.0"), &[v6])
                .unwrap()
                .contains("host port 0.0.0.0:53/udp is at an IPv4 address")
        );
        assert!(refused(Some("::"), &[v4]).unwrap().contains("host port [::]:53/udp is at an IPv6 address"));
    }
}
