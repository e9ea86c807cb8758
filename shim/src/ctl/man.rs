//! `weft man DIR`: one page a command, `weft.8`, `weft-pods.8` and so on, for packages.

use std::path::Path;

use clap::CommandFactory;

use super::Error;
use super::args::Cli;

/// Section 8: commands of administrators (man-pages(7)).
const SECTION: &str = "8";

/// Writes the pages into the folder, which is made if it is missing.
pub(super) fn write(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, dir, failed)
}

fn pages(
    command: &clap::Command,
    dir: &Path,
    failed: impl Fn(std::io::Error) -> Error + Copy,
) -> Result<(), Error> {
    let page = clap_mangen::Man::new(command.clone()).section(SECTION);
    page.generate_to(dir).map_err(failed)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        pages(sub, dir, failed)?;
    }
    Ok(())
}
