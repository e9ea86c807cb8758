//! The counters of a cgroup, from files that stay open: containerd asks for those of every container and pod each second.
//!
//! A file is opened when it is first read, and read by pread(2) from then on: there are at most as many descriptors as
//! files that are read, some 30 for each cgroup. That they are open keeps nobody from removing the cgroup; then reading
//! fails with `ENODEV` (`kernfs_seq_start` in the kernel's fs/kernfs/file.c). Below are the text formats that the files
//! share: one number, `key value` lines, and huge page sizes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use protobuf::well_known_types::any::Any;

use super::cgroup::Cgroup;
use super::{metrics_v1, metrics_v2};

/// A read that is shorter is the whole file: the kernel makes the text of such a file in one piece.
const READ: usize = 4096;

/// What one cgroup has used.
#[derive(Debug)]
pub(crate) enum Counters {
    /// By controller.
    V1(BTreeMap<&'static str, Folder>),
    V2(Folder),
}

/// The files of one folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// By name; `None` for one that is not there: which ones there are depends on the kernel's configuration.
    files: Vec<(Box<str>, Option<File>)>,
}

impl Counters {
    /// # Errors
    /// `NotFound` if there is no such cgroup.
    pub(crate) fn of(cgroup: &Cgroup) -> io::Result<Counters> {
        match cgroup {
            Cgroup::V2(path) => Folder::open(path).map(Counters::V2),
            Cgroup::V1(paths) => {
                let folder =
                    |(name, path): (&&'static str, &PathBuf)| Some((*name, Folder::open(path).ok()?));
                let folders: BTreeMap<_, _> = paths.iter().filter_map(folder).collect();
                // A runtime makes them together; a hierarchy may not be mounted.
                if folders.is_empty() {
                    Err(io::ErrorKind::NotFound.into())
                } else {
                    Ok(Counters::V1(folders))
                }
            }
        }
    }

    /// As `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
    ///
    /// # Errors
    /// `NotFound` if the cgroup has been removed.
    pub(crate) fn read(&mut self) -> io::Result<Any> {
        let packed = match self {
            Counters::V1(folders) => {
                crate::events::any("io.containerd.cgroups.v1", &metrics_v1::read(folders)?)
            }
            Counters::V2(folder) => {
                crate::events::any("io.containerd.cgroups.v2", &metrics_v2::read(folder)?)
            }
        };
        packed.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// The counters of one cgroup over its life.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Reading>);

#[derive(Debug, Default)]
enum Reading {
    /// Nobody has asked, or the cgroup was gone.
    #[default]
    Closed,
    Open(Counters),
    Ended(Any),
}

impl Meter {
    /// Those of the pod's cgroup at `path`, as /proc/self/cgroup spells it, or of a systemd slice by its name.
    ///
    /// # Errors
    /// `NotFound` if there is no such cgroup.
    pub(crate) fn read_at(&self, path: &Path) -> io::Result<Any> {
        self.read(&Cgroup::at(&path.to_string_lossy()))
    }

    /// Those of `cgroup`, which is always the same one.
    pub(super) fn read(&self, cgroup: &Cgroup) -> io::Result<Any> {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counters = match std::mem::take(&mut *reading) {
            Reading::Ended(last) => {
                *reading = Reading::Ended(last.clone());
                return Ok(last);
            }
            Reading::Open(counters) => counters,
            Reading::Closed => Counters::of(cgroup)?,
        };
        let counted = counters.read();
        if !matches!(&counted, Err(err) if err.kind() == io::ErrorKind::NotFound) {
            *reading = Reading::Open(counters);
        }
        counted
    }

    /// Reads once more: that is the answer from now on, and no file stays open.
    pub(super) fn end(&self, cgroup: &Cgroup) -> io::Result<()> {
        let last = self.read(cgroup);
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *reading = Reading::Closed;
        *reading = Reading::Ended(last?);
        Ok(())
    }
}

impl Folder {
    pub(super) fn open(path: &Path) -> io::Result<Folder> {
        fs::metadata(path)?;
        Ok(Folder { path: path.to_owned(), files: Vec::new() })
    }

    /// The whole file, empty if there is none.
    pub(super) fn text(&mut self, name: &str) -> io::Result<String> {
        let known = self.files.iter().find(|(known, _)| **known == *name);
        let text = match known {
            Some((_, file)) => file.as_ref().map_or_else(|| Ok(String::new()), read_whole),
            None => self.open_and_read(name),
        };
        match text {
            Err(err) if err.raw_os_error() == Some(libc::ENODEV) => Err(io::ErrorKind::NotFound.into()),
            // Pressure is not counted with psi=0.
            Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
            text => text,
        }
    }

    fn open_and_read(&mut self, name: &str) -> io::Result<String> {
        let file = match File::open(self.path.join(name)) {
            Ok(file) => Some(file),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => return Err(err),
        };
        let text = file.as_ref().map_or_else(|| Ok(String::new()), read_whole);
        self.files.push((name.into(), file));
        text
    }

    /// The one number of a file; `max` is `u64::MAX`, no file is 0.
    pub(super) fn number(&mut self, name: &str) -> io::Result<u64> {
        Ok(one(&self.text(name)?))
    }
}

fn read_whole(file: &File) -> io::Result<String> {
    // On the stack: the heap of a shim that is asked each second stays as it is.
    let mut page = [0; READ];
    let mut text = Vec::new();
    loop {
        match file.read_at(&mut page, text.len() as u64) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            read => {
                let part = page.get(..read?).unwrap_or_default();
                text.extend_from_slice(part);
                if part.len() < READ {
                    return String::from_utf8(text)
                        .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err));
                }
            }
        }
    }
}

