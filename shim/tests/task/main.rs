//! The Task service of the built shim, over ttrpc, with runc and busybox, on this kernel. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::let_underscore_must_use, reason = "dropping a fixture must not panic")]

mod cgroup;
mod codes;
mod counters;
mod fixture;
mod logging;
mod mounts;
mod rawmounts;

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::*;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, ShutdownSandboxRequest, StartSandboxRequest,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::shim_async::Client;
use fixture::*;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;

/// How long the shim waits for a client to read.
const ATTENTION: Duration = Duration::from_millis(100);

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_task_lives_and_its_life_is_told_in_order() {
    let shim = Shim::new().await;
    let before = shim.holdings();
    let bundle = shim.bundle("life", "echo hello; exit 7");
    let (stdout, output) = bundle.output("stdout");
    let request = CreateTaskRequest { stdout, ..shim.create_request(&bundle) };
    let pid = shim.task.create(context(), &request).await.unwrap().pid;
    let created = shim.state(&bundle, "").await.unwrap();
    assert_eq!((created.pid, created.status.unwrap()), (pid, Status::CREATED));
    assert_eq!(created.bundle, bundle.path.display().to_string());
    assert!(bundle.has_cgroup());

    let (waited, started) = tokio::join!(shim.wait(&bundle, ""), shim.start_task(&bundle, ""));
    assert_eq!((started.unwrap().pid, waited.unwrap()), (pid, 7));
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 7, "a second wait answers at once");
    let stopped = shim.state(&bundle, "").await.unwrap();
    assert_eq!((stopped.status.unwrap(), stopped.exit_status), (Status::STOPPED, 7));
    assert!(stopped.exited_at.is_some());

    let deleted = shim.delete(&bundle, "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
    assert_eq!(text(output.await.unwrap()), "hello\n");
    let id = &bundle.id;
    let events = shim.events_until(&format!("delete {id}")).await;
    let all = [format!("create {id}"), format!("start {id}"), format!("exit {id} 7"), format!("delete {id}")];
    assert_eq!(events, all);
    assert_eq!(shim.cleanup(&bundle), format!("{pid} 7"), "the verb after a normal life");
    until("nothing is left", || {
        let after = shim.holdings();
        // The connection to the recorder of events stays open.
        (after.0, after.1, after.2) == (before.0 + 1, before.1, before.2)
    })
    .await;
    assert!(!bundle.has_cgroup());
    assert_eq!(std::fs::read_dir(shim.dir.path().join("runtime/weft-test")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_runtime_of_the_configuration_makes_the_containers() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("runtime", "true");
    shim.task.create(context(), &shim.create_request(&bundle)).await.unwrap();
    // What only this runtime keeps of a container.
    let own = match oci_runtime().rsplit('/').next().unwrap() {
        "runc" => "state.json",
        "crun" => "status",
        "youki" => "youki_config.json",
        other => panic!("not known: {other}"),
    };
    let folder = shim.dir.path().join("runtime/weft-test").join(&bundle.id);
    let kept: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|file| file.file_name()).collect();
    assert!(kept.iter().any(|name| name == own), "{kept:?}");
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_fast_exit_is_lost() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("fast", "head -c 8388608 /dev/zero; head -c 100000 /dev/zero >&2");
    let (stdout, output) = bundle.output("stdout");
    let (stderr, errors) = bundle.output("stderr");
    let request = CreateTaskRequest { stdout, stderr, ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0);
    shim.delete(&bundle, "").await.unwrap();
    assert_eq!((output.await.unwrap().len(), errors.await.unwrap().len()), (8 << 20, 100_000));
}

/// Options with a runtime whose `create` makes `begun` in `folder`, and goes on once `go` is there.
fn gated_runtime(folder: &Path) -> Any {
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' create '*) touch {0}/begun; until [ -e {0}/go ]; do sleep 0.01; done;; esac\n\
         exec {1} \"$@\"\n",
        folder.display(),
        oci_runtime()
    );
    let program = folder.join("gated");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let options = Options { binary_name: program.display().to_string(), ..Default::default() };
    Any {
        type_url: "containerd.runc.v1.Options".into(),
        value: options.write_to_bytes().unwrap(),
        ..Default::default()
    }
}

