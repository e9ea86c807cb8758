//! Sysctls of the calling thread's namespace, by their path below `/proc/sys` (`net/ipv4/ip_forward`).

use crate::{Error, LinkName};

/// The value, without the line's end.
///
/// # Errors
/// `ENOENT` if the kernel has no such key.
pub fn read(key: &str) -> Result<String, Error> {
    let text = std::fs::read_to_string(path(key));
    let text = text.map_err(|source| Error::Sysctl { op: "read", key: key.to_owned(), source })?;
    Ok(text.trim_end().to_owned())
}

/// Sets the value.
///
/// # Errors
/// `EINVAL` if the kernel does not take it.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    std::fs::write(path(key), value).map_err(|source| Error::Sysctl {
        op: "write",
        key: key.to_owned(),
        source,
    })
}

/// Sets the value unless it is that already: some writes take the lock of all links.
///
/// # Errors
/// As [`read`] and [`write`].
pub fn ensure(key: &str, value: &str) -> Result<(), Error> {
    if read(key)? == value { Ok(()) } else { write(key, value) }
}

/// Has a link take no routes, addresses or hop limits from what calls itself a router there (RFC 4861). A node that forwards IPv6
/// does so anyway, but one whose pods have IPv4 only need not forward it. A kernel without IPv6 has nothing to refuse.
///
/// # Errors
/// As [`write()`].
pub fn refuse_routers(link: &LinkName) -> Result<(), Error> {
    match write(&format!("net/ipv6/conf/{link}/accept_ra"), "0") {
        Err(Error::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Below `/proc/sys/net` a thread sees its own namespace (kernel: net/sysctl_net.c, `net_ctl_header_lookup`).
fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}
