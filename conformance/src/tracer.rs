//! The kernel's tracer, in an instance of its own: what others trace is not disturbed, nor told of here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::wait::run;

/// An instance of the tracer, removed when dropped.
pub struct Tracer {
    tracefs: TempDir,
    instance: PathBuf,
}

impl Tracer {
    /// One that traces nothing yet, with room for 16 MB of each processor's events.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it mounts")]
    pub fn new() -> Self {
        let tracefs = tempfile::Builder::new().prefix("weft-trace-").tempdir().expect("make a directory");
        run(Command::new("mount").args(["-t", "tracefs", "tracefs"]).arg(tracefs.path()));
        let name = tracefs.path().file_name().expect("tempfile names it");
        let instance = tracefs.path().join("instances").join(name);
        fs::create_dir(&instance).expect("make an instance of the tracer");
        let tracer = Self { tracefs, instance };
        tracer.write("buffer_size_kb", "16384");
        tracer.write("tracing_on", "0");
        tracer
    }

    /// Writes `text` to a file of the instance (Documentation/trace/ftrace.rst).
    #[track_caller]
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.instance.join(file), text)
            .unwrap_or_else(|err| panic!("write {text} to {file}: {err}"));
    }

    /// The events that are told of while `work` is done, as the file `trace` has them, and what `work` returns.
    #[track_caller]
    pub fn trace<T>(&self, work: impl FnOnce() -> T) -> (String, T) {
        self.write("trace", "");
        self.write("tracing_on", "1");
        let done = work();
        self.write("tracing_on", "0");
        let trace = fs::read_to_string(self.instance.join("trace")).expect("read the trace");
        assert!(!trace.contains("EVENTS LOST"), "the buffer holds all events");
        (trace, done)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Its events and their triggers go with it (`event_trace_del_tracer` in kernel/trace/trace_events.c).
        fs::remove_dir(&self.instance).expect("remove the instance of the tracer");
        run(Command::new("umount").args(["-l"]).arg(self.tracefs.path()));
    }
}
