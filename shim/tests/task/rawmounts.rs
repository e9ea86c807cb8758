//! Root file systems as a client without a mount manager passes them: images in files, templates, folders to be made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::api::*;
use containerd_shim_protos::types::mount::Mount;

use crate::fixture::*;
use crate::mounts::mounts_below;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { type_: kind.into(), source: source.into(), options, ..Default::default() }
}

/// The fixture's image as a file system in a file.
fn image(shim: &Shim, kind: &str) -> String {
    let (folder, file) = (shim.dir.path().join("image"), shim.dir.path().join(format!("image.{kind}")));
    let mut make = match kind {
        "ext4" => {
            let mut make = Command::new("mkfs.ext4");
            make.args(["-q", "-d"]).arg(&folder).arg(&file).arg("16M");
            make
        }
        _ => {
            let mut make = Command::new("mkfs.erofs");
            make.arg("--quiet").arg(&file).arg(&folder);
            make
        }
    };
    let output = make.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    file.display().to_string()
}

/// Loop devices whose file is below `folder`, from the kernel's list.
fn devices_of(folder: &Path) -> Vec<PathBuf> {
    let backing = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    let files = fs::read_dir("/sys/block").unwrap().flatten().filter_map(backing);
    files.map(|file| PathBuf::from(file.trim())).filter(|file| file.starts_with(folder)).collect()
}

async fn nothing_is_left(shim: &Shim, bundle: &Bundle) {
    assert_eq!(mounts_below(&bundle.path), Vec::<String>::new());
    assert!(!bundle.path.join("mounts").exists());
    until("the loop devices are gone", || devices_of(shim.dir.path()).is_empty()).await;
}

async fn lives(shim: &Shim, name: &str, rootfs: Vec<Mount>, devices: usize) {
    let bundle = shim.bundle(name, "echo hello; exec sleep 1000");
    let (stdout, output) = bundle.output("stdout");
    let request = CreateTaskRequest { rootfs, stdout, ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    assert_eq!(devices_of(shim.dir.path()).len(), devices);
    shim.end(&bundle).await;
    output.await.unwrap();
    nothing_is_left(shim, &bundle).await;
}

#[tokio::test]
async fn a_file_system_in_a_file_is_mounted_by_a_loop_device() {
    let shim = Shim::new().await;
    let (ext4, erofs) = (image(&shim, "ext4"), image(&shim, "erofs"));
    lives(&shim, "ext4", vec![mount("ext4", &ext4, &["loop"])], 1).await;
    lives(&shim, "ext4-ro", vec![mount("ext4", &ext4, &["ro"])], 1).await;
    lives(&shim, "erofs", vec![mount("erofs", &erofs, &["ro"])], 1).await;
    let device = [mount("loop", &ext4, &[]), mount("format/ext4", "{{ mount 0 }}", &[])];
    lives(&shim, "device", device.to_vec(), 1).await;
}

/// As the snapshotter for erofs describes a container: read-only layers aside, and an overlay of them.
fn layered(shim: &Shim) -> Vec<Mount> {
    let upper = shim.dir.path().join("upper").display().to_string();
    let options = [
        format!("X-containerd.mkdir.path={upper}"),
        format!("X-containerd.mkdir.path={upper}/fs:0755"),
        format!("X-containerd.mkdir.path={upper}/work:0711"),
        format!("upperdir={upper}/fs"),
        format!("workdir={upper}/work"),
        "lowerdir={{ overlay 1 0 }}".into(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    vec![
        mount("erofs", &image(shim, "erofs"), &["ro", "loop"]),
        mount("bind", &format!("{}/image", shim.dir.path().display()), &["ro", "rbind"]),
        mount("format/mkdir/overlay", "overlay", &options),
    ]
}

#[tokio::test]
async fn an_overlay_names_the_mounts_before_it_by_templates() {
    let shim = Shim::new().await;
    lives(&shim, "layers", layered(&shim), 1).await;
    assert!(shim.dir.path().join("upper/fs").exists(), "the folders are the client's");
}

#[tokio::test]
async fn delete_alone_takes_away_what_a_killed_shim_had_mounted() {
    let mut shim = Shim::new().await;
    let bundle = shim.bundle("killed", "sleep 1000");
    let request = CreateTaskRequest { rootfs: layered(&shim), ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    shim.process.kill().unwrap();
    shim.process.wait().unwrap();
    assert_eq!(mounts_below(&bundle.path).len(), 3);
    for _ in 0..2 {
        shim.cleanup(&bundle);
        nothing_is_left(&shim, &bundle).await;
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_made_is_refused_and_leaves_nothing() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("refused", "sleep 1000");
    let erofs = mount("erofs", &image(&shim, "erofs"), &["ro"]);
    let folder = shim.dir.path().join("made");
    let make = format!("X-containerd.mkdir.path={}", folder.display());
    let cases = [
        (mount("mkdir/nosuchfs", "/x", &[&make]), "mount "),
        (mount("mkdir/mkfs/ext4", "/x", &[&make]), "has an unknown transform"),
        (
            mount("format/overlay", "overlay", &["lowerdir={{ mount 1 }}"]),
            "cannot be filled in from the 1 mounts",
        ),
        (mount("format/bind", "{{ nothing 0 }}", &[]), "cannot be filled in"),
        (mount("mkfs/ext4", "/x", &[]), "mount type \"mkfs/ext4\" has an unknown transform"),
        (mount("mkdir/bind", "/x", &["X-containerd.mkdir.path=/x:7777"]), "is not X-containerd.mkdir.path"),
        (mount("format/ext4", "/nowhere/image", &["loop"]), "make a loop device of /nowhere/image: "),
    ];
    for (bad, want) in cases {
        let request = CreateTaskRequest { rootfs: vec![erofs.clone(), bad], ..shim.create_request(&bundle) };
        let (code, message) = refusal(shim.task.create(context(), &request).await);
        assert!(message.contains(want), "{want}: {message}");
        // An image that is not there is not the request's fault. UNIMPLEMENTED would make containerd try an older service.
        let want =
            if want.contains("/nowhere") { ttrpc::Code::INTERNAL } else { ttrpc::Code::INVALID_ARGUMENT };
        assert_eq!(code, want, "{message}");
        assert!(!folder.exists(), "{message}");
        nothing_is_left(&shim, &bundle).await;
    }
}