/// A containerd that was killed in the middle of a creation asks for the pids, and removes a task that has none.
#[tokio::test]
async fn a_task_that_is_being_made_is_waited_for() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("making", "sleep 1000");
    let folder = shim.dir.path();
    let options = gated_runtime(folder);
    let request = CreateTaskRequest { options: Some(options).into(), ..shim.create_request(&bundle) };
    let (creator, other) = (connect(&shim.socket()).await, connect(&shim.socket()).await);
    let creation = tokio::spawn(async move { creator.create(context(), &request).await.unwrap().pid });
    until("the runtime is at work", || folder.join("begun").exists()).await;
    let request = PidsRequest { id: bundle.id.clone(), ..Default::default() };
    let mut pids = tokio::spawn(async move { other.pids(context(), &request).await.unwrap().processes });
    let early = tokio::time::timeout(Duration::from_millis(200), &mut pids).await;
    assert!(early.is_err(), "answered before there is a process");
    File::create(folder.join("go")).unwrap();
    let pid = creation.await.unwrap();
    assert_eq!(pids.await.unwrap().iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    shim.end(&bundle).await;
}

/// A containerd that comes back gives up a fifo that it has not quite opened when it learns of the end.
#[tokio::test]
async fn the_end_is_told_when_the_output_is_read_or_a_moment_later() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("unread", "echo left");
    let stdout = bundle.fifo("stdout");
    let gone = opened(&stdout);
    let request = CreateTaskRequest { stdout: stdout.clone(), ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    drop(gone.await.unwrap());
    shim.start_task(&bundle, "").await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0);
    let told_within = async || {
        let asked = Instant::now();
        assert_eq!(shim.status(&bundle, "").await, Status::STOPPED);
        asked.elapsed()
    };
    assert!(told_within().await >= ATTENTION, "the output is unread");
    let mut reader = File::open(&stdout).unwrap();
    let mut output = [0; 5];
    reader.read_exact(&mut output).unwrap();
    assert_eq!(&output, b"left\n");
    let deadline = Instant::now() + Duration::from_secs(10);
    while told_within().await >= ATTENTION {
        assert!(Instant::now() < deadline, "it is read");
    }
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn twenty_mebibytes_of_input_come_back_as_they_were() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("echo", "cat");
    let (stdout, output) = bundle.output("stdout");
    let stdin = bundle.fifo("stdin");
    let request = CreateTaskRequest { stdin: stdin.clone(), stdout, ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    // No two pages are alike (the generator of Numerical Recipes).
    let next = |seed: &u32| Some(seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let bytes: Vec<u8> =
        std::iter::successors(Some(1), next).take(5 << 20).flat_map(u32::to_le_bytes).collect();
    let input = bytes.clone();
    let write = move || File::options().write(true).open(&stdin).unwrap().write_all(&input).unwrap();
    tokio::task::spawn_blocking(write).await.unwrap();
    let close = CloseIORequest { id: bundle.id.clone(), stdin: true, ..Default::default() };
    shim.task.close_io(context(), &close).await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0);
    shim.delete(&bundle, "").await.unwrap();
    let output = output.await.unwrap();
    assert_eq!(output.len(), 20 << 20);
    assert!(output == bytes, "the same length, other bytes");
}

#[tokio::test]
async fn a_process_begins_with_no_signal_blocked() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("signals", "grep SigBlk /proc/self/status");
    let output = shim.run(&bundle).await;
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0);
    shim.delete(&bundle, "").await.unwrap();
    assert_eq!(text(output.await.unwrap()), "SigBlk:\t0000000000000000\n");
}

#[tokio::test]
async fn input_ends_with_close_io_and_not_before() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("stdin", "cat; echo end");
    let (stdout, output) = bundle.output("stdout");
    let stdin = bundle.fifo("stdin");
    let request = CreateTaskRequest { stdin: stdin.clone(), stdout, ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    // Two clients, one after the other, as around a restart of containerd.
    for line in ["one\n", "two\n"] {
        File::options().write(true).open(&stdin).unwrap().write_all(line.as_bytes()).unwrap();
    }
    let early = tokio::time::timeout(Duration::from_millis(200), shim.wait(&bundle, "")).await;
    assert!(early.is_err(), "end of file before CloseIO");
    let mut last = File::options().write(true).open(&stdin).unwrap();
    let request = CloseIORequest { id: bundle.id.clone(), stdin: true, ..Default::default() };
    shim.task.close_io(context(), &request).await.unwrap();
    last.write_all(b"three\n").unwrap();
    drop(last);
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0);
    shim.delete(&bundle, "").await.unwrap();
    assert_eq!(text(output.await.unwrap()), "one\ntwo\nthree\nend\n");
}

/// Opens a fifo for reading, in a thread of its own as containerd does.
fn opened(fifo: &str) -> tokio::task::JoinHandle<File> {
    let fifo = fifo.to_owned();
    tokio::task::spawn_blocking(move || File::open(fifo).unwrap())
}

