//! Tests that need other processes: the test binary starts itself again with the name of a worker.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "this is the test harness")]

use std::process::{Child, Command, Stdio};

/// What the binary can be: each has a name, and workers have arguments.
pub(crate) type Tests = &'static [(&'static str, fn())];
pub(crate) type Workers = &'static [(&'static str, fn(&[String]))];

/// Marks the command line of a worker; no filter of libtest's begins so.
const WORKER: &str = "--worker=";

/// Is the worker of the command line, or runs the tests, those whose names contain the word that cargo passes on.
pub(crate) fn run(tests: Tests, workers: Workers) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = arguments.first().and_then(|first| first.strip_prefix(WORKER)) {
        let (_, worker) = workers.iter().find(|(known, _)| *known == name).unwrap();
        return worker(&arguments[1..]);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    for (name, test) in tests.iter().filter(|(name, _)| filter.is_none_or(|word| name.contains(word))) {
        test();
        println!("test {name} ... ok");
    }
}

/// The command that makes this binary the worker.
pub(crate) fn worker(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(format!("{WORKER}{name}"));
    command
}

pub(crate) fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).spawn().unwrap()
}
