//! What a person does to a running pod with kubectl.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use weft_conformance::image::{BUSYBOX, WEB, WEB_PAGE};
use weft_conformance::{Background, run, wait_until};

use crate::pods::{container, pod};
use crate::side::{LONG, Side};

pub(crate) fn every_verb_works(side: &Side<'_>) {
    let talker = "echo to stdout; echo to stderr >&2; trap 'exit 0' TERM; while read line; do echo got $line; done; sleep 100000 & wait";
    let mut listens = container("talker", talker);
    listens["stdin"] = json!(true);
    let web = json!({ "name": "web", "image": WEB, "imagePullPolicy": "Never" });
    side.run(&pod("many", &[listens, web]));
    side.wait_ready("many");
    logs(side);
    exec(side);
    terminal(side);
    attach(side);
    copy(side);
    port_forward(side);
    debug(side);
    resize(side);
    side.kubectl(&["delete", "pods", "--all"]);
}

/// Runs the command with `input` on its standard input, which then ends.
fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run a command");
    child.stdin.take().expect("stdin is piped").write_all(input).expect("write to a command");
    child.wait_with_output().expect("wait for a command")
}

fn logs(side: &Side<'_>) {
    wait_until(LONG, "the log has both streams", || {
        let log = side.kubectl(&["logs", "many", "-c", "talker"]);
        log.contains("to stdout\n") && log.contains("to stderr\n")
    });
    let mut ends = pod("ends", &[container("main", "for n in 1 2 3; do echo line $n; sleep 0.2; done")]);
    ends["spec"]["restartPolicy"] = json!("Never");
    side.run(&ends);
    side.wait_pod("ends", "started", |pod| pod["status"]["phase"] != "Pending");
    assert_eq!(
        side.kubectl(&["logs", "--follow", "ends"]),
        "line 1\nline 2\nline 3\n",
        "to the end, which is noticed"
    );
    let mut twice = pod("twice", &[container("main", "echo life; exit 1")]);
    twice["spec"]["restartPolicy"] = json!("OnFailure");
    side.run(&twice);
    side.wait_pod("twice", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    // It goes on crashing, and the one before the last is removed when it does.
    let previous = || side.kubectl(&["logs", "--previous", "twice"]) == "life\n";
    wait_until(LONG, "the log of the life before", previous);
}

fn exec(side: &Side<'_>) {
    let talker =
        |args: &[&str]| side.command(&[&["exec", "-i", "many", "-c", "talker", "--"], args].concat());
    let output = feed(&mut talker(&["sh", "-c", "cat; echo err >&2; exit 5"]), b"given");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(output.stdout, b"given");
    assert!(output.stderr.starts_with(b"err\n"), "{output:?}");
    let output = feed(&mut talker(&["/no/such/program"]), b"");
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("/no/such/program") && said.contains("no such file or directory"), "{said}");
    let much = vec![b'x'; 4 << 20];
    assert_eq!(feed(&mut talker(&["cat"]), &much).stdout, much, "four megabytes there and back");
}

/// The size arrives on its own: until it has, there is none and busybox's stty fails.
const TYPED: &[u8] =
    b"tty; n=0; until stty size 2>/dev/null || [ $n = 100 ]; do n=$((n + 1)); sleep 0.1; done; exit 6\n";

/// A terminal on both ends: script(1) makes one for kubectl.
fn terminal(side: &Side<'_>) {
    let kubectl = side.command(&[]);
    let program = kubectl.get_args().map(std::ffi::OsStr::to_string_lossy);
    let words: Vec<_> = program.skip_while(|word| !word.ends_with("/kubectl")).collect();
    let line = format!("stty rows 33 cols 99; {} exec -it many -c talker -- sh", words.join(" "));
    let mut command = side.cluster.node().command("script");
    command.envs(kubectl.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = feed(command.args(["-qefc", &line, "/dev/null"]), TYPED);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(6), "{said}");
    for part in ["/dev/pts/0", "33 99"] {
        assert!(said.contains(part), "{part} is in {said}");
    }
}

