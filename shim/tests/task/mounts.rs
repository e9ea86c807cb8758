//! Root file systems of layers, and of layers whose ids are mapped.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::*;
use containerd_shim_protos::types::mount::Mount;

use crate::fixture::*;

/// An ext4 file system, the ids of which every kernel can map: a tmpfs can since Linux 6.3, an overlay cannot.
struct Disk(PathBuf);

impl Disk {
    /// With a copy of the fixture's image.
    fn new(shim: &Shim) -> Disk {
        let (file, disk) = (shim.dir.path().join("disk.ext4"), shim.dir.path().join("disk"));
        fs::create_dir(&disk).unwrap();
        run("mkfs.ext4", &["-q".as_ref(), file.as_ref(), "64M".as_ref()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), file.as_ref(), disk.as_ref()]);
        let disk = Disk(disk);
        run("cp", &["-a".as_ref(), shim.dir.path().join("image").as_ref(), disk.0.as_ref()]);
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// Folders with a file each, the name of which is their number; lowest first.
fn layers(disk: &Disk, count: usize) -> Vec<PathBuf> {
    let make = |index: usize| {
        let layer = disk.0.join(format!("a-layer-with-a-long-name-as-snapshotters-give/{index}/fs"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("f{index}")), "").unwrap();
        layer
    };
    (0..count).map(make).collect()
}

/// As containerd's snapshotter describes it: the uppermost layer first, the image last.
fn overlay(disk: &Disk, layers: &[PathBuf], more: &[&str]) -> Mount {
    let image = disk.0.join("image");
    let lower: Vec<String> =
        layers.iter().rev().chain([&image]).map(|layer| layer.display().to_string()).collect();
    let folder = disk.0.join("upper");
    for name in ["fs", "work"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    let mut options = vec![
        format!("workdir={}/work", folder.display()),
        format!("upperdir={}/fs", folder.display()),
        format!("lowerdir={}", lower.join(":")),
    ];
    options.extend(more.iter().map(|option| (*option).to_owned()));
    Mount { type_: "overlay".into(), source: "overlay".into(), options, ..Default::default() }
}

/// Mount points below a folder, from the kernel's list.
pub(crate) fn mounts_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}

async fn created(shim: &Shim, bundle: &Bundle, rootfs: Mount) {
    let request = CreateTaskRequest { rootfs: vec![rootfs], ..shim.create_request(bundle) };
    shim.task.create(context(), &request).await.unwrap();
}

async fn deleted(shim: &Shim, bundle: &Bundle) {
    shim.end(bundle).await;
    assert_eq!(mounts_below(&bundle.path), Vec::<String>::new());
    assert!(!bundle.path.join("layers").exists());
}

const MAPS: [&str; 2] = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"];

#[tokio::test]
async fn a_root_file_system_of_a_hundred_layers_shows_them_all() {
    let shim = Shim::new().await;
    let disk = Disk::new(&shim);
    let layers = layers(&disk, 100);
    for maps in [&[][..], &MAPS[..]] {
        let bundle = shim.bundle(&format!("hundred-{}", maps.len()), "sleep 1000");
        created(&shim, &bundle, overlay(&disk, &layers, maps)).await;
        let rootfs = bundle.path.join("rootfs");
        for index in [0, 50, 99] {
            assert!(rootfs.join(format!("f{index}")).exists(), "layer {index} of {maps:?}");
        }
        deleted(&shim, &bundle).await;
    }
}

#[tokio::test]
async fn the_files_of_idmapped_layers_belong_to_the_pods_root() {
    let shim = Shim::new().await;
    let disk = Disk::new(&shim);
    let layers = layers(&disk, 2);
    std::os::unix::fs::chown(layers[1].join("f1"), Some(7), Some(8)).unwrap();
    let bundle = shim.bundle("mapped", "sleep 1000");
    created(&shim, &bundle, overlay(&disk, &layers, &MAPS)).await;
    let rootfs = bundle.path.join("rootfs");
    let owner = |file: &str| {
        let file = fs::metadata(rootfs.join(file)).unwrap();
        (file.uid(), file.gid())
    };
    assert_eq!(
        (owner("f0"), owner("f1"), owner("bin")),
        ((100_000, 200_000), (100_007, 200_008), (100_000, 200_000))
    );
    let on_disk = fs::metadata(layers[0].join("f0")).unwrap();
    assert_eq!((on_disk.uid(), on_disk.gid()), (0, 0), "the layer itself is as it was");
    assert_eq!(mounts_below(&bundle.path), [rootfs.display().to_string()], "nothing but the overlay");
    deleted(&shim, &bundle).await;
}

#[tokio::test]
async fn a_bind_mount_may_be_idmapped_and_read_only() {
    let shim = Shim::new().await;
    let disk = Disk::new(&shim);
    let bundle = shim.bundle("bind", "sleep 1000");
    let options = ["rbind", "ro"].iter().chain(&MAPS).map(|option| (*option).to_owned()).collect();
    let image = disk.0.join("image").display().to_string();
    created(&shim, &bundle, Mount { type_: "bind".into(), source: image, options, ..Default::default() })
        .await;
    let rootfs = bundle.path.join("rootfs");
    assert_eq!(fs::metadata(rootfs.join("bin")).unwrap().uid(), 100_000);
    let refused = fs::write(rootfs.join("x"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    deleted(&shim, &bundle).await;
}

#[tokio::test]
async fn maps_that_cannot_be_made_are_refused_and_leave_nothing() {
    let shim = Shim::new().await;
    let disk = Disk::new(&shim);
    let bundle = shim.bundle("bad", "sleep 1000");
    let cases: [(&[&str], &str); 4] = [
        (&["uidmap=0:100000:65536"], "option \"uidmap\" is not supported"),
        (&["uidmap=0:1", "gidmap=0:1:1"], "option \"uidmap=0:1\" is not supported"),
        (&["uidmap=0:1:0", "gidmap=0:1:1"], "make a user namespace for"),
        (&["uidmap=0:1:9,5:2:9", "gidmap=0:1:1"], "make a user namespace for"),
    ];
    for (maps, want) in cases {
        let request = CreateTaskRequest {
            rootfs: vec![overlay(&disk, &layers(&disk, 1), maps)],
            ..shim.create_request(&bundle)
        };
        let (_, message) = refusal(shim.task.create(context(), &request).await);
        assert!(message.contains(want), "{maps:?}: {message}");
        assert_eq!(mounts_below(&bundle.path), Vec::<String>::new());
    }
}
