//! For the fuzz targets: lists of mounts, up to the first file.

use containerd_shim_protos::types::mount::Mount;

use super::{parse, transform};
use crate::fuzz::check_error;

/// Reads the mounts of a request; of the transforms all but those that make folders.
pub(crate) fn mounts(mounts: &[Mount], input: &[u8]) {
    let mut active = Vec::new();
    let aside = transform::aside(mounts);
    assert!(aside <= mounts.len());
    for mount in mounts.iter().filter(|mount| !mount.type_.contains("mkdir")) {
        match transform::apply(mount, &active, &mut Vec::new()) {
            Ok(plain) => {
                if let Err(err) = parse(&plain) {
                    check_error(&err, input);
                }
                let point = format!("/m/{}", active.len()).into();
                active.push(transform::Active { source: plain.source, target: plain.target, point });
            }
            Err(err) => return check_error(&err, input),
        }
    }
}
