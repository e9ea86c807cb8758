//! Takes a sandbox down from the outside, after its daemon has died or when it hangs.

use super::Error;
use super::files::Dir;
use super::state::State;
use crate::config::Config;

/// Removes all that the pod has left on the node but its network. `None` if there was nothing, else what went wrong;
/// a step that fails does not keep the others from being done.
pub(crate) fn remove(config: &Config, namespace: &str, id: &str) -> Option<Vec<Error>> {
    let dir = Dir::of(config, namespace, id);
    let mut errors = Vec::new();
    match State::load(&dir) {
        Ok(None) if !dir.exists() => return None,
        // Whoever removed the folder was killed in between: the rest of what the state told of had gone before.
        Ok(None) => {}
        Ok(Some(state)) => {
            for (op, process) in [("end the daemon", state.daemon), ("end sandbox-init", state.init)] {
                let ended = process.map_or(Ok(()), |process| process.kill());
                errors.extend(ended.err().map(|source| Error::Io { op, source }));
            }
            errors.extend(state.cgroup.into_iter().flat_map(|cgroup| cgroup.remove()));
        }
        Err(err) => errors.push(err),
    }
    errors.extend(dir.unmount_shm().err());
    errors.extend(dir.remove().err());
    Some(errors)
}
