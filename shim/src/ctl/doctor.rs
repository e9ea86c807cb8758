//! `weft doctor`: looks at everything that pods' networks need, and names a remedy for what is not as it should be.
//!
//! A check looks and never mends. Each is a function of one of the files below; it asks the kernel or reads the file itself, and only
//! containerd and weft's own programs are run, to ask them for version and configuration.

mod binaries;
mod cni;
mod containerd;
mod data_path;
mod kernel;
mod state;

use std::io::Write;

use serde_json::{Value, json};

use super::Error;
use super::args::{self, Format};
use super::show::{line, print_json};
use crate::config::Config;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Ok,
    /// Pods have their network, but not all that they could have.
    Warning,
    /// Pods have no network, or will not have one.
    Problem,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// What one look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    check: &'static str,
    found: String,
    /// Empty where nothing is to be done.
    remedy: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { level: Level::Ok, check, found: found.into(), remedy: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Warning, check, found: found.into(), remedy: remedy.into() }
    }

    fn problem(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Problem, check, found: found.into(), remedy: remedy.into() }
    }
}

/// All checks, in the order in which one depends on another.
pub(super) fn run(
    config: &Config,
    args: &args::Doctor,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut findings = kernel::look(config);
    findings.extend(data_path::look(config));
    findings.extend(state::look(config));
    let (dirs, more) = containerd::look(args);
    findings.extend(more);
    findings.extend(cni::look(config, &dirs.conf));
    findings.extend(binaries::look(&dirs.bin));
    match format {
        Format::Json => print_json(out, &findings.iter().map(as_json).collect::<Value>())?,
        Format::Table => print(&findings, out)?,
    }
    match findings.iter().filter(|finding| finding.level == Level::Problem).count() {
        0 => Ok(()),
        1 => Err(Error::Found("1 problem".into())),
        count => Err(Error::Found(format!("{count} problems"))),
    }
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "level": finding.level.word(), "check": finding.check, "found": finding.found, "remedy": finding.remedy,
    })
}

fn print(findings: &[Finding], out: &mut impl Write) -> Result<(), Error> {
    for finding in findings {
        line(out, &format!("{:<8} {:<17} {}", finding.level.word(), finding.check, finding.found))?;
        if !finding.remedy.is_empty() {
            line(out, &format!("{:<26} remedy: {}", "", finding.remedy))?;
        }
    }
    Ok(())
}
