//! The kernel's clock, by which elements expire.

use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::Error;

/// Waits until the kernel's clock has ticked: what was to [expire](super::Batch::expire_elements) before has done so. A tick is 4 ms at
/// 250 Hz, and 10 at most.
///
/// # Errors
/// [`Error::Netfilter`] if there is no such clock.
pub fn await_tick() -> Result<(), Error> {
    ticked().map_err(|err| Error::Netfilter { op: "wait for the kernel's clock".into(), source: err.into() })
}

fn ticked() -> nix::Result<()> {
    // It stands still from tick to tick (clock_gettime(2), `CLOCK_MONOTONIC_COARSE`).
    let coarse = ClockId::CLOCK_MONOTONIC_COARSE;
    let (before, tick) = (clock_gettime(coarse)?, clock_getres(coarse)?);
    while clock_gettime(coarse)? == before {
        let since = clock_gettime(ClockId::CLOCK_MONOTONIC)? - before;
        std::thread::park_timeout(
            Duration::from(tick).saturating_sub(since.into()).max(Duration::from_micros(20)),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_has_passed() {
        let coarse = || clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
        for _ in 0..20 {
            let before = coarse();
            await_tick().unwrap();
            assert!(coarse() > before);
        }
    }
}
