//! What `weft serve` has to say while it serves: lines on standard error, which systemd reads into the journal.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Journal;

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The number is the priority of syslog(3), as sd-daemon(3) wants it.
        let priority = match record.level() {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info | Level::Debug | Level::Trace => 6,
        };
        // There is nowhere to report a failure to.
        drop(writeln!(std::io::stderr(), "<{priority}>weft: {}", record.args()));
    }

    fn flush(&self) {}
}

/// From now on.
pub(super) fn open() {
    // Somebody else's is as good, in a test.
    if log::set_logger(&Journal).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
