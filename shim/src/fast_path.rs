//! A pod's place on the eBPF path: its map entries and the programs on its host end.

use weft_hooks::{Error, FastPath, Mode, PodEntry, Way};
use weft_netns::Mac;

use crate::config::Config;
use crate::error::chain;
use crate::record::{DataPath, Names, Record};

/// Why a pod is routed although the programs hang on its link: the redirect would pass its limits by.
const LIMITED: &str = "bandwidth limit";

/// Why packets between pods take one step more than they must.
pub(crate) const NO_PEER: &str = "redirect_peer = false";

/// Opens the programs, loads them first if need be, and has them redirect as the configuration says.
///
/// # Errors
/// As of [`FastPath::open`].
pub(crate) fn load(config: &Config) -> Result<FastPath, Error> {
    let way = if config.redirect_peer { Way::Best } else { Way::Only(Mode::Redirect) };
    FastPath::open_by(&config.bpf_dir, &config.run_dir, way)
}

/// Whether the programs hang on the pod's link, and its addresses are in their map.
pub(crate) fn is_hooked(record: &Record) -> bool {
    record.data_path == DataPath::Redirect || record.data_path_reason.as_deref() == Some(LIMITED)
}

/// Puts the pod on the eBPF path. A pod always gets a network: where the kernel or the node cannot do it, the
/// packets are routed instead, and the record says why.
pub(crate) fn take(config: &Config, record: &mut Record, names: &Names) {
    if !config.fast_path {
        record.data_path_reason = Some("fast_path = false".into());
        return;
    }
    match hook(config, record, names) {
        Ok(()) if record.bandwidth.is_unlimited() => record.data_path = DataPath::Redirect,
        Ok(()) => record.data_path_reason = Some(LIMITED.into()),
        Err(err) => {
            // Half on the path is off it; an entry that cannot be removed now is removed at detach.
            let left = leave(config, record, record.host_index);
            let reasons = [Some(chain(&err)), left.err().map(|err| chain(&err))];
            record.data_path_reason = Some(reasons.into_iter().flatten().collect::<Vec<_>>().join("; "));
        }
    }
}

fn hook(config: &Config, record: &Record, names: &Names) -> Result<(), Error> {
    let mut fast_path = load(config)?;
    let entry = entry(record, names);
    // The entries first: a program without them takes all that the pod sends for spoofed.
    record.addresses.iter().try_for_each(|address| fast_path.set_pod(*address, &entry))?;
    fast_path.attach(&record.host_link)
}

fn entry(record: &Record, names: &Names) -> PodEntry {
    PodEntry {
        ifindex: record.host_index,
        mac: names.mac.bytes(),
        host_mac: names.host_mac.bytes(),
        stack_only: !record.bandwidth.is_unlimited(),
    }
}

/// Writes down other MAC addresses of a pod that is on the path already.
pub(crate) fn rename(config: &Config, record: &Record, names: &Names) -> Result<(), Error> {
    let Some(mut fast_path) = open(config)?.filter(|_| is_hooked(record)) else { return Ok(()) };
    let entry = entry(record, names);
    record.addresses.iter().try_for_each(|address| fast_path.set_pod(*address, &entry))
}

/// The programs, if there are any, whichever way they redirect.
pub(crate) fn open(config: &Config) -> Result<Option<FastPath>, Error> {
    match FastPath::status(&config.bpf_dir)? {
        Some(_) => FastPath::open(&config.bpf_dir, &config.run_dir).map(Some),
        None => Ok(None),
    }
}

/// Takes the pod's addresses and its counters off the path, but for those that another pod has by now. `index` is 0 where the host end is gone
/// and was not written down: the entries say then whose they are.
pub(crate) fn leave(config: &Config, record: &Record, index: u32) -> Result<(), Error> {
    let Some(mut fast_path) = open(config)? else { return Ok(()) };
    let mut counted = index;
    for address in &record.addresses {
        let own = |entry: &PodEntry| Mac::new(entry.mac).to_string() == record.mac;
        let index = match index {
            0 => fast_path.pod(*address)?.filter(own).map(|entry| entry.ifindex),
            known => Some(known),
        };
        if let Some(index) = index {
            fast_path.remove_pod(*address, index)?;
            counted = index;
        }
    }
    fast_path.forget_counters(counted).map(drop)
}
