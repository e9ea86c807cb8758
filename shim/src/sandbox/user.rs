//! A pod's user namespace as CRI describes it: one range of users and one of groups, each with its root.

use std::path::PathBuf;

use super::Error;
use crate::proto::cri::{IDMapping, NamespaceMode, UserNamespace};

/// The ids of a pod, by where they lie on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uids: Range,
    pub(super) gids: Range,
}

/// `0..length` inside is `host..host + length` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// The node's id of the pod's root.
    pub(super) host: u32,
    pub(super) length: u32,
}

impl User {
    /// `None` in the node's user namespace. The same is refused as by containerd's `podsandbox`
    /// (`parseUsernsIDs` in helpers_linux.go), and a pod without a root, in which no OCI runtime can set up a container.
    pub(super) fn of(options: &UserNamespace) -> Result<Option<User>, Error> {
        match options.mode.enum_value() {
            Ok(NamespaceMode::NODE) if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
            Ok(NamespaceMode::NODE) => Err(Error::MapsOfNode),
            Ok(NamespaceMode::POD) => {
                let (uids, gids) = (Range::of("uid", &options.uids)?, Range::of("gid", &options.gids)?);
                Ok(Some(User { uids, gids }))
            }
            Ok(mode) => Err(Error::UserMode(format!("{mode:?}"))),
            Err(number) => Err(Error::UserMode(number.to_string())),
        }
    }

    /// Gives a user namespace its ids, from outside, once (user_namespaces(7)); `pid` is in it.
    pub(super) fn map(&self, pid: u32) -> Result<(), Error> {
        for (file, range) in [("uid_map", self.uids), ("gid_map", self.gids)] {
            let path = PathBuf::from(format!("/proc/{pid}/{file}"));
            let written = std::fs::write(&path, format!("0 {} {}\n", range.host, range.length));
            written.map_err(|source| Error::File { op: "write", path, source })?;
        }
        Ok(())
    }
}

impl Range {
    fn of(kind: &'static str, maps: &[IDMapping]) -> Result<Range, Error> {
        let [map] = maps else {
            return Err(Error::MapCount { kind, got: maps.len() });
        };
        if map.container_id != 0 || map.length == 0 {
            return Err(Error::NoRoot { kind, first: map.container_id, length: map.length });
        }
        Ok(Range { host: map.host_id, length: map.length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> IDMapping {
        IDMapping { container_id, host_id, length, ..Default::default() }
    }

    fn user(mode: NamespaceMode, uids: &[IDMapping], gids: &[IDMapping]) -> Result<Option<User>, String> {
        let options = UserNamespace {
            mode: mode.into(),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
            ..Default::default()
        };
        User::of(&options).map_err(|err| err.to_string())
    }

    #[test]
    fn a_pod_has_one_range_of_users_and_one_of_groups() {
        let (uids, gids) = (Range { host: 1000, length: 100_000 }, Range { host: 2000, length: 65_536 });
        let got = user(NamespaceMode::POD, &[map(0, 1000, 100_000)], &[map(0, 2000, 65_536)]);
        assert_eq!(got, Ok(Some(User { uids, gids })));
        assert_eq!(user(NamespaceMode::NODE, &[], &[]), Ok(None));
    }

    #[test]
    fn every_other_mapping_is_refused_by_name() {
        let good = [map(0, 1000, 10)];
        let two = [map(0, 1000, 10), map(10, 2000, 10)];
        let cases = [
            (NamespaceMode::POD, &two[..], &good[..], "user namespace: got 2 uid mappings, want 1"),
            (NamespaceMode::POD, &good, &two, "user namespace: got 2 gid mappings, want 1"),
            (NamespaceMode::POD, &good, &[], "user namespace: got 0 gid mappings, want 1"),
            (
                NamespaceMode::POD,
                &[map(1, 1000, 10)],
                &good,
                "user namespace: uid mapping of 10 ids from 1 on has no id 0",
            ),
            (
                NamespaceMode::POD,
                &good,
                &[map(0, 1000, 0)],
                "user namespace: gid mapping of 0 ids from 0 on has no id 0",
            ),
            (NamespaceMode::NODE, &good, &good, "user namespace: mode NODE has no mappings"),
            (NamespaceMode::CONTAINER, &good, &good, "user namespace: got mode CONTAINER, want POD or NODE"),
            (NamespaceMode::TARGET, &[], &[], "user namespace: got mode TARGET, want POD or NODE"),
        ];
        for (mode, uids, gids, want) in cases {
            assert_eq!(user(mode, uids, gids), Err(want.to_owned()));
        }
    }
}
