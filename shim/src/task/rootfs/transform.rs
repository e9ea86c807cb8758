//! What a mount's type may ask for before the mount: `format/`, which fills in templates, and `mkdir/`, which makes folders
//! (docs/mounts.md of containerd). A list of mounts may use mounts before it that way, as an overlay its layers.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;

use super::Error;

/// Of a filled template, in bytes. A thousand layers need less.
const LONGEST: usize = 128 << 10;

const MKDIR: &str = "X-containerd.mkdir.";

/// A mount that was made aside, for those after it.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) source: String,
    pub(super) target: String,
    /// Where it is; of type `loop`, the device.
    pub(super) point: PathBuf,
}

/// How many mounts from the first on are for others to use: all before the last whose type has a transform, or is `loop`.
pub(super) fn aside(mounts: &[Mount]) -> usize {
    let transformed = mounts.iter().rposition(|mount| mount.type_.contains('/')).unwrap_or(0);
    let devices = mounts.iter().rposition(|mount| mount.type_ == "loop").map_or(0, |index| index + 1);
    transformed.max(devices)
}

/// The plain mount that `mount` stands for, after its transforms from the left to the right. Folders that are made go to `made`.
pub(super) fn apply(mount: &Mount, active: &[Active], made: &mut Vec<PathBuf>) -> Result<Mount, Error> {
    let mut plain = mount.clone();
    let unknown = || Error::Transform { kind: mount.type_.clone() };
    let mut done = Vec::new();
    while let Some((transform, rest)) = plain.type_.clone().split_once('/') {
        plain.type_ = rest.to_owned();
        if done.iter().any(|name| name == transform) {
            return Err(unknown());
        }
        done.push(transform.to_owned());
        match transform {
            "format" => {
                plain.source = fill(&plain.source, active)?;
                plain.target = fill(&plain.target, active)?;
                plain.options = plain.options.iter().map(|it| fill(it, active)).collect::<Result<_, _>>()?;
            }
            "mkdir" => {
                let (folders, others): (Vec<_>, Vec<_>) =
                    plain.options.into_iter().partition(|option| option.starts_with(MKDIR));
                folders.iter().try_for_each(|option| make_folder(option, made))?;
                plain.options = others;
            }
            _ => return Err(unknown()),
        }
    }
    Ok(plain)
}

