//! Who holds an address.

use std::fmt;
use std::net::IpAddr;

use crate::Error;

/// One interface of one container: what leases and records are kept by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    container: String,
    interface: String,
}

impl Owner {
    /// Longest container id and interface name together, in bytes: an LMDB key has at most 511, of which one names
    /// the table and one parts the two.
    pub const MAX_LEN: usize = 509;

    /// Checks the two names.
    ///
    /// # Errors
    /// [`Error::OwnerName`] if one is empty or has a control character, [`Error::OwnerTooLong`].
    pub fn new(container: &str, interface: &str) -> Result<Owner, Error> {
        for (field, name) in [("container id", container), ("interface name", interface)] {
            if name.is_empty() || name.contains(char::is_control) {
                return Err(Error::OwnerName { field, name: name.into() });
            }
        }
        let length = container.len() + interface.len();
        if length > Self::MAX_LEN {
            return Err(Error::OwnerTooLong { length });
        }
        Ok(Owner { container: container.into(), interface: interface.into() })
    }

    /// The container's id.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The interface's name inside the container.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {} of container {}", self.interface, self.container)
    }
}

/// An address that is held.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    /// Who holds it.
    pub owner: Owner,
    /// The name of the network it was leased for.
    pub network: String,
    /// The address.
    pub address: IpAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_keys_are_refused() {
        let message =
            |container: &str, interface: &str| Owner::new(container, interface).unwrap_err().to_string();
        assert_eq!(message("", "eth0"), r#"container id "" is empty or has a control character"#);
        assert_eq!(message("a\0b", "eth0"), r#"container id "a\0b" is empty or has a control character"#);
        assert_eq!(message("a", ""), r#"interface name "" is empty or has a control character"#);
        let long = "c".repeat(Owner::MAX_LEN - 3);
        assert_eq!(
            message(&long, "eth0"),
            "container id and interface name have 510 bytes together, want at most 509"
        );
        Owner::new(&long[1..], "eth0").unwrap();
    }
}
