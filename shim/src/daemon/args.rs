//! The command line that containerd gives to a shim: Go's `flag` package, so long flags with one dash, then a verb.

use std::path::PathBuf;

/// What the process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Verb {
    /// Without a verb: be the daemon, on the listener that is standard input.
    #[default]
    Serve,
    /// Start a daemon, or find the one of the same pod, and print its address.
    Start,
    /// Clean up after a daemon that may be dead.
    Delete,
    /// Print what the OCI runtime can do.
    Info,
    /// Print the version.
    Version,
    /// Be process 1 of a pod's shared PID namespace.
    SandboxInit,
    /// Be the process in a pod's user namespace.
    SandboxUser,
}

/// A parsed command line. What containerd does not give is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    pub(super) verb: Verb,
    pub(super) namespace: String,
    pub(super) id: String,
    /// containerd's gRPC socket.
    pub(super) address: String,
    pub(super) bundle: PathBuf,
    pub(super) debug: bool,
}

/// A command line that containerd does not write.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Error {
    #[error("unknown argument {0:?}")]
    Unknown(String),
    #[error("-{0} needs a value")]
    NoValue(String),
    #[error("-namespace and -id are needed")]
    Incomplete,
}

impl Args {
    /// Parses what follows the program's name.
    pub(super) fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, Error> {
        let mut args = Args::default();
        while let Some(word) = words.next() {
            match word.strip_prefix('-') {
                Some(flag) => args.flag(flag.strip_prefix('-').unwrap_or(flag), &mut words)?,
                None => args.verb = verb(word)?,
            }
        }
        let nameless =
            matches!(args.verb, Verb::Info | Verb::Version | Verb::SandboxInit | Verb::SandboxUser);
        if !nameless && (args.namespace.is_empty() || args.id.is_empty()) {
            return Err(Error::Incomplete);
        }
        Ok(args)
    }

    fn flag(&mut self, flag: &str, words: &mut impl Iterator<Item = String>) -> Result<(), Error> {
        let (name, attached) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "debug" => self.debug = attached.is_none_or(|value| value == "true"),
            "info" => self.verb = Verb::Info,
            "v" | "version" => self.verb = Verb::Version,
            _ => {
                let value =
                    attached.or_else(|| words.next()).ok_or_else(|| Error::NoValue(name.to_owned()))?;
                self.set(name, value)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), Error> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = value.into(),
            // Events go out over ttrpc; no publisher is run.
            "publish-binary" => {}
            _ => return Err(Error::Unknown(format!("-{name}"))),
        }
        Ok(())
    }
}

fn verb(word: String) -> Result<Verb, Error> {
    match word.as_str() {
        "start" => Ok(Verb::Start),
        "delete" => Ok(Verb::Delete),
        "sandbox-init" => Ok(Verb::SandboxInit),
        "sandbox-user" => Ok(Verb::SandboxUser),
        _ => Err(Error::Unknown(word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Error> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_line_of_containerd_is_understood() {
        let args = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /bin/containerd -id 3f2a -bundle /b -debug delete",
        )
        .unwrap();
        let want = Args {
            verb: Verb::Delete,
            namespace: "k8s.io".into(),
            id: "3f2a".into(),
            address: "/run/c.sock".into(),
            bundle: "/b".into(),
            debug: true,
        };
        assert_eq!(args, want);
    }

    #[test]
    fn a_line_without_names_is_enough_for_questions_about_the_program() {
        assert_eq!(parse("-info").unwrap().verb, Verb::Info);
        assert_eq!(parse("-v").unwrap().verb, Verb::Version);
        assert_eq!(parse("--version").unwrap().verb, Verb::Version);
        assert_eq!(parse("-id=a start"), Err(Error::Incomplete));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(parse("-id a -namespace b stop"), Err(Error::Unknown("stop".into())));
        assert_eq!(parse("-colour red"), Err(Error::Unknown("-colour".into())));
        assert_eq!(parse("-id"), Err(Error::NoValue("id".into())));
    }
}
