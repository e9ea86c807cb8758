//! Fuzz targets: one function for each kind of input from outside, from its bytes to what weft makes of them.
//!
//! Two runners call them. `make fuzz` and `make test` let libFuzzer choose the inputs by what they reach (`run.sh`), on the stable
//! compiler; `tests/corpus.rs` tries the saved ones and changes them at random, wherever tests run. The parsers are internal to
//! their crates, so these have a hidden module `fuzz` each, behind a feature that no release has.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use weft_ipam::Store;

/// A target, by its name.
pub type Target = fn(&[u8]);

/// All targets.
pub const TARGETS: [(&str, Target); 5] =
    [("cni", cni), ("config", config), ("netlink", netlink), ("store", store), ("ttrpc", ttrpc)];

/// A call of the CNI plugin: `NAME=VALUE` lines, an empty one, and the network configuration.
pub fn cni(bytes: &[u8]) {
    weft_shim::fuzz::cni(emptied(), bytes);
}

/// The node's configuration: `NAME=VALUE` lines, an empty one, and TOML.
pub fn config(bytes: &[u8]) {
    weft_shim::fuzz::config(bytes);
}

/// What the kernel answers over netlink.
pub fn netlink(bytes: &[u8]) {
    weft_netns::fuzz::replies(bytes);
    weft_hooks::fuzz::replies(bytes);
}

/// What the store has: a pod's record if it looks like one, and else rows.
pub fn store(bytes: &[u8]) {
    if bytes.starts_with(b"{") {
        weft_shim::fuzz::record(bytes);
    } else {
        weft_ipam::fuzz::rows(emptied(), bytes);
    }
}

/// A request to a service, or something else that containerd, an OCI runtime or the kernel gives to a shim: the first byte says
/// what.
pub fn ttrpc(bytes: &[u8]) {
    weft_shim::fuzz::request(bytes);
}

/// Inputs to begin with that are no text, by the target.
///
/// # Errors
/// Those of the store.
pub fn seeds() -> Result<Vec<(&'static str, Vec<u8>)>, weft_ipam::Error> {
    let mut seeds = vec![("store", weft_ipam::fuzz::seed(emptied())?)];
    seeds.extend(weft_shim::fuzz::requests().into_iter().map(|seed| ("ttrpc", seed)));
    Ok(seeds)
}

/// Writes the inputs to begin with that are made by code into the folder `WEFT_FUZZ_SEEDS`, which a runner reads next.
///
/// # Panics
/// If that cannot be done.
pub fn plant(target: &str) {
    let Some(folder) = std::env::var_os("WEFT_FUZZ_SEEDS").map(PathBuf::from) else { return };
    let seeds = match seeds() {
        Ok(seeds) => seeds,
        Err(err) => panic!("make seeds: {err}"),
    };
    for (number, (_, seed)) in seeds.iter().enumerate().filter(|(_, (of, _))| *of == target) {
        if let Err(err) = std::fs::write(folder.join(format!("seed-{number}")), seed) {
            panic!("write a seed to {}: {err}", folder.display());
        }
    }
}

/// Saved inputs, by the target: `corpus/TARGET/NAME`.
///
/// # Errors
/// Those of the file system.
pub fn corpus(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::read_dir(folder)?.map(|file| std::fs::read(file?.path())).collect()
}

/// A store without rows. Its files have no name any more: nothing is left of them however the process ends.
fn emptied() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| match tempfile::tempdir().map(|dir| Store::open(dir.path())) {
        Ok(Ok(store)) => store,
        Ok(Err(err)) => panic!("open a store: {err}"),
        Err(err) => panic!("make a folder for a store: {err}"),
    })
}
