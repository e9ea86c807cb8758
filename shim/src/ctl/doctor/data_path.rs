//! The eBPF data path: its file system, and what is pinned there.

use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use weft_hooks::{FastPath, LAYOUT_VERSION, Mode, PROGRAM_VERSION, Versions};

use super::Finding;
use crate::config::Config;
use crate::error::chain;
use crate::fast_path;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    if !config.fast_path {
        return vec![Finding::ok("fast path", "switched off: fast_path = false")];
    }
    vec![file_system(&config.bpf_dir), programs(&config.bpf_dir)]
}

fn file_system(dir: &Path) -> Finding {
    let check = "bpffs";
    let parent = dir.parent().unwrap_or(dir);
    match statfs(parent) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            Finding::ok(check, format!("mounted on {}", parent.display()))
        }
        Ok(_) => Finding::warning(
            check,
            format!("{} has no bpf file system", parent.display()),
            format!("the first pod mounts one; if it does not: mount -t bpf bpf {}", parent.display()),
        ),
        Err(err) => Finding::problem(
            check,
            format!("{}: {err}", parent.display()),
            "a kernel with CONFIG_BPF_SYSCALL, and /sys mounted; without it pods are routed",
        ),
    }
}

fn programs(dir: &Path) -> Finding {
    let check = "programs";
    match FastPath::status(dir) {
        Ok(None) => Finding::warning(
            check,
            format!("none in {}", dir.display()),
            "weft init loads them, and so does the first pod",
        ),
        Ok(Some(versions)) => of(check, versions),
        Err(err) => Finding::problem(check, chain(&err), "weft cleanup removes the pins, pods and all"),
    }
}

fn of(check: &'static str, versions: Versions) -> Finding {
    let Versions { layout, program, mode, forced } = versions;
    let found = format!("version {program}, layout {layout}, {mode}");
    if layout != LAYOUT_VERSION {
        let remedy = format!(
            "this weft knows layout {LAYOUT_VERSION} and routes new pods: install the weft that made the pins, or drain the node and run \
             weft cleanup"
        );
        return Finding::problem(check, found, remedy);
    }
    if program < PROGRAM_VERSION {
        let remedy = format!("the next pod, or weft init, loads version {PROGRAM_VERSION}");
        return Finding::warning(check, found, remedy);
    }
    if program > PROGRAM_VERSION {
        let remedy =
            "a newer weft has loaded them, and they are used as they are: install that version here too";
        return Finding::warning(check, found, remedy);
    }
    match mode {
        Mode::RedirectPeer => Finding::ok(check, found),
        Mode::Redirect if forced => Finding::ok(check, format!("{found}: {}", fast_path::NO_PEER)),
        Mode::Redirect => Finding::warning(
            check,
            found,
            "bpf_redirect_peer was refused, so packets take one more step: Linux 5.10 or newer has it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn other_versions_have_their_own_remedies() {
        let good = Versions {
            layout: LAYOUT_VERSION,
            program: PROGRAM_VERSION,
            mode: Mode::RedirectPeer,
            forced: false,
        };
        for (versions, level, remedy) in [
            (good, Level::Ok, ""),
            (Versions { layout: LAYOUT_VERSION + 1, ..good }, Level::Problem, "drain the node"),
            (Versions { program: PROGRAM_VERSION - 1, ..good }, Level::Warning, "weft init"),
            (Versions { program: PROGRAM_VERSION + 1, ..good }, Level::Warning, "newer weft"),
            (Versions { mode: Mode::Redirect, ..good }, Level::Warning, "bpf_redirect_peer"),
            (Versions { mode: Mode::Redirect, forced: true, ..good }, Level::Ok, ""),
        ] {
            let finding = of("programs", versions);
            assert_eq!(finding.level, level, "{versions}");
            assert!(finding.remedy.contains(remedy), "{finding:?}");
        }
    }
}
