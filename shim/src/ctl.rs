//! The `weft` command: what an administrator sees of the node, and the few things there are to do.
//!
//! It asks `weft serve` where that runs, and reads the store and the pinned maps itself where it does not, so it answers
//! whether or not anything of weft is running.

mod args;
mod capture;
mod cleanup;
mod doctor;
mod ipam;
mod man;
mod metrics;
mod node;
mod pod;
mod ports;
mod reconcile;
mod serve;
mod show;
mod status;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use crate::config::{self, Config};
use crate::error::chain;
use crate::pod::DetachError;
use crate::{fast_path, network, pod as pods};
use args::{Cli, Verb};
use node::Node;

/// Why a command ended without doing what it should.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("load the configuration")]
    Config(#[from] config::Error),
    #[error("read the store")]
    Store(#[from] pods::Error),
    #[error("read the node's state")]
    Node(#[from] network::Error),
    #[error("detach the pods")]
    Detach(#[from] DetachError),
    #[error("use the fast path")]
    FastPath(#[from] weft_hooks::Error),
    #[error("remove what pods have left: {}", .0.join("; "))]
    Left(Vec<String>),
    #[error("look at the node's links")]
    Links(#[from] weft_netns::Error),
    #[error("unload the programs: {}", .0.iter().map(|err| chain(err)).collect::<Vec<_>>().join("; "))]
    Unload(Vec<weft_hooks::Error>),
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("serve on {path}")]
    Serve { path: PathBuf, source: io::Error },
    #[error("serve requests")]
    Server(#[from] ttrpc::Error),
    #[error("list the host ports")]
    Ports(#[from] network::list::UnknownToken),
    #[error("no pod is called {0:?}, and no container's id begins so")]
    NoPod(String),
    #[error("{name:?} may be any of {pods}")]
    ManyPods { name: String, pods: String },
    #[error("pod {pod} has no interface {interface}")]
    NoInterface { pod: String, interface: String },
    #[error("the namespace of container {0} has gone")]
    Gone(String),
    #[error("address {0} is not leased")]
    NotLeased(std::net::IpAddr),
    #[error("address {address} is that of a pod that is alive, {pod}: --force detaches it")]
    Alive { address: std::net::IpAddr, pod: String },
    #[error("attached, so nothing was changed: {0}")]
    InUse(String),
    #[error("{0} found")]
    Found(String),
    #[error("capture: {op}")]
    Capture { op: &'static str, source: io::Error },
    #[error("start the event loop")]
    Runtime(#[source] io::Error),
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("print the answer")]
    Print(#[source] io::Error),
}

/// Runs the command line; the exit code of the process.
pub fn run(
    args: impl IntoIterator<Item = std::ffi::OsString>,
    mut out: impl Write,
    mut err: impl Write,
) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(answer) => return print_answer(&answer, &mut out, &mut err),
    };
    let Err(error) = perform(&cli, &mut out) else { return 0 };
    // Nothing is left to tell if standard error is gone too; the exit code says it.
    drop(writeln!(err, "weft: {}", chain(&error)));
    1
}

/// Help and version are answers too; everything else is a command line that is not understood.
fn print_answer(answer: &clap::Error, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let text = answer.render();
    let printed = if answer.use_stderr() { write!(err, "{text}") } else { write!(out, "{text}") };
    match printed {
        Ok(()) => u8::try_from(answer.exit_code()).unwrap_or(2),
        Err(_) => 1,
    }
}

fn perform(cli: &Cli, out: &mut impl Write) -> Result<(), Error> {
    let format = cli.output;
    match &cli.verb {
        Verb::Version => return show::version(format, out),
        Verb::Completion { shell } => return completion(*shell, out),
        Verb::Man { dir } => return man::write(dir),
        _ => {}
    }
    let config = Config::load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        match &cli.verb {
            Verb::Status => status::print(&Node::reach(&config).await, format, out).await,
            Verb::Pods(pods) => show::pods(&Node::reach(&config).await, pods, format, out).await,
            Verb::Pod(pod) => pod::print(&Node::reach(&config).await, &pod.pod, format, out).await,
            Verb::Ports => ports::print(&Node::reach(&config).await, format, out).await,
            Verb::Ipam(verb) => ipam::run(&config, verb, format, out).await,
            Verb::Doctor(doctor) => doctor::run(&config, doctor, format, out),
            Verb::Capture(capture) => capture::run(&config, capture, out).await,
            Verb::Init => Ok(fast_path::load(&config).map(drop)?),
            Verb::Reconcile { dry_run } => reconcile::run(&config, *dry_run, format, out),
            Verb::Serve(serve) => serve::run(config, serve).await,
            Verb::Cleanup { if_unused } => cleanup::run(&config, *if_unused).await,
            Verb::Version | Verb::Completion { .. } | Verb::Man { .. } => Ok(()),
        }
    })
}

fn completion(shell: clap_complete::Shell, out: &mut impl Write) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    out.write_all(&script).map_err(Error::Print)
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
        let commands =
            "status pods pod ports ipam doctor capture init reconcile serve cleanup version completion";
        for command in commands.split(' ') {
            assert!(out.contains(&format!("\n  {command} ")), "{command} in {out}");
        }
    }

    #[test]
    fn a_command_line_that_is_not_understood_says_what() {
        for (args, what) in [
            (&[][..], "Usage: weft"),
            (&["fly"][..], "unrecognized subcommand 'fly'"),
            (&["pods", "-o", "xml"][..], "[possible values: table, json]"),
            (&["pods", "--all"][..], "--all"),
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
        assert_eq!(run_with(&["--version"]).1, format!("weft {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn each_shell_gets_a_script_with_every_command() {
        for shell in ["bash", "zsh", "fish"] {
            let (code, out, _) = run_with(&["completion", shell]);
            assert_eq!(code, 0, "{shell}");
            for word in ["doctor", "capture", "namespace", "json"] {
                assert!(out.contains(word), "{word} for {shell}");
            }
        }
    }
}
