//! The node's configuration: `/etc/weft/config.toml`, then `WEFT_*` variables, parsed once into checked types.
//!
//! No file is needed: every key has a default. An unknown key is an error, so that a typing mistake is not
//! silently a default.

mod range;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use range::Range;
pub(crate) use range::sets;

/// Where the configuration is read from unless `WEFT_CONFIG` names another file.
pub const DEFAULT_PATH: &str = "/etc/weft/config.toml";

/// What a node's administrator can choose.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Leases, pod records, namespaces and sockets; on a tmpfs (`WEFT_RUN_DIR`).
    pub run_dir: PathBuf,
    /// Pinned programs and maps; on a bpffs, which weft mounts where none is (`WEFT_BPF_DIR`).
    pub bpf_dir: PathBuf,
    /// `false` sends every packet through the kernel's stack (`WEFT_FAST_PATH`).
    pub fast_path: bool,
    /// `false` has packets between pods leave by the host's end of the other pod's link, as on a kernel without
    /// `bpf_redirect_peer`, from the next pod on (`WEFT_REDIRECT_PEER`).
    pub redirect_peer: bool,
    /// The OCI runtime that executes containers.
    pub runtime: Runtime,
    /// Networks by name, for CNI configurations that name no ranges and for pods without CNI.
    pub network: BTreeMap<String, Network>,
}

/// The OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// A name to look up in `PATH`, or a path (`WEFT_RUNTIME`).
    pub binary: String,
    /// The runtime's own state, one folder per containerd namespace (`WEFT_RUNTIME_ROOT`).
    pub root: PathBuf,
}

/// One network: the ranges that its pods' addresses come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// A pod gets one address of each family that has a range; ranges of a family are tried in order. A list of ranges among them is
    /// a set of its own, of which the pod gets another address of each family.
    #[serde(deserialize_with = "sets")]
    pub ranges: Vec<Range>,
    /// Bytes; `None` takes the MTU of the node's default route, and IPv4's packet sizes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Whether the outside sees the host's address in place of a pod's; `None`: in place of a private one.
    #[serde(default)]
    pub masquerade: Option<bool>,
    /// Destinations outside the ranges that see the pod's address all the same.
    #[serde(default)]
    pub masquerade_except: Vec<ipnet::IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            run_dir: "/run/weft".into(),
            bpf_dir: "/sys/fs/bpf/weft".into(),
            fast_path: true,
            redirect_peer: true,
            runtime: Runtime::default(),
            network: BTreeMap::new(),
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime { binary: "runc".into(), root: "/run/weft/runtime".into() }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file exists and cannot be read, or `WEFT_CONFIG` names none.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of another type.
    #[error("parse configuration {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        source: toml::de::Error,
    },
    /// A `WEFT_*` variable does not hold what it should.
    #[error("environment variable {name}: got {value:?}, want {want}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        want: &'static str,
    },
}

impl Config {
    /// Reads `WEFT_CONFIG` or [`DEFAULT_PATH`], then the `WEFT_*` variables, which win.
    ///
    /// # Errors
    /// A missing file is an error only when `WEFT_CONFIG` names it.
    pub fn load() -> Result<Config, Error> {
        let variables = |name: &str| std::env::var_os(name);
        let named = variable(&variables, "WEFT_CONFIG")?;
        let path = PathBuf::from(named.as_deref().unwrap_or(DEFAULT_PATH));
        let mut config = match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound && named.is_none() => Config::default(),
            Err(source) => return Err(Error::Read { path, source }),
        };
        config.override_from(&variables)?;
        Ok(config)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Config, Error> {
        toml::from_str(text).map_err(|source| Error::Parse { path: path.into(), source })
    }

    pub(crate) fn override_from(&mut self, variables: Variables<'_>) -> Result<(), Error> {
        if let Some(dir) = variable(variables, "WEFT_RUN_DIR")? {
            self.run_dir = dir.into();
        }
        if let Some(dir) = variable(variables, "WEFT_BPF_DIR")? {
            self.bpf_dir = dir.into();
        }
        if let Some(binary) = variable(variables, "WEFT_RUNTIME")? {
            self.runtime.binary = binary;
        }
        if let Some(root) = variable(variables, "WEFT_RUNTIME_ROOT")? {
            self.runtime.root = root.into();
        }
        if let Some(value) = switch(variables, "WEFT_FAST_PATH")? {
            self.fast_path = value;
        }
        if let Some(value) = switch(variables, "WEFT_REDIRECT_PEER")? {
            self.redirect_peer = value;
        }
        Ok(())
    }
}

fn switch(variables: Variables<'_>, name: &'static str) -> Result<Option<bool>, Error> {
    match variable(variables, name)? {
        None => Ok(None),
        Some(value) => match value.as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(Error::Variable { name, value, want: "true or false" }),
        },
    }
}

/// Where variables are looked up: in the process's environment.
type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn variable(variables: Variables<'_>, name: &'static str) -> Result<Option<String>, Error> {
    match variables(name).map(OsString::into_string) {
        Some(Ok(value)) if !value.is_empty() => Ok(Some(value)),
        Some(Err(value)) => {
            Err(Error::Variable { name, value: value.to_string_lossy().into_owned(), want: "UTF-8 text" })
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn a_network_has_ranges_in_the_spelling_of_host_local() {
        let config = parse(
            r#"
            fast_path = false
            [network.default]
            ranges = [
              { subnet = "10.88.0.0/16", rangeStart = "10.88.1.0", exclude = ["10.88.2.0/24"] },
              { subnet = "fd00:88::/64", gateway = "fd00:88::1" },
            ]
            "#,
        )
        .unwrap();
        let network = &config.network["default"];
        assert!(!config.fast_path);
        assert_eq!(network.ranges[0].start, Some("10.88.1.0".parse().unwrap()));
        assert_eq!(network.ranges[0].exclude, ["10.88.2.0/24".parse().unwrap()]);
        assert_eq!(network.ranges[1].gateway, Some("fd00:88::1".parse().unwrap()));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let err = parse("fastpath = true").unwrap_err();
        let text = crate::error::chain(&err);
        assert!(text.starts_with("parse configuration test.toml: "), "{text}");
        assert!(text.contains("fastpath"), "{text}");
    }
}
