//! What containerd's own client asks of a task, and weft's pods do not: logging binaries, files, checkpoints.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use weft_conformance::{Node, Subject, image, run, wait_until};

const SOON: Duration = Duration::from_secs(20);

/// `ctr run` of busybox under weft.
fn ctr_run(node: &Node, options: &[&str], id: &str, command: &[&str]) -> Command {
    let mut ctr = node.ctr(&["run", "--runtime", "io.containerd.weft.v1"]);
    ctr.args(options).args([image::BUSYBOX, id]).args(command);
    ctr
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ctr_sends_output_to_a_logging_binary_and_to_a_file() {
    let node = Node::start(Subject::Weft);
    let program = node.dir().join("logger");
    // As containerd's own package for such programs does, after the byte that says that it is ready.
    let script = "#!/bin/sh\necho ready >&5; exec 5>&-\ncat <&3 > \"$2.out\" & cat <&4 > \"$2.err\"; wait\n";
    fs::write(&program, script).expect("write a logging binary");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let base = node.dir().join("logged");
    let read = |extension: &str| fs::read_to_string(base.with_extension(extension)).expect("read the log");
    for scheme in ["binary", "binary-v2"] {
        let address = format!("{scheme}://{}?to={}", program.display(), base.display());
        let command = ["sh", "-c", "seq 100000; echo errors >&2"];
        run(&mut ctr_run(&node, &["--rm", "--log-uri", &address], "logged", &command));
        let (out, err) = (read("out"), read("err"));
        assert!(out.starts_with("1\n2\n") && out.ends_with("\n99999\n100000\n"), "{} bytes", out.len());
        assert_eq!(err, "errors\n");
    }

    let file = node.dir().join("a file.log");
    let address = format!("file://{}", file.display().to_string().replace(' ', "%20"));
    run(&mut ctr_run(&node, &["--rm", "--log-uri", &address], "filed", &["echo", "to a file"]));
    assert_eq!(fs::read_to_string(&file).expect("read the file"), "to a file\n");

    let bad = ctr_run(&node, &["--rm", "--log-uri", "binary:///nowhere"], "bad", &["true"]).output();
    let bad = bad.expect("run ctr");
    assert!(!bad.status.success() && said(&bad).contains("run logging binary /nowhere: "), "{}", said(&bad));
    node.finish();
}

#[test]
fn ctr_tasks_are_listed_measured_paused_and_killed() {
    let node = Node::start(Subject::Weft);
    let ctr = |args: &[&str]| run(&mut node.ctr(args));
    run(&mut ctr_run(&node, &["--detach", "--null-io"], "one", &["sleep", "1000"]));
    let state =
        |want: &str| ctr(&["tasks", "ls"]).lines().any(|line| line.starts_with("one") && line.contains(want));
    assert!(state("RUNNING"));
    assert_eq!(ctr(&["tasks", "exec", "--exec-id", "e", "one", "echo", "hello"]), "hello\n");
    let failed = node.ctr(&["tasks", "exec", "--exec-id", "f", "one", "sh", "-c", "exit 3"]).output();
    assert_eq!(failed.expect("run ctr").status.code(), Some(3));
    let pid = ctr(&["tasks", "ps", "one"]);
    let pid =
        pid.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("one process").to_owned();
    assert_eq!(run(node.command("cat").arg(format!("/proc/{pid}/comm"))), "sleep\n");
    let metrics = ctr(&["tasks", "metrics", "--format", "json", "one"]);
    assert!(metrics.contains("\"memory\"") && metrics.contains("\"pids\""), "{metrics}");
    ctr(&["tasks", "pause", "one"]);
    assert!(state("PAUSED"));
    ctr(&["tasks", "resume", "one"]);
    assert!(state("RUNNING"));
    ctr(&["tasks", "kill", "--signal", "9", "one"]);
    wait_until(SOON, "the task has ended", || state("STOPPED"));
    ctr(&["tasks", "rm", "one"]);
    ctr(&["containers", "rm", "one"]);
    node.finish();
}

/// Its options are an OCI specification, or whatever the file has, and not CRI's configuration of a pod.
#[test]
fn ctr_runs_a_sandbox_without_cri() {
    let node = Node::start(Subject::Weft);
    let file = node.dir().join("sandbox.json");
    fs::write(&file, "{}").expect("write the configuration");
    let file = file.display().to_string();
    run(&mut node.ctr(&["sandboxes", "run", "--runtime", "io.containerd.weft.v1", &file, "alone"]));
    assert_eq!(
        node.signal(nix::sys::signal::Signal::SIGCONT, &["containerd-shim-weft-v1", "-id", "alone"]),
        1
    );
    run(&mut node.ctr(&["sandboxes", "rm", "--force", "alone"]));
    node.finish();
}

/// The whole way round, where criu works with the kernel, is in the shim's own tests. Here: what a user is told who asks for a
/// checkpoint through containerd, and what is in the store when it is granted.
#[test]
fn ctr_asks_for_a_checkpoint() {
    let node = Node::start(Subject::Weft);
    run(&mut ctr_run(&node, &["--detach", "--null-io"], "kept", &["sleep", "1000"]));
    let asked = node.ctr(&["tasks", "checkpoint", "kept"]).output().expect("run ctr");
    let works = Command::new("criu").arg("check").output().expect("run criu").status.success();
    if works {
        let name = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
        assert!(asked.status.success() && run(&mut node.ctr(&["images", "ls", "-q"])).contains(&name));
    } else {
        let said = said(&asked);
        assert!(!asked.status.success(), "criu does not work here: {said}");
        let reason = "OCI runtime checkpoint failed: criu failed: type DUMP errno 0: Error (criu/";
        assert!(said.contains(reason) && said.contains("/criu-dump.log)"), "criu's own reason: {said}");
    }
    assert!(run(&mut node.ctr(&["tasks", "ls"])).contains("RUNNING"), "the task goes on");
    run(&mut node.ctr(&["tasks", "kill", "--signal", "9", "kept"]));
    wait_until(SOON, "the task has ended", || run(&mut node.ctr(&["tasks", "ls"])).contains("STOPPED"));
    run(&mut node.ctr(&["tasks", "rm", "kept"]));
    run(&mut node.ctr(&["containers", "rm", "kept"]));
    node.finish();
}