/// A thread of containerd that came to its open(2) when an exec had ended waited there for ever, and `ExecSync` with it.
#[tokio::test]
async fn a_reader_that_comes_late_is_waited_for() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("late", "sleep 1000");
    shim.run(&bundle).await;
    let (stdout, stderr) = (bundle.fifo("late-out"), bundle.fifo("late-err"));
    let request = ExecProcessRequest {
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        ..exec_request(&bundle, "late", "echo said")
    };
    shim.task.exec(context(), &request).await.unwrap();
    let mut start = std::pin::pin!(shim.start_task(&bundle, "late"));
    let mut readers = Vec::new();
    for fifo in [&stdout, &stderr] {
        let early = tokio::time::timeout(Duration::from_millis(200), &mut start).await;
        assert!(early.is_err(), "started before {fifo} is open");
        readers.push(opened(fifo));
    }
    start.await.unwrap();
    assert_eq!(shim.wait(&bundle, "late").await.unwrap(), 0);
    let mut said = Vec::new();
    for reader in readers {
        said.push(std::io::read_to_string(reader.await.unwrap()).unwrap());
    }
    assert_eq!(said, ["said\n", ""]);
    shim.delete(&bundle, "late").await.unwrap();
    shim.end(&bundle).await;
}

#[tokio::test]
async fn an_output_that_nobody_opens_is_an_error() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("unopened", "echo lost");
    let stdout = bundle.fifo("stdout");
    let before = shim.holdings();
    let request = CreateTaskRequest { stdout: stdout.clone(), ..shim.create_request(&bundle) };
    let (_, said) = refusal(shim.task.create(context(), &request).await);
    assert!(said.contains(&stdout) && said.contains("it has had no reader for 10s"), "{said}");
    assert_eq!(shim.holdings(), before);
    assert!(!bundle.has_cgroup());
}

#[tokio::test]
async fn a_reader_may_leave_and_come_back() {
    let shim = Shim::new().await;
    let bundle = shim.bundle(
        "reader",
        "trap : USR1; i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done",
    );
    let stdout = bundle.fifo("stdout");
    let reader = opened(&stdout);
    let request = CreateTaskRequest { stdout: stdout.clone(), ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    let mut first = vec![0; 7];
    reader.await.unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first, b"line 0\n");
    let rest = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        File::open(stdout).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0, "no SIGPIPE");
    shim.delete(&bundle, "").await.unwrap();
    assert!(text(rest.await.unwrap()).ends_with("line 299\n"));
}

#[tokio::test]
async fn a_terminal_has_one_stream_and_a_size() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("tty", "");
    let script = "read x; stty size; echo $x >&2; tty; exit 3";
    bundle.configure(script, |config| config["process"]["terminal"] = true.into());
    let (stdout, output) = bundle.output("stdout");
    let stdin = bundle.fifo("stdin");
    let base = shim.create_request(&bundle);
    let request = CreateTaskRequest { stdin: stdin.clone(), stdout, terminal: true, ..base };
    shim.task.create(context(), &request).await.unwrap();
    let resize = ResizePtyRequest { id: bundle.id.clone(), width: 132, height: 43, ..Default::default() };
    shim.task.resize_pty(context(), &resize).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    File::options().write(true).open(&stdin).unwrap().write_all(b"abc\n").unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 3);
    let too_late = refusal(shim.task.resize_pty(context(), &resize).await);
    assert_eq!(too_late.0, Code::FAILED_PRECONDITION);
    shim.delete(&bundle, "").await.unwrap();
    assert_eq!(text(output.await.unwrap()), "abc\r\n43 132\r\nabc\r\n/dev/pts/0\r\n");
    assert!(
        std::fs::read_dir(&bundle.path).unwrap().flatten().all(|e| !e
            .file_name()
            .to_str()
            .unwrap()
            .starts_with("pty"))
    );
}

