//! What becomes of pods' networks, told to whoever keeps the logs: to the journal with a field for each thing that one would look
//! for (`journalctl K8S_POD_NAME=web`), else as lines on standard error.
//!
//! Fields, where they are known: `CONTAINER_ID`, `K8S_POD_NAMESPACE`, `K8S_POD_NAME`, `K8S_POD_UID` (as in `CNI_ARGS`), `WEFT_INTERFACE`,
//! `WEFT_NETWORK`, `WEFT_ADDRESSES`.

use std::fmt;
use std::io::Write;
use std::net::IpAddr;

use log::{Level, LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::pod::Request;
use crate::record::{self, PodName};

/// Lines, for a program that somebody started by hand.
struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // There is nowhere to report a failure to.
            drop(writeln!(std::io::stderr(), "weft: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// From now on, for a server: as lines, unless its standard error is the journal's.
pub(crate) fn open() {
    if connected_to_journal() {
        open_journal();
    } else {
        install(Box::new(Lines));
    }
}

/// From now on, for a program that answers in another way, and whose caller may keep its standard error: to the journal if that is
/// where the caller's goes (`JOURNAL_STREAM`, systemd.exec(5), which children inherit), else nowhere.
pub(crate) fn open_inherited() {
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        open_journal();
    }
}

fn open_journal() {
    // Without a journal there is nobody to tell.
    if let Ok(journal) = JournalLog::empty() {
        install(Box::new(journal.with_syslog_identifier("weft".into())));
    }
}

fn install(logger: Box<dyn Log>) {
    // One that somebody else has set is as good.
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Whose network it is that something is told of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    container: &'a str,
    interface: &'a str,
    network: &'a str,
    pod: &'a PodName,
    addresses: &'a [IpAddr],
}

impl<'a> From<&'a record::Record> for Subject<'a> {
    fn from(record: &'a record::Record) -> Subject<'a> {
        Subject {
            container: &record.container,
            interface: &record.interface,
            network: &record.network,
            pod: &record.pod,
            addresses: &record.addresses,
        }
    }
}

/// Before there is a record.
impl<'a> From<&'a Request> for Subject<'a> {
    fn from(request: &'a Request) -> Subject<'a> {
        Subject {
            container: request.owner.container(),
            interface: request.owner.interface(),
            network: &request.network.name,
            pod: &request.pod,
            addresses: &[],
        }
    }
}

/// The pod as people know it, else its container; then the interface.
impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pod.is_known() {
            true => write!(f, "pod {} {}", self.pod, self.interface),
            false => write!(f, "container {} {}", self.container, self.interface),
        }
    }
}

/// One line: `pod default/web eth0: attached`.
pub(crate) fn tell<'a>(level: Level, subject: impl Into<Subject<'a>>, what: fmt::Arguments<'_>) {
    if level > log::max_level() {
        return;
    }
    let subject = subject.into();
    let addresses = subject.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let fields = [
        ("CONTAINER_ID", subject.container),
        ("K8S_POD_NAMESPACE", &subject.pod.namespace),
        ("K8S_POD_NAME", &subject.pod.name),
        ("K8S_POD_UID", &subject.pod.uid),
        ("WEFT_INTERFACE", subject.interface),
        ("WEFT_NETWORK", subject.network),
        ("WEFT_ADDRESSES", &addresses),
    ];
    let known: Vec<(&str, &str)> = fields.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let known = known.as_slice();
    log::logger().log(
        &Record::builder()
            .level(level)
            .args(format_args!("{subject}: {what}"))
            .target("weft")
            .key_values(&known)
            .build(),
    );
}
