//! The text formats that cgroup files share: one number, `key value` lines, and huge page sizes.

use std::fs;
use std::path::Path;

/// The whole file, empty if there is none.
pub(super) fn text(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

/// The one number of a file; `max` is `u64::MAX`, no file is 0.
pub(super) fn number(folder: &Path, file: &str) -> u64 {
    one(&text(folder, file))
}

fn one(text: &str) -> u64 {
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

/// The sizes as cgroup file names spell them: `2MB`, `1GB`.
pub(super) fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        huge_page_size(name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?)
    };
    let mut sizes: Vec<String> = entries.flatten().filter_map(size).collect();
    sizes.sort();
    sizes
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
