//! Names that cannot be wrong.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The name of a link: what `dev_valid_name` of the kernel's net/core/dev.c accepts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = Error;

    fn from_str(name: &str) -> Result<LinkName, Error> {
        // isspace() of the kernel's ctype counts 0xa0 too, which in UTF-8 is only ever a part of a character.
        let bad = |byte: u8| {
            byte == b'/'
                || byte == b':'
                || byte == 0
                || byte == 0xa0
                || (9..=13).contains(&byte)
                || byte == b' '
        };
        let problem = match name {
            "" => "is empty",
            "." | ".." => "is a name of the file system",
            _ if name.len() > 15 => "has more than 15 bytes",
            _ if name.bytes().any(bad) => "has a slash, a colon or white space",
            _ => return Ok(LinkName(name.to_owned())),
        };
        Err(Error::LinkName { name: name.to_owned(), problem })
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// From the bytes in the order of the wire.
    pub const fn new(bytes: [u8; 6]) -> Mac {
        Mac(bytes)
    }

    /// The bytes in the order of the wire.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mac, Error> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut parts = text.split(':');
            for byte in &mut bytes {
                let part = parts
                    .next()
                    .filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
                *byte = u8::from_str_radix(part, 16).ok()?;
            }
            parts.next().is_none().then_some(Mac(bytes))
        };
        parse().ok_or_else(|| Error::Mac { text: text.to_owned() })
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_is_what_the_kernel_accepts() {
        for good in ["eth0", "a", "123456789012345", "ä", "weft-0.1@x"] {
            assert_eq!(good.parse::<LinkName>().unwrap().as_str(), good);
        }
        for (bad, problem) in [
            ("", "is empty"),
            (".", "file system"),
            ("..", "file system"),
            ("1234567890123456", "15 bytes"),
            ("eth/0", "slash"),
            ("eth:0", "colon"),
            ("eth 0", "white space"),
            ("eth\n", "white space"),
        ] {
            let text = bad.parse::<LinkName>().unwrap_err().to_string();
            assert!(text.contains(problem), "{text}");
        }
    }

    #[test]
    fn a_mac_address_reads_back_as_printed() {
        let mac = Mac::new([2, 0, 0x5e, 0xff, 1, 0xab]);
        assert_eq!(mac.to_string(), "02:00:5e:ff:01:ab");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in [
            "",
            "02:00:5e:ff:01",
            "02:00:5e:ff:01:ab:cd",
            "2:0:5e:ff:1:ab",
            "02:00:5e:ff:01:+b",
            "02-00-5e-ff-01-ab",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