/// Fills in `{{ source N }}`, `{{ target N }}`, `{{ mount N }}` and `{{ overlay FIRST LAST }}`.
fn fill(text: &str, active: &[Active]) -> Result<String, Error> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let bad = || Error::Template { text: text.to_owned(), mounts: active.len() };
        let (template, after) = after.split_once("}}").ok_or_else(bad)?;
        filled.push_str(before);
        filled.push_str(&value(template, active).ok_or_else(bad)?);
        if filled.len() > LONGEST {
            return Err(Error::TooLong { text: text.to_owned(), most: LONGEST });
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(template: &str, active: &[Active]) -> Option<String> {
    let mut words = template.split_whitespace();
    let function = words.next()?;
    let indices: Vec<usize> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let point = |index: &usize| Some(active.get(*index)?.point.to_str()?.to_owned());
    match (function, &indices[..]) {
        ("source", [index]) => Some(active.get(*index)?.source.clone()),
        ("target", [index]) => Some(active.get(*index)?.target.clone()),
        ("mount", [index]) => point(index),
        // Checked before the range is made: it comes from outside.
        ("overlay", [first, last]) if *first.max(last) < active.len() => {
            let mut layers: Vec<usize> = (*first.min(last)..=*first.max(last)).collect();
            if first > last {
                layers.reverse();
            }
            Some(layers.iter().map(point).collect::<Option<Vec<_>>>()?.join(":"))
        }
        _ => None,
    }
}

/// `X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`; the mode is octal, 0700 by default. A folder that is there stays as it is.
fn make_folder(option: &str, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let bad = || Error::Folders { option: option.to_owned() };
    let value = option.strip_prefix(MKDIR).and_then(|rest| rest.strip_prefix("path=")).ok_or_else(bad)?;
    let parts: Vec<&str> = value.split(':').collect();
    let (path, mode, owner) = match parts[..] {
        [path] => (path, "0700", None),
        [path, mode] => (path, mode, None),
        [path, mode, uid, gid] => (path, mode, Some((uid, gid))),
        _ => return Err(bad()),
    };
    let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(bad)?;
    let id = |text: &str| text.parse::<u32>().map_err(|_not_a_number| bad());
    let owner = owner.map(|(uid, gid)| Ok((id(uid)?, id(gid)?))).transpose()?;
    let path = Path::new(path);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(bad());
    }
    let failed = |source| Error::Folder { path: path.to_owned(), source };
    match DirBuilder::new().mode(mode).create(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        created => created.map_err(failed)?,
    }
    made.push(path.to_owned());
    // The umask may have taken something away.
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active() -> Vec<Active> {
        let active = |n: u32| Active {
            source: format!("s{n}"),
            target: format!("t{n}"),
            point: format!("/m/{n}").into(),
        };
        (0..3).map(active).collect()
    }

    #[test]
    fn templates_name_the_mounts_before() {
        let cases = [
            ("plain", "plain"),
            ("{{ source 0 }}/fs", "s0/fs"),
            ("{{target 1}}", "t1"),
            ("a={{ mount 2 }}:{{ mount 0 }}", "a=/m/2:/m/0"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/m/0:/m/1:/m/2"),
            ("lowerdir={{ overlay 2 1 }}", "lowerdir=/m/2:/m/1"),
        ];
        for (template, want) in cases {
            assert_eq!(fill(template, &active()).unwrap(), want);
        }
        for bad in [
            "{{ mount 3 }}",
            "{{ mount }}",
            "{{ mount -1 }}",
            "{{ overlay 0 3 }}",
            "{{ overlay 0 18446744073709551615 }}",
            "{{ exec 0 }}",
            "{{ mount 0",
            "{{}}",
        ] {
            assert!(matches!(fill(bad, &active()), Err(Error::Template { .. })), "{bad}");
        }
    }

    #[test]
    fn folders_are_made_as_described() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, rest: &str| {
            make_folder(&format!("{MKDIR}path={}{rest}", dir.path().join(name).display()), &mut Vec::new())
        };
        make("a", "").unwrap();
        make("b", ":0751").unwrap();
        make("b", ":0700").unwrap();
        let mode =
            |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("b")), (0o700, 0o751), "one that is there stays");
        for bad in [":0999", ":01777", ":0700:1", ":0700:1:x:1", ":0700:x:1"] {
            assert!(matches!(make("c", bad), Err(Error::Folders { .. })), "{bad}");
        }
        for bad in ["mode=1", "path=relative", "path=/tmp/../x"] {
            let refused = make_folder(&format!("{MKDIR}{bad}"), &mut Vec::new());
            assert!(matches!(refused, Err(Error::Folders { .. })), "{bad}");
        }
        assert!(!dir.path().join("c").exists(), "what is refused makes nothing");
        assert!(matches!(make("no/such", ""), Err(Error::Folder { .. })));
    }

    #[test]
    fn templates_that_fill_in_each_other_end() {
        let mut active = vec![Active { source: "x".repeat(64), target: String::new(), point: "/m/0".into() }];
        let mut filled = Ok(String::new());
        while filled.is_ok() && active.len() < 100 {
            let last = active.len() - 1;
            filled = fill(&format!("{{{{ source {last} }}}}{{{{ source {last} }}}}"), &active);
            let source = filled.as_ref().map_or_else(|_| String::new(), Clone::clone);
            active.push(Active { source, target: String::new(), point: "/m".into() });
        }
        assert!(matches!(filled, Err(Error::TooLong { .. })), "{filled:?}");
        assert!(active.iter().all(|one| one.source.len() <= LONGEST));
        let twice = Mount { type_: "format/format/bind".into(), ..Default::default() };
        assert!(matches!(apply(&twice, &[], &mut Vec::new()), Err(Error::Transform { .. })));
    }
}
