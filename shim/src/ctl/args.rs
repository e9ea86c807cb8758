//! The command line of `weft`: its help, its completion and its man pages come from these definitions and nowhere else.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Behind the help of every command, and in every man page.
const AFTER: &str = "\
Exit codes:
  0  done
  1  something went wrong, said on standard error; `ipam check` and `doctor`: something is not as it should be
  2  the command line is not understood

Files:
  /etc/weft/config.toml  the node's configuration, or the file that WEFT_CONFIG names
  /run/weft/weft.sock    weft.network.v1 (ttrpc) while `weft serve` runs; without it the store is read";

/// The network of a node's pods.
///
/// Says what there is, checks it, and does the few things there are to do. Asks `weft serve` where it runs, and reads the store and the
/// pinned eBPF maps where it does not: the answer is the same.
#[derive(Debug, Parser)]
#[command(name = "weft", version, after_help = AFTER, arg_required_else_help = true)]
pub(super) struct Cli {
    /// How answers are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// One JSON document; its fields are only ever added to
    Json,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// The node: data path, packets by the way they took, attachments, addresses
    #[command(after_help = AFTER)]
    Status,
    /// The attachments of this node: address, data path, link
    #[command(after_help = AFTER)]
    Pods(Pods),
    /// Everything about one pod: its record, its routes, what went over its links
    #[command(after_help = AFTER)]
    Pod(Pod),
    /// The ports of the node that lead to pods
    #[command(after_help = AFTER)]
    Ports,
    /// Which address is whose
    #[command(subcommand, after_help = AFTER)]
    Ipam(Ipam),
    /// Look at everything that pods' networks need, and name a remedy for what is not as it should be
    #[command(after_help = AFTER)]
    Doctor(Doctor),
    /// Write the packets of one pod, both directions, fast path included, as pcap
    ///
    /// Ends with COUNT packets, with SIGINT or SIGTERM, or with the pod; then says on standard error how many packets there were and
    /// how many the kernel could not keep. Packets are taken where the pod sends and receives them, inside its namespace: a capture on the
    /// host does not see what goes straight from pod to pod.
    ///
    /// To watch live: weft capture default/web | wireshark -k -i -
    #[command(after_help = AFTER)]
    Capture(Capture),
    /// Load the eBPF programs now instead of at the first pod
    #[command(after_help = AFTER)]
    Init,
    /// Free what pods have left that are gone, and make the table of host ports as it should be
    #[command(after_help = AFTER)]
    Reconcile {
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Answer weft.network.v1 on <run_dir>/weft.sock until SIGTERM
    ///
    /// Where systemd passes the socket (LISTEN_FDS), on that one. Clients of other users are refused.
    #[command(after_help = AFTER)]
    Serve(Serve),
    /// Detach every pod of weft's and remove programs, maps and state
    ///
    /// The socket of a server that runs stays: it is that server's, or systemd's.
    #[command(after_help = AFTER)]
    Cleanup {
        /// Change nothing if a pod is attached, and name it
        #[arg(long)]
        if_unused: bool,
    },
    /// The version of this program
    #[command(after_help = AFTER)]
    Version,
    /// Print a script that completes this command in a shell
    #[command(after_help = AFTER)]
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the man pages of this command into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        dir: PathBuf,
    },
}

/// Which attachments are told.
#[derive(Debug, Args, Default)]
pub(super) struct Pods {
    /// Only pods of this Kubernetes namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Only pods of this name
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Only attachments to this network
    #[arg(long, value_name = "NETWORK")]
    pub(super) network: Option<String>,
    /// Only pods with this label; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    pub(super) label: Vec<(String, String)>,
    /// More columns: network, MTU, addresses of the links, namespace
    #[arg(short, long)]
    pub(super) wide: bool,
}

/// One pod.
#[derive(Debug, Args)]
pub(super) struct Pod {
    /// NAMESPACE/NAME, NAME, or the beginning of the container's id
    #[arg(value_name = "POD")]
    pub(super) pod: String,
}

