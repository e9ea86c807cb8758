//! Waiting for a state, and running a command to its end.

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

/// How often a state is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// What deadlines are multiplied by: `WEFT_TEST_SLOWNESS`, 1 if it is not set. An emulated machine is 20 times slower.
pub(crate) fn slowness() -> u32 {
    std::env::var("WEFT_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Polls `condition` until it holds; panics with `what` once `deadline`, times [`slowness`], has passed.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    assert!(holds_within(deadline, &mut condition), "waited {deadline:?} in vain: {what}");
}

/// Polls `condition`; whether it held before `deadline`, times [`slowness`], had passed.
pub(crate) fn holds_within(deadline: Duration, condition: &mut dyn FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline * slowness();
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::park_timeout(PAUSE);
    }
}

/// Runs `command`, which must succeed, and returns what it wrote to stdout.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    match try_run(command) {
        Ok(stdout) => stdout,
        Err(why) => panic!("{why}"),
    }
}

/// Runs `command`; the error tells the command, its status and what it said.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|e| format!("{}: {e}", words(command)))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    Err(format!("{}: {status}\n{}{stdout}", words(command), String::from_utf8_lossy(&stderr)))
}

/// The command line, without the environment that `Debug` puts before it.
fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