#[tokio::test]
async fn an_exec_has_its_own_code_streams_and_terminal() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("exec", "sleep 1000");
    let init_output = shim.run(&bundle).await;
    let (stdout, output) = bundle.output("exec-out");
    let request = ExecProcessRequest { stdout, ..exec_request(&bundle, "e1", "echo from exec; exit 5") };
    shim.task.exec(context(), &request).await.unwrap();
    assert_eq!(shim.status(&bundle, "e1").await, Status::CREATED);
    let (waited, started) = tokio::join!(shim.wait(&bundle, "e1"), shim.start_task(&bundle, "e1"));
    assert_eq!(waited.unwrap(), 5);
    let deleted = shim.delete(&bundle, "e1").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (started.unwrap().pid, 5));
    assert_eq!(text(output.await.unwrap()), "from exec\n");

    let (stdout, output) = bundle.output("tty-out");
    let request = ExecProcessRequest { stdout, terminal: true, ..exec_request(&bundle, "e2", "tty") };
    shim.task.exec(context(), &request).await.unwrap();
    shim.start_task(&bundle, "e2").await.unwrap();
    assert_eq!(shim.wait(&bundle, "e2").await.unwrap(), 0);
    shim.delete(&bundle, "e2").await.unwrap();
    assert_eq!(text(output.await.unwrap()), "/dev/pts/0\r\n");

    let (stdin, (stdout, output)) = (bundle.fifo("exec-in"), bundle.output("cat-out"));
    let mut writer = File::options().read(true).write(true).open(&stdin).unwrap();
    writer.write_all(b"early").unwrap();
    let request = ExecProcessRequest { stdin, stdout, ..exec_request(&bundle, "e3", "cat") };
    shim.task.exec(context(), &request).await.unwrap();
    let (id, exec_id) = (bundle.id.clone(), "e3".to_owned());
    let close = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
    shim.task.close_io(context(), &close).await.unwrap();
    shim.start_task(&bundle, "e3").await.unwrap();
    drop(writer);
    assert_eq!(shim.wait(&bundle, "e3").await.unwrap(), 0, "closed before it was there");
    shim.delete(&bundle, "e3").await.unwrap();
    assert_eq!(text(output.await.unwrap()), "early");

    shim.end(&bundle).await;
    assert!(init_output.await.unwrap().is_empty());
    assert!(!bundle.path.join("exec-0.pid").exists());
}

/// containerd that was killed during an exec knows nothing of it when it is back: nobody would ever end its input.
#[tokio::test]
async fn the_input_of_an_exec_ends_when_its_client_and_all_connections_are_gone() {
    let mut shim = Shim::new().await;
    let bundle = shim.bundle("lost", "sleep 1000");
    shim.run(&bundle).await;
    let stdin = bundle.fifo("exec-in");
    let writer = File::options().read(true).write(true).open(&stdin).unwrap();
    let request = ExecProcessRequest { stdin, ..exec_request(&bundle, "cat", "cat") };
    shim.task.exec(context(), &request).await.unwrap();
    let pid = shim.start_task(&bundle, "cat").await.unwrap().pid;
    drop(writer);
    let early = tokio::time::timeout(Duration::from_millis(200), shim.wait(&bundle, "cat")).await;
    assert!(early.is_err(), "a client may come back while containerd lives");
    let nobody = std::os::unix::net::UnixListener::bind(shim.dir.path().join("nobody")).unwrap();
    let elsewhere = connect(&shim.dir.path().join("nobody")).await;
    drop(std::mem::replace(&mut shim.task, elsewhere));
    until("the exec has ended", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
    shim.task = connect(&shim.socket()).await;
    drop(nobody);
    assert_eq!(shim.wait(&bundle, "cat").await.unwrap(), 0);
    assert_eq!(shim.status(&bundle, "").await, Status::RUNNING, "the container goes on");
    shim.end(&bundle).await;
}

/// containerd waits on another connection, and as early as it can.
#[tokio::test]
async fn a_wait_may_come_long_before_the_start() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("early", "exit 9");
    shim.task.create(context(), &shim.create_request(&bundle)).await.unwrap();
    let waits = [connect(&shim.socket()).await, connect(&shim.socket()).await].map(|client| {
        let request = WaitRequest { id: bundle.id.clone(), ..Default::default() };
        tokio::spawn(async move { client.wait(context(), &request).await.unwrap().exit_status })
    });
    for _ in 0..3 {
        assert_eq!(shim.status(&bundle, "").await, Status::CREATED);
    }
    assert!(waits.iter().all(|wait| !wait.is_finished()));
    shim.start_task(&bundle, "").await.unwrap();
    for wait in waits {
        assert_eq!(wait.await.unwrap(), 9);
    }
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn execs_end_before_their_container_does() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("order", "sleep 1000");
    shim.run(&bundle).await;
    for exec in ["a", "b", "c"] {
        shim.exec(&bundle, exec, "sleep 1000").await.unwrap();
        shim.start_task(&bundle, exec).await.unwrap();
    }
    shim.kill(&bundle, "", 9, false).await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 137);
    for exec in ["a", "b", "c"] {
        assert_eq!(shim.wait(&bundle, exec).await.unwrap(), 137);
        shim.delete(&bundle, exec).await.unwrap();
    }
    shim.delete(&bundle, "").await.unwrap();
    let events = shim.events_until(&format!("delete {}", bundle.id)).await;
    let of = |wanted: &str| events.iter().position(|event| event == wanted).expect(wanted);
    let init = of(&format!("exit {} 137", bundle.id));
    for exec in ["a", "b", "c"] {
        let (added, started) = (of(&format!("exec-added {exec}")), of(&format!("exec-started {exec}")));
        let ended = of(&format!("exit {exec} 137"));
        assert!(added < started && started < ended && ended < init, "{events:?}");
    }
}

