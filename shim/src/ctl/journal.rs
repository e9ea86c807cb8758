//! What `weft serve` has to say while it serves: lines on standard error, which systemd reads into the journal.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Journal {
    /// Standard error is the journal's (`JOURNAL_STREAM`, systemd.exec(5)).
    with_priority: bool,
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The priorities of syslog(3), as sd-daemon(3) wants them.
        let priority = match record.level() {
            _ if !self.with_priority => "",
            Level::Error => "<3>",
            Level::Warn => "<4>",
            Level::Info | Level::Debug | Level::Trace => "<6>",
        };
        // There is nowhere to report a failure to.
        drop(writeln!(std::io::stderr(), "{priority}weft: {}", record.args()));
    }

    fn flush(&self) {}
}

/// From now on.
pub(super) fn open() {
    let with_priority = std::env::var_os("JOURNAL_STREAM").is_some();
    // One that somebody else has set is as good.
    if log::set_boxed_logger(Box::new(Journal { with_priority })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
