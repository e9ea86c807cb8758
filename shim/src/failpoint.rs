//! Steps at which a test kills or stops this process. Compiled only with the feature `failpoints`, which no release has.

/// Ends the process at once, without any clean-up, if `WEFT_FAILPOINT` names this step; stops it until somebody sends
/// SIGCONT, if `WEFT_STOPPOINT` does.
#[cfg(feature = "failpoints")]
pub(crate) fn failpoint(step: &str) {
    use nix::sys::signal::Signal;
    for (variable, signal) in [("WEFT_FAILPOINT", Signal::SIGKILL), ("WEFT_STOPPOINT", Signal::SIGSTOP)] {
        if std::env::var(variable).is_ok_and(|wanted| wanted == step) {
            let sent = nix::sys::signal::kill(nix::unistd::Pid::this(), signal);
            assert_eq!(sent, Ok(()), "a process may kill itself");
        }
    }
}

/// Does nothing.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn failpoint(_step: &str) {}