#[tokio::test]
async fn signals_reach_one_or_all() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("kill", "trap 'exit 21' TERM; while :; do sleep 0.05; done");
    shim.run(&bundle).await;
    shim.exec(&bundle, "e", "sleep 1000").await.unwrap();
    let not_started = refusal(shim.kill(&bundle, "e", 9, false).await);
    assert_eq!(not_started.0, Code::FAILED_PRECONDITION);
    shim.start_task(&bundle, "e").await.unwrap();
    // A real-time signal, which has no name in most libraries.
    shim.kill(&bundle, "e", 37, false).await.unwrap();
    assert_eq!(shim.wait(&bundle, "e").await.unwrap(), 128 + 37);
    assert_eq!(shim.status(&bundle, "").await, Status::RUNNING);
    shim.kill(&bundle, "", 15, false).await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 21);
    for (exec, all) in [("", false), ("", true), ("e", false)] {
        let dead = refusal(shim.kill(&bundle, exec, 9, all).await);
        assert_eq!(dead, (Code::NOT_FOUND, "process already finished".into()));
    }
    shim.delete(&bundle, "").await.unwrap();

    let bundle = shim.bundle("kill-all", "sleep 1000");
    shim.run(&bundle).await;
    shim.exec(&bundle, "e", "sleep 1000").await.unwrap();
    shim.start_task(&bundle, "e").await.unwrap();
    shim.kill(&bundle, "", 9, true).await.unwrap();
    assert_eq!(shim.wait(&bundle, "e").await.unwrap(), 137);
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 137);
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn orphans_in_a_shared_pid_namespace_die_with_their_container_only() {
    let shim = Shim::new().await;
    let share = |config: &mut serde_json::Value| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    };
    let other = shim.bundle("other", "");
    other.configure("sleep 1000", share);
    shim.run(&other).await;
    let bundle = shim.bundle("orphan", "");
    bundle.configure("sleep 1000 & (sleep 1000 &) ; sleep 1000 & exit 4", share);
    shim.run(&bundle).await;
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 4);
    assert_eq!(shim.pids(&bundle).await.len(), 1, "only what containerd is told of one that has ended");
    let before = std::time::Instant::now();
    shim.delete(&bundle, "").await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(5) * slowness(), "no orphan holds the output");
    assert_eq!(shim.status(&other, "").await, Status::RUNNING);
    shim.end(&other).await;
}

#[tokio::test]
async fn a_failed_creation_says_why_and_leaves_nothing() {
    let shim = Shim::new().await;
    let before = shim.holdings();
    let bundle = shim.bundle("bad", "true");
    bundle.configure("", |config| config["process"]["args"] = serde_json::json!(["/nope"]));
    let (code, message) = refusal(shim.task.create(context(), &shim.create_request(&bundle)).await);
    assert_eq!(code, Code::INTERNAL);
    assert!(message.starts_with("OCI runtime create failed: ") && message.contains("/nope"), "{message}");
    std::fs::remove_file(bundle.path.join("config.json")).unwrap();
    let (_, message) = refusal(shim.task.create(context(), &shim.create_request(&bundle)).await);
    assert!(message.starts_with("read ") && message.contains("config.json"), "{message}");
    assert_eq!(shim.holdings(), before);

    let running = shim.bundle("running", "sleep 1000");
    shim.run(&running).await;
    let mut request = exec_request(&running, "bad", "");
    let spec = request.spec.as_mut().unwrap();
    spec.value = br#"{"cwd":"/","args":["/nope"],"env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#.to_vec();
    shim.task.exec(context(), &request).await.unwrap();
    let (_, message) = refusal(shim.start_task(&running, "bad").await);
    assert!(message.starts_with("OCI runtime exec failed: ") && message.contains("/nope"), "{message}");
    assert_eq!(shim.status(&running, "bad").await, Status::CREATED);
    shim.delete(&running, "bad").await.unwrap();
    shim.end(&running).await;
}

#[tokio::test]
async fn a_created_task_can_be_deleted() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("created", "true");
    shim.task.create(context(), &shim.create_request(&bundle)).await.unwrap();
    assert_eq!(shim.delete(&bundle, "").await.unwrap().exit_status, 137);
    assert_eq!(shim.holdings().2, 0);
}

