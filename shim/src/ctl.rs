//! The `weft` command: what an administrator sees of the node, and the few things there are to do.
//!
//! It reads the store and the pinned maps itself, so it answers whether or not anything of weft is running.

mod reconcile;
mod serve;
mod show;

use std::io::{self, Write};

use weft_hooks::FastPath;

use crate::config::{self, Config};
use crate::error::chain;
use crate::nat;
use crate::pod::{self, DetachError, Links};
use crate::state::Ledger;
use crate::turn;

const USAGE: &str = "\
usage: weft <command> [-o table|json]

  pods      the attachments of this node: address, data path, namespace
  status    the data path: program versions and how many packets took which way
  init      load the eBPF programs now instead of at the first pod
  reconcile free what pods have left that are gone; --dry-run only tells
  serve     answer weft.network.v1 on <run_dir>/weft.sock until SIGTERM
  cleanup   detach every pod of weft's and remove programs, maps and state
  version   the version of this program

configuration: /etc/weft/config.toml, or the file that WEFT_CONFIG names
exit codes: 0 done, 1 something went wrong (said on standard error), 2 the command line is not understood
";

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
}

/// Why a command ended without doing what it should.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}\n\n{USAGE}")]
    Usage(String),
    #[error("load the configuration")]
    Config(#[from] config::Error),
    #[error("read the store")]
    Store(#[from] pod::Error),
    #[error("detach the pods")]
    Detach(#[from] DetachError),
    #[error("use the fast path")]
    FastPath(#[from] weft_hooks::Error),
    #[error("remove what pods have left: {}", .0.join("; "))]
    Left(Vec<String>),
    #[error("unload the programs: {}", .0.iter().map(|err| chain(err)).collect::<Vec<_>>().join("; "))]
    Unload(Vec<weft_hooks::Error>),
    #[error("remove {path}")]
    Remove { path: std::path::PathBuf, source: io::Error },
    #[error("serve on {path}")]
    Serve { path: std::path::PathBuf, source: io::Error },
    #[error("open the node's network namespace")]
    Namespace(#[from] weft_netns::Error),
    #[error("serve requests")]
    Server(#[from] ttrpc::Error),
    #[error("print the answer")]
    Print(#[source] io::Error),
}

/// Runs the command line; the exit code of the process.
pub fn run(
    args: impl IntoIterator<Item = std::ffi::OsString>,
    mut out: impl Write,
    mut err: impl Write,
) -> u8 {
    let result =
        parse(args).and_then(|(command, format, dry_run)| perform(&command, format, dry_run, &mut out));
    let Err(error) = result else { return 0 };
    // Nothing is left to tell if standard error is gone too; the exit code says it.
    drop(writeln!(err, "weft: {}", chain(&error)));
    if matches!(error, Error::Usage(_)) { 2 } else { 1 }
}

fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<(String, Format, bool), Error> {
    let usage = |err: lexopt::Error| Error::Usage(err.to_string());
    let mut parser = lexopt::Parser::from_iter(args);
    let (mut command, mut format, mut dry_run) = (None, Format::Table, false);
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            lexopt::Arg::Short('o') | lexopt::Arg::Long("output") => {
                format = match parser.value().map_err(usage)?.to_str() {
                    Some("json") => Format::Json,
                    Some("table") => Format::Table,
                    other => {
                        return Err(Error::Usage(format!(
                            "output format {}, want table or json",
                            other.unwrap_or("of no text")
                        )));
                    }
                }
            }
            lexopt::Arg::Long("dry-run") => dry_run = true,
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => command = Some("help".into()),
            lexopt::Arg::Short('V') | lexopt::Arg::Long("version") => command = Some("version".into()),
            lexopt::Arg::Value(value) if command.is_none() => {
                command = Some(value.to_string_lossy().into_owned())
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    let command: String = command.ok_or_else(|| Error::Usage("a command is missing".into()))?;
    if dry_run && command != "reconcile" {
        return Err(Error::Usage(format!("--dry-run is reconcile's, not {command}'s")));
    }
    Ok((command, format, dry_run))
}

fn perform(command: &str, format: Format, dry_run: bool, out: &mut impl Write) -> Result<(), Error> {
    match command {
        "help" => return write!(out, "{USAGE}").map_err(Error::Print),
        "version" => return show::version(format, out),
        _ => {}
    }
    let config = Config::load()?;
    match command {
        "pods" => show::pods(&config, format, out),
        "status" => show::status(&config, format, out),
        "init" => Ok(FastPath::open(&config.bpf_dir, &config.run_dir).map(drop)?),
        "reconcile" => block_on(reconcile::run(&config, dry_run, format, out))?,
        "serve" => block_on(serve::run(config))?,
        "cleanup" => block_on(cleanup(&config))?,
        other => Err(Error::Usage(format!("command {other:?} is not known"))),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|source| Error::Serve { path: "the runtime".into(), source })?;
    Ok(runtime.block_on(future))
}

/// Pods first, so that no program is taken from under one; then the table and the programs; the store last, for until then it is
/// what a second attempt works from.
async fn cleanup(config: &Config) -> Result<(), Error> {
    let mut errors = Vec::new();
    for record in Ledger::open(config)?.records()? {
        if let Err(DetachError(more)) = pod::detach_all(config, &record.container, Links::Delete).await {
            errors.extend(more);
        }
    }
    if !errors.is_empty() {
        return Err(DetachError(errors).into());
    }
    nat::remove()?;
    FastPath::unload(&config.bpf_dir).map_err(Error::Unload)?;
    let names = ["store", "programs.lock", "pods.lock", turn::FILE, "weft.sock"];
    for path in names.iter().chain(&crate::reconcile::FILES).map(|name| config.run_dir.join(name)) {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Remove { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(args: &[&str]) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = std::iter::once("weft").chain(args.iter().copied()).map(Into::into);
        let code = run(args, &mut out, &mut err);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn help_is_no_error_and_names_every_command() {
        let (code, out, err) = run_with(&["--help"]);
        assert_eq!((code, err.as_str()), (0, ""));
        for command in ["pods", "status", "init", "reconcile", "serve", "cleanup", "version"] {
            assert!(out.contains(&format!("\n  {command} ")), "{command} in {out}");
        }
    }

    #[test]
    fn a_command_line_that_is_not_understood_says_what() {
        for (args, what) in [
            (&[][..], "a command is missing"),
            (&["fly"][..], "command \"fly\" is not known"),
            (&["pods", "-o", "xml"][..], "output format xml, want table or json"),
            (&["pods", "--all"][..], "--all"),
            (&["cleanup", "--dry-run"][..], "--dry-run is reconcile's, not cleanup's"),
        ] {
            let (code, out, err) = run_with(args);
            assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
            assert!(err.contains(what), "{args:?}: {err}");
        }
    }

    #[test]
    fn the_version_is_the_packages() {
        let (code, out, _) = run_with(&["version", "-o", "json"]);
        assert_eq!(code, 0);
        let version: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    }
}
