//! Log lines into the bundle's fifo `log`, which containerd copies to its own standard error.
//!
//! Lines look like containerd's (logfmt), without a time: whoever collects containerd's output stamps them. The fifo
//! is kept open, because containerd stops to read at the end of the file, and never blocks the daemon: while
//! containerd is away or slow, lines are lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Fifo {
    file: File,
    id: String,
}

static FIFO: OnceLock<Fifo> = OnceLock::new();

struct Logger;

/// Sends all log lines of the process to the fifo in the working directory, the bundle, from now on.
///
/// # Errors
/// If there is no fifo, or nobody reads it.
pub(super) fn open(id: &str, debug: bool) -> io::Result<()> {
    let file = OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open("log")?;
    let fifo = FIFO.get_or_init(|| Fifo { file, id: id.to_owned() });
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    log::set_logger(&Logger).map_err(|err| io::Error::other(format!("{err} for {}", fifo.id)))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let Some(fifo) = FIFO.get().filter(|_| self.enabled(record.metadata())) else {
            return;
        };
        let level = match record.level() {
            Level::Warn => "warning".to_owned(),
            level => level.as_str().to_lowercase(),
        };
        let line = format!("level={level} msg={:?} runtime=weft id={}\n", record.args().to_string(), fifo.id);
        // One write, so that lines of several shims do not mix. There is nowhere to report a failure to.
        drop((&fifo.file).write_all(line.as_bytes()));
    }

    fn flush(&self) {}
}