#[tokio::test]
async fn a_pause_is_seen_and_undone() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("pause", "sleep 1000");
    shim.run(&bundle).await;
    let pause = PauseRequest { id: bundle.id.clone(), ..Default::default() };
    let resume = ResumeRequest { id: bundle.id.clone(), ..Default::default() };
    shim.task.pause(context(), &pause).await.unwrap();
    assert_eq!(shim.status(&bundle, "").await, Status::PAUSED);
    assert_eq!(refusal(shim.exec(&bundle, "e", "true").await).0, Code::FAILED_PRECONDITION);
    shim.task.resume(context(), &resume).await.unwrap();
    assert_eq!(shim.status(&bundle, "").await, Status::RUNNING);
    shim.task.pause(context(), &pause).await.unwrap();
    shim.kill(&bundle, "", 9, false).await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 137, "a frozen task dies");
    shim.delete(&bundle, "").await.unwrap();
    let id = &bundle.id;
    let events = shim.events_until(&format!("delete {id}")).await;
    assert_eq!(events.iter().filter(|event| **event == format!("paused {id}")).count(), 2);
    assert_eq!(events.iter().filter(|event| **event == format!("resumed {id}")).count(), 2);
}

#[tokio::test]
async fn pids_are_those_of_the_cgroup() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("pids", "sleep 1000 & sleep 1000; true");
    shim.run(&bundle).await;
    shim.exec(&bundle, "e", "exec sleep 1000").await.unwrap();
    let exec_pid = shim.start_task(&bundle, "e").await.unwrap().pid;
    let mut processes = Vec::new();
    for _ in 0..200 {
        processes = shim.pids(&bundle).await;
        if processes.len() == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(processes.len(), 4, "a shell, two sleeps, an exec: {processes:?}");
    let exec = processes.iter().find(|process| process.pid == exec_pid).unwrap();
    let details = &exec.info.as_ref().unwrap().value;
    let details = containerd_shim_protos::shim::oci::ProcessDetails::parse_from_bytes(details).unwrap();
    assert_eq!(details.exec_id, "e");
    shim.kill(&bundle, "", 9, true).await.unwrap();
    shim.wait(&bundle, "").await.unwrap();
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn containers_side_by_side_do_not_mix() {
    let shim = Shim::new().await;
    let before = shim.holdings();
    let lives = (0..8).map(|number| {
        let bundle = shim.bundle(&format!("many{number}"), &format!("echo I am {number}; exit {number}"));
        let shim = &shim;
        async move {
            let output = shim.run(&bundle).await;
            assert_eq!(shim.wait(&bundle, "").await.unwrap(), number);
            shim.delete(&bundle, "").await.unwrap();
            assert_eq!(text(output.await.unwrap()), format!("I am {number}\n"));
            bundle.id
        }
    });
    for id in futures_util::future::join_all(lives).await {
        shim.events_until(&format!("delete {id}")).await;
    }
    until("nothing is left", || {
        let after = shim.holdings();
        (after.0, after.1, after.2) == (before.0 + 1, before.1, before.2)
    })
    .await;
    let threads = std::fs::read_dir(format!("/proc/{}/task", shim.process.id())).unwrap().count();
    assert_eq!(threads, 1);
}

#[tokio::test]
async fn events_wait_for_containerd_in_their_order() {
    let mut shim = Shim::without_containerd().await;
    let bundle = shim.bundle("away", "exit 0");
    shim.run(&bundle).await;
    shim.wait(&bundle, "").await.unwrap();
    shim.delete(&bundle, "").await.unwrap();
    shim.listen().await;
    let id = &bundle.id;
    let events = shim.events_until(&format!("delete {id}")).await;
    let all = [format!("create {id}"), format!("start {id}"), format!("exit {id} 0"), format!("delete {id}")];
    assert_eq!(events, all);
}

/// A client may take no events, and have no address at all.
#[tokio::test]
async fn a_shim_serves_a_client_that_takes_no_events() {
    let mut shim = Shim::without_addresses().await;
    let bundle = shim.bundle("silent", "exit 6");
    shim.run(&bundle).await;
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 6);
    shim.delete(&bundle, "").await.unwrap();
    let shutdown = ShutdownRequest { id: bundle.id.clone(), ..Default::default() };
    shim.task.shutdown(context(), &shutdown).await.unwrap();
    let process = &mut shim.process;
    until("the shim ends", || process.try_wait().unwrap().is_some()).await;
    assert!(!shim.socket().exists());
}