fn attach(side: &Side<'_>) {
    let mut command = side.command(&["attach", "-i", "many", "-c", "talker"]);
    let mut attached =
        Background::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
    let child = attached.child();
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    stdin.write_all(b"hello\n").expect("write to kubectl");
    let mut line = String::new();
    stdout.read_line(&mut line).expect("read from kubectl");
    assert_eq!(line, "got hello\n");
    attached.end(nix::sys::signal::Signal::SIGTERM);
    wait_until(LONG, "the log has the line too", || {
        side.kubectl(&["logs", "many", "-c", "talker"]).contains("got hello\n")
    });
}

fn copy(side: &Side<'_>) {
    let (there, back) = (side.cluster.host_path("there"), side.cluster.host_path("back"));
    let mut content = Vec::new();
    fs::File::open("/dev/urandom")
        .expect("open urandom")
        .take(1 << 20)
        .read_to_end(&mut content)
        .expect("read urandom");
    fs::write(&there, &content).expect("write a file");
    side.kubectl(&["cp", "-c", "talker", &there.to_string_lossy(), "many:/tmp/file"]);
    let sum = run(Command::new("sha256sum").stdin(fs::File::open(&there).expect("open a file")));
    let inside = side.kubectl(&["exec", "many", "-c", "talker", "--", "sh", "-c", "sha256sum </tmp/file"]);
    assert_eq!(inside, sum);
    side.kubectl(&["cp", "-c", "talker", "many:/tmp/file", &back.to_string_lossy()]);
    assert!(fs::read(&back).expect("read a file") == content, "the file came back as it went");
}

fn port_forward(side: &Side<'_>) {
    let mut command = side.command(&["port-forward", "pod/many", ":80"]);
    let mut forward = Background::start(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    let mut stdout = BufReader::new(forward.child().stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("read from kubectl");
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let port = port.expect("kubectl says which port").to_owned();
    for _ in 0..3 {
        let mut fetch = side.cluster.node().command("busybox");
        let page = run(fetch.args(["wget", "-q", "-O-", &format!("http://127.0.0.1:{port}/")]));
        assert_eq!(page, WEB_PAGE);
    }
    forward.end(nix::sys::signal::Signal::SIGTERM);
}

/// An ephemeral container that sees the processes of the container it is aimed at.
fn debug(side: &Side<'_>) {
    let image = format!("--image={BUSYBOX}");
    let aimed = [
        "debug",
        "many",
        &image,
        "--image-pull-policy=Never",
        "--target=web",
        "--container=looks",
        "--quiet",
    ];
    side.kubectl(&[&aimed[..], &["--", "sh", "-c", "ps -o args; exit 3"]].concat());
    let ended =
        |pod: &Value| pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"].is_object();
    let pod = side.wait_pod("many", "the ephemeral container ended", ended);
    assert_eq!(pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    let seen = side.kubectl(&["logs", "many", "-c", "looks"]);
    assert!(seen.contains("httpd -f -p 80") && !seen.contains("while read"), "{seen}");
}

/// New limits for a container that runs on.
fn resize(side: &Side<'_>) {
    let size = |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory }, "requests": { "cpu": cpu, "memory": memory } });
    let mut sized = container("main", "");
    sized["resources"] = size("100m", "32Mi");
    side.run(&pod("sized", &[sized]));
    let before = side.wait_ready("sized");
    let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": size("200m", "48Mi") }] } });
    side.kubectl(&["patch", "pod", "sized", "--subresource=resize", "--patch", &patch.to_string()]);
    let status = |pod: &Value, part: &str| pod["status"]["containerStatuses"][0][part].clone();
    let after = side.wait_pod("sized", "resized", |pod| status(pod, "resources") == size("200m", "48Mi"));
    assert_eq!(status(&after, "containerID"), status(&before, "containerID"));
    assert_eq!(status(&after, "restartCount"), 0);
    let limit =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(side.exec("sized", &["sh", "-c", limit]), format!("{}\n", 48 << 20));
}
