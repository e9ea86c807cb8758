//! critest, the conformance tests of CRI: its images, a run on a node, and the list of what it cannot try here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use serde_json::Value;

use crate::image::{self, Entry, Image, Layer};
use crate::node::Node;
use crate::tools::Tools;
use crate::wait::run;

/// Specs at a time. Most of a spec's time goes by in waiting for a container's next second.
const PARALLEL: usize = 8;

/// What containerd 2.4 says, for a moment, of a container that has just ended by itself: its exit handler has deleted the task and not
/// yet written the status, so that stopping finds nothing to do and removing a container that runs (`handleContainerExit` in
/// internal/cri/server/events.go, `stopContainer`, `setContainerRemoving`). kubelet repeats the call; critest does not.
const BETWEEN_TASK_AND_STATUS: &str = "container is still running, to stop first";

/// Patterns of specs that cannot be tried, with the reason of each.
const SKIPPED: &str = include_str!("../critest/skip.txt");

/// What became of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// Its name is on the list.
    Listed,
    /// critest itself decided not to try it, and why.
    Skipped(String),
    /// It failed, and why.
    Failed(String),
}

/// What became of every spec, by its full name.
pub type Outcomes = BTreeMap<String, Outcome>;

/// The list of specs that cannot be tried on this machine: the words that a spec's name contains, and why.
///
/// One line each, `words | reason`; empty lines and lines that begin with `#` are comments.
pub fn skip_list() -> Vec<(&'static str, &'static str)> {
    let lines = SKIPPED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(" | ").expect("a line is `words | reason`")).collect()
}

/// Runs all specs that are not on the list against the node, with `handler` or with the node's default. Those that containerd's
/// status came too late for are run once more.
#[track_caller]
pub fn critest(node: &Node, handler: Option<&str>) -> Outcomes {
    node.import(&archive().expect("make critest's images"));
    let skipped = skip_list().into_iter().map(|(words, _)| format!("--ginkgo.skip={}", literal(words)));
    let mut outcomes = run_specs(node, handler, &skipped.collect::<Vec<_>>());
    let late = |(name, outcome): (&String, &Outcome)| match outcome {
        Outcome::Failed(why) if why.contains(BETWEEN_TASK_AND_STATUS) => Some(name.clone()),
        _ => None,
    };
    let late: Vec<String> = outcomes.iter().filter_map(late).collect();
    if !late.is_empty() {
        #[expect(clippy::print_stderr, reason = "who reads the test's output is to know of it")]
        {
            eprintln!("once more, for containerd's status came late: {}", late.join(", "));
        }
        let focused: Vec<String> =
            late.iter().map(|name| format!("--ginkgo.focus={}$", literal(name))).collect();
        let again = run_specs(node, handler, &focused);
        outcomes.extend(again.into_iter().filter(|(name, _)| late.contains(name)));
    }
    outcomes
}

#[track_caller]
fn run_specs(node: &Node, handler: Option<&str>, chosen: &[String]) -> Outcomes {
    let report = node.dir().join("critest.json");
    let mut command = node.command(Tools::find().program("critest"));
    command.env("HOME", node.dir()).env("TMPDIR", node.dir()).current_dir(node.dir());
    command.arg("--config").arg(node.dir().join("crictl.yaml"));
    command.arg(format!("--parallel={PARALLEL}"));
    command.args(handler.map(|name| format!("--runtime-handler={name}")));
    command.args(chosen);
    command.arg("--ginkgo.no-color").arg(format!("--ginkgo.json-report={}", report.display()));
    // Failed specs are found in the report; without one, critest itself could not run.
    let output = command.stdin(Stdio::null()).output().expect("run critest");
    let Ok(report) = fs::read(&report) else {
        panic!("critest wrote no report: {}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
    };
    outcomes(&serde_json::from_slice(&report).expect("ginkgo reports in JSON"))
}

/// A pattern that matches the words as they stand.
fn literal(words: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$".contains(c);
    words.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// `[{SpecReports: [{LeafNodeType, ContainerHierarchyTexts, LeafNodeText, State, Failure: {Message}}]}]`.
fn outcomes(report: &Value) -> Outcomes {
    let suites = report.as_array().into_iter().flatten();
    let specs = suites.flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten());
    let mut outcomes = Outcomes::new();
    for spec in specs {
        let message = || spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
        let outcome = match (spec["LeafNodeType"].as_str(), spec["State"].as_str()) {
            (Some("It"), Some("passed")) => Outcome::Passed,
            // Without a message a pattern of the command line did it.
            (Some("It"), Some("skipped")) if message().is_empty() => Outcome::Listed,
            (Some("It"), Some("skipped")) => Outcome::Skipped(message()),
            (Some("It"), state) => Outcome::Failed(format!("{}: {}", state.unwrap_or_default(), message())),
            // What runs before and after all specs.
            (_, Some("passed")) => continue,
            (kind, _) => Outcome::Failed(format!("{}: {}", kind.unwrap_or_default(), message())),
        };
        let name = name(spec);
        // Measurements, which critest leaves out unless asked for.
        if !name.contains("benchmark") {
            outcomes.insert(name, outcome);
        }
    }
    outcomes
}

fn name(spec: &Value) -> String {
    let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let words: Vec<&str> = containers.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str).collect();
    words.join(" ")
}