#[tokio::test]
async fn a_request_outlives_its_client() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("gone", "sleep 1000");
    let folder = shim.dir.path();
    let options = Some(gated_runtime(folder)).into();
    let request = CreateTaskRequest { options, ..shim.create_request(&bundle) };
    let client = connect(&shim.socket()).await;
    let asking = tokio::spawn(async move { client.create(context(), &request).await });
    until("the runtime is at work", || folder.join("begun").exists()).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled(), "it is answered to nobody");
    File::create(folder.join("go")).unwrap();
    shim.events_until(&format!("create {}", bundle.id)).await;
    assert_eq!(shim.status(&bundle, "").await, Status::CREATED);
    shim.delete(&bundle, "").await.unwrap();
}

#[tokio::test]
async fn what_a_killed_shim_leaves_is_cleaned_up() {
    let mut shim = Shim::new().await;
    let bundle = shim.bundle("crash", "sleep 1000");
    shim.run(&bundle).await;
    let pid = shim.state(&bundle, "").await.unwrap().pid;
    shim.process.kill().unwrap();
    shim.process.wait().unwrap();
    assert_eq!(shim.cleanup(&bundle), format!("{pid} 137"));
    assert_eq!(shim.cleanup(&bundle), format!("{pid} 137"), "again");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bundle.path.to_str().unwrap()));
    assert!(!bundle.has_cgroup());
}

/// containerd may have removed the bundle under the feet of `delete`, whose working directory it is.
#[tokio::test]
async fn delete_cleans_up_from_a_working_directory_that_has_vanished() {
    let mut shim = Shim::new().await;
    let bundle = shim.bundle("vanished", "sleep 1000");
    shim.run(&bundle).await;
    let pid = shim.state(&bundle, "").await.unwrap().pid;
    shim.process.kill().unwrap();
    shim.process.wait().unwrap();
    let script = r#"umount rootfs && rm -r "$PWD" && exec "$@""#;
    let delete = ["-namespace", "weft-test", "-id", &bundle.id, "-address", "/nowhere", "-bundle"];
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_containerd-shim-weft-v1")])
        .args(delete)
        .arg(&bundle.path)
        .arg("delete")
        .env("WEFT_RUN_DIR", shim.dir.path().join("run"))
        .env("WEFT_RUNTIME_ROOT", shim.dir.path().join("runtime"))
        .env("WEFT_CONFIG", shim.dir.path().join("config.toml"))
        .current_dir(&bundle.path)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().exit_status, 137);
    assert!(!bundle.path.exists());
    // Whoever is the parent of an orphan reaps it in its own time; a zombie has no command line.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert_eq!(line, b"", "the container is dead");
    let state = shim.dir.path().join("runtime/weft-test").join(&bundle.id);
    assert!(!state.exists(), "the runtime has forgotten it");
}

/// As when containerd loses sight of a container, but not of its shim.
#[tokio::test]
async fn delete_ends_a_container_that_containerd_gave_up() {
    let mut shim = Shim::new().await;
    let (lost, kept) = (shim.bundle("lost", "sleep 1000"), shim.bundle("kept", "sleep 1000"));
    shim.run(&lost).await;
    shim.run(&kept).await;
    let pid = shim.state(&lost, "").await.unwrap().pid;
    for bundle in [&lost, &kept] {
        std::fs::write(bundle.path.join("address"), format!("unix://{}", shim.socket().display())).unwrap();
    }
    assert_eq!(shim.cleanup(&lost), format!("{pid} 137"));
    assert_eq!(refusal(shim.state(&lost, "").await).0, Code::NOT_FOUND);
    shim.events_until(&format!("delete {}", lost.id)).await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(lost.path.to_str().unwrap()));
    shim.cleanup(&lost);
    assert_eq!(shim.status(&kept, "").await, Status::RUNNING);
    shim.cleanup(&kept);
    let process = &mut shim.process;
    until("the shim ends with its last container", || process.try_wait().unwrap().is_some()).await;
}

/// As after a `delete` that the shim was too busy to answer: it took the container down from the outside, and containerd removed
/// the bundle.
#[tokio::test]
async fn a_shim_whose_bundles_have_gone_ends_when_nobody_is_connected() {
    let mut shim = Shim::new().await;
    let (ended, running) = (shim.bundle("ended", "sleep 1000"), shim.bundle("running", "sleep 1000"));
    shim.run(&ended).await;
    shim.run(&running).await;
    let pids = [shim.state(&ended, "").await.unwrap().pid, shim.state(&running, "").await.unwrap().pid];
    let nobody = shim.dir.path().join("nobody");
    let _listener = std::os::unix::net::UnixListener::bind(&nobody).unwrap();
    shim.task = connect(&nobody).await;
    std::fs::write(ended.path.join("address"), format!("unix://{}", shim.socket().display())).unwrap();
    let daemon = shim.process.id().to_string();
    run("kill", &["-s".as_ref(), "STOP".as_ref(), daemon.as_ref()]);
    assert_eq!(shim.cleanup(&ended), format!("{} 137", pids[0]));
    run("kill", &["-s".as_ref(), "CONT".as_ref(), daemon.as_ref()]);
    // As containerd does before it removes a bundle (`UnmountRecursive`).
    run("umount", &["--lazy".as_ref(), running.path.join("rootfs").as_ref()]);
    for bundle in [&ended, &running] {
        std::fs::remove_dir_all(&bundle.path).unwrap();
    }
    let process = &mut shim.process;
    until_within(Duration::from_secs(60), "the shim ends", || process.try_wait().unwrap().is_some()).await;
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}

