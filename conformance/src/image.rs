//! Container images, made on the spot: an OCI image layout in a tar archive, as `ctr images import` reads it.
//!
//! The same input gives the same bytes: fixed times, owners and order, nothing compressed. No registry, no download: programs come
//! from the machine (busybox) and from the tools directory (pause).
//! Format: <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>.

use std::process::Command;
use std::sync::OnceLock;
use std::{fs, io};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::tools::Tools;

/// A shell and every applet of busybox; its command is a long sleep that ends on SIGTERM.
pub const BUSYBOX: &str = "weft.test/busybox:latest";
/// The sandbox image of the reference.
pub const PAUSE: &str = "weft.test/pause:latest";
/// Busybox serving [`WEB_PAGE`] on port 80 of both families.
pub const WEB: &str = "weft.test/web:latest";
/// The images that every node has.
pub const STANDARD: [&str; 3] = [BUSYBOX, PAUSE, WEB];
/// What the web server answers to `GET /`.
pub const WEB_PAGE: &str = "hello from weft.test/web\n";

/// One entry of a layer; paths are relative to the root.
#[derive(Clone, Copy)]
pub enum Entry<'a> {
    /// A directory with its mode.
    Dir(&'a str, u32),
    /// A file with its mode and content.
    File(&'a str, u32, &'a [u8]),
    /// Another name of a file: the name, and the file's path.
    Link(&'a str, &'a str),
}

/// A file system layer: an uncompressed tar, so that its digest and its diff id are the same.
pub struct Layer {
    tar: Vec<u8>,
    digest: String,
}

impl Layer {
    /// Packs `entries` in the order given; parents come first.
    pub fn new(entries: &[Entry<'_>]) -> io::Result<Self> {
        let mut tar = Builder::new(Vec::new());
        for entry in entries {
            match *entry {
                Entry::Dir(path, mode) => append(&mut tar, EntryType::Directory, path, mode, "", &[])?,
                Entry::File(path, mode, data) => append(&mut tar, EntryType::Regular, path, mode, "", data)?,
                Entry::Link(path, target) => append(&mut tar, EntryType::Link, path, 0o755, target, &[])?,
            }
        }
        let tar = tar.into_inner()?;
        Ok(Self { digest: digest(&tar), tar })
    }
}

/// An image of one or more layers.
pub struct Image<'a> {
    /// The full reference, such as `weft.test/busybox:latest`.
    pub name: &'a str,
    /// Lowest first.
    pub layers: Vec<&'a Layer>,
    /// What a container runs unless it says otherwise.
    pub command: &'a [&'a str],
    /// `user` or `uid:gid`; empty for root.
    pub user: &'a str,
}

/// One archive of `images`.
pub fn archive(images: &[Image<'_>]) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let mut blobs: Vec<String> = Vec::new();
    let mut blob = |archive: &mut Builder<Vec<u8>>, digest: &str, data: &[u8]| {
        if blobs.iter().any(|written| written == digest) {
            return Ok(());
        }
        blobs.push(digest.to_owned());
        append(archive, EntryType::Regular, &format!("blobs/{}", digest.replace(':', "/")), 0o644, "", data)
    };
    append(&mut archive, EntryType::Regular, "oci-layout", 0o644, "", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut manifests = Vec::new();
    for image in images {
        for layer in &image.layers {
            blob(&mut archive, &layer.digest, &layer.tar)?;
        }
        let config = config(image).to_string();
        blob(&mut archive, &digest(config.as_bytes()), config.as_bytes())?;
        let manifest = manifest(image, &config).to_string();
        blob(&mut archive, &digest(manifest.as_bytes()), manifest.as_bytes())?;
        let mut descriptor = descriptor("manifest.v1+json", &manifest);
        descriptor["annotations"] = json!({ "io.containerd.image.name": image.name });
        manifests.push(descriptor);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    append(&mut archive, EntryType::Regular, "index.json", 0o644, "", index.to_string().as_bytes())?;
    archive.into_inner()
}

/// The archive of [`STANDARD`], made once per process.
pub(crate) fn standard() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| make_standard().expect("make the images"))
}

fn make_standard() -> io::Result<Vec<u8>> {
    let busybox = busybox()?;
    let page =
        Layer::new(&[Entry::Dir("www", 0o755), Entry::File("www/index.html", 0o644, WEB_PAGE.as_bytes())])?;
    let pause = Layer::new(&[Entry::File("pause", 0o755, &fs::read(Tools::find().program("pause"))?)])?;
    // `sleep` itself ignores SIGTERM as process 1 of a pid namespace; a shell with a trap does not.
    let idle = ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"];
    let serve = ["httpd", "-f", "-p", "80", "-h", "/www"];
    archive(&[
        Image { name: BUSYBOX, layers: vec![&busybox], command: &idle, user: "" },
        Image { name: PAUSE, layers: vec![&pause], command: &["/pause"], user: "65535:65535" },
        Image { name: WEB, layers: vec![&busybox, &page], command: &serve, user: "" },
    ])
}

/// The layer under [`BUSYBOX`] and [`WEB`]: the machine's static busybox and a link for every applet.
pub fn busybox() -> io::Result<Layer> {
    let applets = Command::new("/bin/busybox").arg("--list").output()?.stdout;
    let applets = String::from_utf8_lossy(&applets);
    let links: Vec<String> =
        applets.lines().filter(|name| *name != "busybox").map(|name| format!("bin/{name}")).collect();
    let program = fs::read("/bin/busybox")?;
    let mut entries = vec![
        Entry::Dir("bin", 0o755),
        Entry::Dir("etc", 0o755),
        Entry::Dir("root", 0o700),
        Entry::Dir("tmp", 0o1777),
        Entry::File(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/false\n",
        ),
        Entry::File("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n"),
        Entry::File("bin/busybox", 0o755, &program),
    ];
    entries.extend(links.iter().map(|link| Entry::Link(link, "bin/busybox")));
    Layer::new(&entries)
}

fn config(image: &Image<'_>) -> Value {
    json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": {
            "Cmd": image.command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "User": image.user,
        },
        "rootfs": { "type": "layers", "diff_ids": image.layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>() },
    })
}

fn manifest(image: &Image<'_>, config: &str) -> Value {
    let layer = |layer: &&Layer| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest, "size": layer.tar.len() });
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": image.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

fn descriptor(media_type: &str, blob: &str) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{media_type}"),
        "digest": digest(blob.as_bytes()),
        "size": blob.len(),
    })
}

fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A GNU header with owner 0 and time 0.
fn append(
    tar: &mut Builder<impl io::Write>,
    kind: EntryType,
    path: &str,
    mode: u32,
    link: &str,
    data: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    if kind == EntryType::Link {
        return tar.append_link(&mut header, path, link);
    }
    tar.append_data(&mut header, path, data)
}