/// What of the addresses.
#[derive(Debug, Subcommand)]
pub(super) enum Ipam {
    /// Every range: how many addresses it has, and how many are used, cooling and free
    #[command(after_help = AFTER)]
    Show {
        /// Every leased address too, and whose it is
        #[arg(short, long)]
        leases: bool,
    },
    /// Free an address: detach the interface that holds it
    ///
    /// An interface has one address of each family, and is detached as a whole. One whose pod is alive is left alone: without it that pod
    /// has no network.
    #[command(after_help = AFTER)]
    Free {
        /// The address
        address: IpAddr,
        /// Even if its pod is alive
        #[arg(long)]
        force: bool,
    },
    /// Compare leases, records and the entries of the eBPF map, and name every deviation
    #[command(after_help = AFTER)]
    Check,
}

/// Where the doctor looks.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// containerd's program, which is asked for its version and configuration
    #[arg(long, value_name = "FILE", default_value = "containerd")]
    pub(super) containerd: PathBuf,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    pub(super) containerd_config: PathBuf,
    /// The folder of CNI configurations, where containerd's does not name one
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(super) cni_conf_dir: PathBuf,
    /// The folder of CNI plugins, where containerd's configuration does not name one
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(super) cni_bin_dir: PathBuf,
}

/// What is captured, and where to.
#[derive(Debug, Args)]
pub(super) struct Capture {
    /// NAMESPACE/NAME, NAME, or the beginning of the container's id
    #[arg(value_name = "POD")]
    pub(super) pod: String,
    /// The interface in the pod
    #[arg(short, long, default_value = "eth0")]
    pub(super) interface: String,
    /// The file to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub(super) write: PathBuf,
    /// End after so many packets
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// Keep at most so many bytes of each packet
    #[arg(short, long, value_name = "BYTES", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(14..=262_144))]
    pub(super) snaplen: u32,
}

/// How long is served, and what besides.
#[derive(Debug, Args, Default)]
pub(super) struct Serve {
    /// End when nobody has been connected for so long; who asks for metrics does not count
    #[arg(long, value_name = "SECONDS")]
    pub(super) idle: Option<u64>,
    /// Answer Prometheus (/metrics, /healthz, /readyz) on unix:PATH, or on an address and port of the loopback interface
    #[arg(long, value_name = "unix:PATH|ADDRESS:PORT")]
    pub(super) metrics: Option<super::serve::Endpoint>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "want KEY=VALUE".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_tells_its_exit_codes() {
        let mut waiting = vec![Cli::command()];
        while let Some(mut command) = waiting.pop() {
            waiting.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
            let help = command.render_long_help().to_string();
            assert!(help.contains("Exit codes:"), "{}: {help}", command.get_name());
        }
    }

    #[test]
    fn what_is_said_is_what_is_understood() {
        let words = "weft pods -n default --label app=web --label tier=db -w -o json".split(' ');
        let cli = Cli::try_parse_from(words).unwrap();
        assert_eq!(cli.output, Format::Json);
        let Verb::Pods(pods) = cli.verb else { panic!("{:?}", cli.verb) };
        assert_eq!((pods.namespace.as_deref(), pods.name, pods.wide), (Some("default"), None, true));
        assert_eq!(pods.label, [("app".into(), "web".into()), ("tier".into(), "db".into())]);
        let cli = Cli::try_parse_from("weft ipam free fd00::2 --force".split(' ')).unwrap();
        let Verb::Ipam(Ipam::Free { address, force }) = cli.verb else { panic!("{:?}", cli.verb) };
        assert_eq!((address, force), ("fd00::2".parse().unwrap(), true));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for words in [
            "weft ipam free 10.0.0",
            "weft capture web -c 0",
            "weft capture web -s 13",
            "weft pods -l app",
            "weft serve --metrics 192.0.2.1:9100",
            "weft serve --metrics tcp",
        ] {
            let err = Cli::try_parse_from(words.split(' ')).unwrap_err();
            assert_eq!(err.exit_code(), 2, "{words}: {err}");
        }
    }
}