/// containerd removes the containers first; one that it has lost sight of must not keep the daemon for ever.
#[tokio::test]
async fn a_sandbox_takes_its_containers_along() {
    let mut shim = Shim::new().await;
    let client = Client::connect(&format!("unix://{}", shim.socket().display())).await.unwrap();
    let client = SandboxClient::new(client);
    let sandbox_id = "weft-test-shim".to_owned();
    let create = CreateSandboxRequest { sandbox_id: sandbox_id.clone(), ..Default::default() };
    client.create_sandbox(context(), &create).await.unwrap();
    let start = StartSandboxRequest { sandbox_id: sandbox_id.clone(), ..Default::default() };
    client.start_sandbox(context(), &start).await.unwrap();
    let bundle = shim.bundle("member", "sleep 1000");
    let mut create = shim.create_request(&bundle);
    // The pod's files are mounted below /etc, which the image does not have.
    create.rootfs[0].options = vec!["rbind".into(), "rw".into()];
    shim.task.create(context(), &create).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    let pid = shim.state(&bundle, "").await.unwrap().pid;
    let shutdown = ShutdownSandboxRequest { sandbox_id, ..Default::default() };
    client.shutdown_sandbox(context(), &shutdown).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bundle.path.to_str().unwrap()));
    let process = &mut shim.process;
    until("the shim ends", || process.try_wait().unwrap().is_some()).await;
}

#[tokio::test]
async fn a_shim_without_tasks_ends_when_asked_and_not_before() {
    let mut shim = Shim::new().await;
    let bundle = shim.bundle("shutdown", "sleep 1000");
    shim.run(&bundle).await;
    let shutdown = ShutdownRequest { id: bundle.id.clone(), ..Default::default() };
    shim.task.shutdown(context(), &shutdown).await.unwrap();
    assert_eq!(shim.status(&bundle, "").await, Status::RUNNING);
    shim.end(&bundle).await;
    shim.task.shutdown(context(), &shutdown).await.unwrap();
    let process = &mut shim.process;
    until("the shim ends", || process.try_wait().unwrap().is_some()).await;
}

/// containerd's own limit of layers is far above what one page of mount options takes.
#[tokio::test]
async fn an_overlay_may_have_more_layers_than_a_page_can_name() {
    let shim = Shim::new().await;
    let base = shim.dir.path().join("snapshots");
    std::fs::create_dir(&base).unwrap();
    let folder = |name: &str| {
        let path = base.join(name);
        std::fs::create_dir(&path).unwrap();
        path.display().to_string()
    };
    let mut layers: Vec<String> =
        (0..100).map(|n| folder(&format!("layer-{n:03}-{}", "x".repeat(12)))).collect();
    std::fs::write(format!("{}/lowest", layers[99]), "here").unwrap();
    layers.push(shim.dir.path().join("image").display().to_string());
    let lower = format!("lowerdir={}", layers.join(":"));
    assert!(lower.len() > 4096);
    let bundle = shim.bundle("layers", "cat /lowest; echo written > /new");
    bundle.configure("cat /lowest; echo written > /new", |config| config["root"]["readonly"] = false.into());
    let (stdout, output) = bundle.output("stdout");
    let overlay = containerd_shim_protos::types::mount::Mount {
        type_: "overlay".into(),
        source: "overlay".into(),
        options: vec![format!("workdir={}", folder("work")), format!("upperdir={}", folder("upper")), lower],
        ..Default::default()
    };
    let request = CreateTaskRequest { stdout, rootfs: vec![overlay], ..shim.create_request(&bundle) };
    shim.task.create(context(), &request).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 0);
    shim.delete(&bundle, "").await.unwrap();
    assert_eq!(text(output.await.unwrap()), "here");
    assert_eq!(std::fs::read_to_string(base.join("upper/new")).unwrap(), "written\n");
}