/// Images under the names that critest asks for, so that it finds them in the store and pulls none.
fn archive() -> io::Result<Vec<u8>> {
    let busybox = image::busybox()?;
    // A shell that looks `ls` up as a file, and two applets that not every build of busybox has.
    let shell = program(&[("bin/sh", "busybox"), ("bin/pgrep", "pgrep"), ("bin/ipcs", "ipcs")], &[])?;
    let user = users()?;
    let page = Entry::File("www/index.html", 0o644, image::WEB_PAGE.as_bytes());
    let escalation = Entry::File("nonewprivs", 0o4755, &fs::read(Tools::find().program("nonewprivs"))?);
    let (page, escalation) = (Layer::new(&[Entry::Dir("www", 0o755), page])?, Layer::new(&[escalation])?);
    let (web, host_web) = (nginx(80)?, nginx(12003)?);
    let serve = ["nginx", "-g", "daemon off;"];
    // Its log must name it (multi_container_linux.go).
    let httpd = ["sh", "-c", "echo httpd; exec httpd -f -v -p 80 -h /www"];
    let e2e = |name: &str| format!("registry.k8s.io/e2e-test-images/{name}");
    let tools = |name: &str| format!("gcr.io/k8s-staging-cri-tools/{name}");
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    type Row<'a> = (String, &'a Layer, &'a [&'a str], &'a str);
    let rows: [Row<'_>; 10] = [
        (e2e("busybox:1.29-2"), &shell, &["sh"], ""),
        (e2e("nginx:1.14-2"), &web, &serve, ""),
        (tools(&format!("hostnet-nginx-{arch}:latest")), &host_web, &serve, ""),
        (e2e("httpd:2.4.39-4"), &page, &httpd, ""),
        (e2e("nonewprivs:1.3"), &escalation, &["/nonewprivs"], ""),
        (tools("test-image-user-uid:latest"), &user, &["sh"], "1002"),
        (tools("test-image-user-username:latest"), &user, &["sh"], "www-data"),
        (tools("test-image-user-uid-group:latest"), &user, &["sh"], "1003:users"),
        (tools("test-image-user-username-group:latest"), &user, &["sh"], "www-data:100"),
        (tools("test-image-predefined-group:latest"), &user, &["sh"], "1000"),
    ];
    let images = rows.iter().map(|(name, own, command, user)| Image {
        name,
        layers: vec![&busybox, own],
        command,
        user,
    });
    image::archive(&images.collect::<Vec<_>>())
}

/// The users and groups that the images' names speak of.
fn users() -> io::Result<Layer> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\nwww-data:x:33:33::/:/bin/false\n\
                  nobody:x:65534:65534:nobody:/tmp:/bin/false\n";
    let group = "root:x:0:\nusers:x:100:\ndefault-user:x:1000:\nwww-data:x:33:\n\
                 group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n";
    Layer::new(&[
        Entry::File("etc/passwd", 0o644, passwd.as_bytes()),
        Entry::File("etc/group", 0o644, group.as_bytes()),
    ])
}

/// nginx, serving its page on `port`.
fn nginx(port: u16) -> io::Result<Layer> {
    let config = format!(
        "user nobody nogroup;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log /dev/stderr;\nevents {{}}\n\
         http {{ access_log /dev/stdout; server {{ listen {port}; listen [::]:{port}; root /www; }} }}\n"
    );
    let folders =
        ["etc/nginx", "var", "var/run", "var/log", "var/log/nginx", "var/lib", "var/lib/nginx", "www"];
    let mut more: Vec<Entry<'_>> = folders.iter().map(|path| Entry::Dir(path, 0o755)).collect();
    more.push(Entry::File("etc/nginx/nginx.conf", 0o644, config.as_bytes()));
    more.push(Entry::File("www/index.html", 0o644, image::WEB_PAGE.as_bytes()));
    program(&[("usr/sbin/nginx", "nginx")], &more)
}

/// Programs of the tools' directory or of the machine at the paths given, with the libraries that they load, and `more`.
fn program(programs: &[(&str, &str)], more: &[Entry<'_>]) -> io::Result<Layer> {
    let programs: Vec<(String, PathBuf)> =
        programs.iter().map(|(path, name)| ((*path).to_owned(), find(name))).collect();
    let mut files: BTreeMap<String, PathBuf> =
        programs.iter().flat_map(|(_, program)| libraries(program)).collect();
    files.extend(programs);
    let parents = |path: &String| Path::new(path).ancestors().skip(1).map(text).collect::<Vec<_>>();
    let folders: BTreeSet<String> = files.keys().flat_map(parents).filter(|path| !path.is_empty()).collect();
    let files: Vec<(String, Vec<u8>)> =
        files.into_iter().map(|(path, from)| Ok((path, fs::read(from)?))).collect::<io::Result<_>>()?;
    let mut entries: Vec<Entry<'_>> = folders.iter().map(|path| Entry::Dir(path, 0o755)).collect();
    entries.extend(files.iter().map(|(path, data)| Entry::File(path, 0o755, data)));
    entries.extend_from_slice(more);
    Layer::new(&entries)
}

fn find(name: &str) -> PathBuf {
    let tool = Tools::find().dir().join(name);
    if tool.exists() { tool } else { Path::new("/usr/bin").join(name) }
}

/// The shared libraries of a program and their loader, as ldd(1) finds them: the path in a layer, and the file.
fn libraries(program: &Path) -> Vec<(String, PathBuf)> {
    let listed = run(Command::new("ldd").arg(program));
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(|path| (path.trim_start_matches('/').to_owned(), path.into())).collect()
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path made of text").to_owned()
}