pub(super) fn one(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or_default(),
    }
}

/// `key value` lines.
pub(super) fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, one(value)))
    })
}

/// The value of one key, 0 if it is not there.
pub(super) fn field(text: &str, key: &str) -> u64 {
    keyed(text).find(|(name, _)| *name == key).map_or(0, |(_, value)| value)
}

/// The sizes as cgroup file names spell them: `2MB`, `1GB`. Those of the machine, which do not change.
pub(super) fn huge_page_sizes() -> &'static [String] {
    static SIZES: LazyLock<Vec<String>> = LazyLock::new(|| {
        let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
        let size = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            huge_page_size(name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?)
        };
        let mut sizes: Vec<String> = entries.flatten().filter_map(size).collect();
        sizes.sort();
        sizes
    });
    &SIZES
}

/// As mm/hugetlb_cgroup.c of the kernel writes a size.
fn huge_page_size(kib: u64) -> Option<String> {
    Some(match kib {
        0 => return None,
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_cgroup_is_not_found() {
        let meter = Meter::default();
        let err = meter.read_at(Path::new("/weft-test-nowhere")).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_of_any_length_is_read_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        for (name, length) in [("empty", 0), ("short", 10), ("page", READ), ("pages", 3 * READ + 1)] {
            std::fs::write(dir.path().join(name), "x".repeat(length)).unwrap();
            assert_eq!(folder.text(name).unwrap().len(), length, "{name}");
        }
        assert_eq!(folder.text("missing").unwrap(), "");
        std::fs::write(dir.path().join("short"), "12\n").unwrap();
        assert_eq!(folder.number("short").unwrap(), 12, "read anew, from its beginning");
    }

    #[test]
    fn numbers_and_max() {
        assert_eq!(one("12\n"), 12);
        assert_eq!(one("max\n"), u64::MAX);
        assert_eq!(one(""), 0);
        assert_eq!(field("a 1\nb 2\n", "b"), 2);
        assert_eq!(field("a 1\n", "c"), 0);
    }

    #[test]
    fn page_sizes_are_spelled_as_the_kernel_does() {
        assert_eq!(huge_page_size(2048).unwrap(), "2MB");
        assert_eq!(huge_page_size(1 << 20).unwrap(), "1GB");
        assert_eq!(huge_page_size(64).unwrap(), "64KB");
    }
}
