//! The `CNI_*` variables (CNI specification 1.1, section 2).

use std::ffi::OsString;
use std::path::PathBuf;

use weft_ipam::Owner;
use weft_netns::LinkName;

use super::error::Failure;
use crate::pod::Links;
use crate::record::PodName;

/// What the runtime wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Status,
    Version,
    Gc,
}

/// Where variables are looked up: in the process's environment.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Command {
    pub(super) fn from_env() -> Result<Command, Failure> {
        Self::of(&|name| std::env::var_os(name))
    }

    pub(super) fn of(variables: Variables<'_>) -> Result<Command, Failure> {
        let name = "CNI_COMMAND";
        match required(variables, name)?.as_str() {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "STATUS" => Ok(Command::Status),
            "VERSION" => Ok(Command::Version),
            "GC" => Ok(Command::Gc),
            other => Err(Failure::Variable {
                name,
                problem: format!("is {other:?}, want ADD, DEL, CHECK, STATUS, VERSION or GC"),
            }),
        }
    }
}

impl Command {
    /// Where it is counted ([`crate::tally::OPERATIONS`]).
    pub(super) fn operation(self) -> Option<usize> {
        match self {
            Command::Add => Some(0),
            Command::Del => Some(1),
            Command::Check => Some(2),
            Command::Status => Some(3),
            Command::Gc => Some(4),
            Command::Version => None,
        }
    }
}

/// The variables that name an attachment.
pub(super) struct Env {
    container: String,
    interface: LinkName,
    /// Empty and absent mean the same: the namespace is gone.
    pub(super) netns: Option<PathBuf>,
    args: String,
}

impl Env {
    pub(super) fn read(command: Command) -> Result<Env, Failure> {
        Self::of(command, &|name| std::env::var_os(name))
    }

    pub(super) fn of(command: Command, variables: Variables<'_>) -> Result<Env, Failure> {
        let container = required(variables, "CNI_CONTAINERID")?;
        if !is_identifier(&container) {
            let problem =
                format!("is {container:?}, want letters, digits, '_', '.' and '-' after a letter or digit");
            return Err(Failure::Variable { name: "CNI_CONTAINERID", problem });
        }
        let interface = required(variables, "CNI_IFNAME")?.parse().map_err(Failure::Interface)?;
        let netns = variable(variables, "CNI_NETNS")?.map(PathBuf::from);
        if netns.is_none() && matches!(command, Command::Add | Command::Check) {
            return Err(Failure::Variable { name: "CNI_NETNS", problem: "is missing".into() });
        }
        let args = variable(variables, "CNI_ARGS")?.unwrap_or_default();
        Ok(Env { container, interface, netns, args })
    }

    pub(super) fn owner(&self) -> Result<Owner, Failure> {
        Owner::new(&self.container, self.interface.as_str()).map_err(Failure::Owner)
    }

    pub(super) fn pod(&self) -> PodName {
        let value = |key| self.arg(key).unwrap_or_default().to_owned();
        PodName {
            namespace: value("K8S_POD_NAMESPACE"),
            name: value("K8S_POD_NAME"),
            uid: value("K8S_POD_UID"),
            ..PodName::default()
        }
    }

    /// A CRI runtime unmounts the namespace as soon as DEL returns (containerd's sandbox_stop.go); anybody else may
    /// go on using it and expects the interface to be gone.
    pub(super) fn links(&self) -> Links {
        match self.arg("K8S_POD_INFRA_CONTAINER_ID") {
            Some(_) => Links::DieWithNamespace,
            None => Links::Delete,
        }
    }

    pub(super) fn interface(&self) -> &str {
        self.interface.as_str()
    }

    pub(super) fn arg(&self, key: &str) -> Option<&str> {
        self.args
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn variable(variables: Variables<'_>, name: &'static str) -> Result<Option<String>, Failure> {
    match variables(name).map(OsString::into_string) {
        Some(Err(text)) => Err(Failure::Variable { name, problem: format!("is not UTF-8: {text:?}") }),
        Some(Ok(text)) if !text.is_empty() => Ok(Some(text)),
        _ => Ok(None),
    }
}

fn required(variables: Variables<'_>, name: &'static str) -> Result<String, Failure> {
    variable(variables, name)?.ok_or(Failure::Variable { name, problem: "is missing".into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(args: &str) -> Env {
        Env { container: "c".into(), interface: "eth0".parse().unwrap(), netns: None, args: args.into() }
    }

    #[test]
    fn a_pod_is_named_by_the_arguments_of_a_cri_runtime() {
        let env = env(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u",
        );
        let pod = PodName {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u".into(),
            ..PodName::default()
        };
        assert_eq!(env.pod(), pod);
        assert_eq!(env.links(), Links::DieWithNamespace);
    }

    #[test]
    fn without_a_cri_runtime_the_links_are_deleted() {
        assert_eq!(env("").links(), Links::Delete);
        assert_eq!(env("K8S_POD_NAME=web").pod().name, "web");
    }

    #[test]
    fn identifiers_follow_the_specification() {
        for good in ["a", "0", "a.b-c_d", "3f2a"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "ä", "a\n"] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }
}
