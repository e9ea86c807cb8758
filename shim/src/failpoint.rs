//! Steps at which a test kills this process. Compiled only with the feature `failpoints`, which no release has.

/// Ends the process at once, without any clean-up, if `WEFT_FAILPOINT` names this step.
#[cfg(feature = "failpoints")]
pub(crate) fn failpoint(step: &str) {
    if std::env::var("WEFT_FAILPOINT").is_ok_and(|wanted| wanted == step) {
        let killed = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        assert_eq!(killed, Ok(()), "a process may kill itself");
    }
}

/// Does nothing.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn failpoint(_step: &str) {}
