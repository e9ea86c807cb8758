//! Output that does not go to a fifo: files, and logging binaries, which are shell scripts here.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::*;
use ttrpc::Code;

use crate::fixture::*;

/// Says that it is ready, and writes what it gets to `<$2>.out` and `<$2>.err`.
const COPY: &str = r#"tr '\0' '\n' < /proc/$$/environ > "$2.env"; echo x >&5; exec 5>&-
cat <&3 > "$2.out" & cat <&4 > "$2.err"; wait; echo ended > "$2.end""#;

/// A program that runs `script`, and the address that names it.
fn binary(shim: &Shim, scheme: &str, script: &str) -> (PathBuf, String) {
    let program = shim.dir.path().join("logging binary");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let base = shim.dir.path().join("log");
    let encoded = program.display().to_string().replace(' ', "%20");
    (base.clone(), format!("{scheme}://{encoded}?base={}", base.display()))
}

fn request(shim: &Shim, bundle: &Bundle, address: &str) -> CreateTaskRequest {
    // As containerd's client does for every address of a log.
    CreateTaskRequest { stdout: address.into(), stderr: address.into(), ..shim.create_request(bundle) }
}

async fn life(shim: &Shim, bundle: &Bundle, request: &CreateTaskRequest) {
    shim.task.create(context(), request).await.unwrap();
    shim.start_task(bundle, "").await.unwrap();
    assert_eq!(shim.wait(bundle, "").await.unwrap(), 0);
    shim.delete(bundle, "").await.unwrap();
}

fn read(base: &Path, extension: &str) -> String {
    std::fs::read_to_string(base.with_extension(extension)).unwrap()
}

#[tokio::test]
async fn a_logging_binary_gets_all_of_a_fast_exit_and_then_ends() {
    let shim = Shim::new().await;
    for scheme in ["binary", "binary-v2"] {
        let bundle = shim.bundle(scheme, "head -c 8388608 /dev/zero; head -c 100000 /dev/zero >&2");
        let (base, address) = binary(&shim, scheme, COPY);
        let before = shim.holdings();
        life(&shim, &bundle, &request(&shim, &bundle, &address)).await;
        let length = |extension| std::fs::metadata(base.with_extension(extension)).unwrap().len();
        assert_eq!((length("out"), length("err")), (8 << 20, 100_000));
        assert_eq!(read(&base, "end"), "ended\n", "it was not killed");
        let environment = format!("CONTAINER_ID={}\nCONTAINER_NAMESPACE=weft-test\n", bundle.id);
        assert_eq!(read(&base, "env"), environment, "and nothing else");
        let after = shim.holdings();
        assert_eq!((after.1, after.2), (before.1, before.2));
        std::fs::remove_file(base.with_extension("end")).unwrap();
    }
}

#[tokio::test]
async fn a_logging_binary_takes_a_terminal_and_an_exec() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("tty-log", "");
    bundle.configure("tty", |config| config["process"]["terminal"] = true.into());
    let (base, address) = binary(&shim, "binary", COPY);
    let created = CreateTaskRequest { terminal: true, ..request(&shim, &bundle, &address) };
    life(&shim, &bundle, &created).await;
    assert_eq!((read(&base, "out"), read(&base, "err")), ("/dev/pts/0\r\n".into(), String::new()));

    let bundle = shim.bundle("exec-log", "sleep 1000");
    shim.run(&bundle).await;
    let exec = exec_request(&bundle, "e1", "echo of exec; echo errors >&2");
    let request = ExecProcessRequest { stdout: address.clone(), stderr: address, ..exec };
    shim.task.exec(context(), &request).await.unwrap();
    shim.start_task(&bundle, "e1").await.unwrap();
    assert_eq!(shim.wait(&bundle, "e1").await.unwrap(), 0);
    shim.delete(&bundle, "e1").await.unwrap();
    assert_eq!((read(&base, "out"), read(&base, "err")), ("of exec\n".into(), "errors\n".into()));
    assert!(read(&base, "env").starts_with("CONTAINER_ID=e1\n"));
    shim.end(&bundle).await;
}

#[tokio::test]
async fn a_logging_binary_that_stays_is_told_to_end() {
    let shim = Shim::new().await;
    let script = r#"trap 'echo told > "$2.end"; exit 0' TERM; exec 5>&-; read line <&3; echo "$line" > "$2.out"
while :; do sleep 0.02; done"#;
    let (base, address) = binary(&shim, "binary", script);
    let bundle = shim.bundle("stays", "echo line");
    let before = shim.holdings();
    life(&shim, &bundle, &request(&shim, &bundle, &address)).await;
    assert_eq!((read(&base, "out"), read(&base, "end")), ("line\n".into(), "told\n".into()));
    assert_eq!(shim.holdings().1, before.1, "no child is left");
}

#[tokio::test]
async fn a_process_whose_logging_binary_has_died_is_not_blocked() {
    let shim = Shim::new().await;
    let (_, address) = binary(&shim, "binary", "exec 5>&-; read line <&3; exit 1");
    // Without a reader the second write fails, or SIGPIPE ends `yes`; with a pipe that nobody empties it would hang.
    let bundle = shim.bundle("orphaned", "echo line; yes > /dev/stdout; exit 0");
    life(&shim, &bundle, &request(&shim, &bundle, &address)).await;
}

#[tokio::test]
async fn a_logging_binary_of_a_killed_shim_ends_with_its_container() {
    let mut shim = Shim::new().await;
    let bundle = shim.bundle("crash-log", "echo line; exec sleep 1000");
    let (base, address) = binary(&shim, "binary", COPY);
    shim.task.create(context(), &request(&shim, &bundle, &address)).await.unwrap();
    shim.start_task(&bundle, "").await.unwrap();
    let out = base.with_extension("out");
    until("it logs", || std::fs::read(&out).is_ok_and(|text| text == b"line\n")).await;
    shim.process.kill().unwrap();
    shim.process.wait().unwrap();
    assert!(!base.with_extension("end").exists(), "it takes output as long as there may be some");
    shim.cleanup(&bundle);
    until("it ends", || base.with_extension("end").exists()).await;
}

#[tokio::test]
async fn a_logging_binary_that_is_not_ready_fails_the_creation() {
    let shim = Shim::new().await;
    let before = shim.holdings();
    let bundle = shim.bundle("not-ready", "true");
    let create = async |address: &str| {
        let answer = shim.task.create(context(), &request(&shim, &bundle, address)).await;
        let (code, message) = refusal(answer);
        let dir = format!("{}/", shim.dir.path().display());
        (code, message.replace(&dir, ""))
    };
    let (_, crashes) = binary(&shim, "binary", "exit 3");
    let why = "logging binary logging binary ended with 3 before it was ready";
    assert_eq!(create(&crashes).await, (Code::INTERNAL, why.to_owned()));
    assert_eq!(create(&crashes.replace("binary:", "binary-v2:")).await, (Code::INTERNAL, why.to_owned()));
    let (_, silent) = binary(&shim, "binary-v2", "exec 5>&-; read line <&3");
    let why = "logging binary logging binary did not say that it is ready";
    assert_eq!(create(&silent).await, (Code::INTERNAL, why.to_owned()));
    let why = "run logging binary /nope: ENOENT: No such file or directory";
    assert_eq!(create("binary:///nope").await, (Code::INTERNAL, why.to_owned()));
    until("nothing is left", || shim.holdings() == before).await;
    life(&shim, &bundle, &shim.create_request(&bundle)).await;
}

#[tokio::test]
async fn a_file_is_made_and_appended_to() {
    let shim = Shim::new().await;
    let log = shim.dir.path().join("new folder/a log");
    let address = format!("file://{}", log.display().to_string().replace(' ', "%20"));
    for line in ["one", "two"] {
        let bundle = shim.bundle(line, &format!("echo {line}; echo errors of {line} >&2"));
        life(&shim, &bundle, &request(&shim, &bundle, &address)).await;
    }
    let written = std::fs::read_to_string(&log).unwrap();
    let mut lines: Vec<&str> = written.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["errors of one", "errors of two", "one", "two"]);
}

#[tokio::test]
async fn an_address_of_an_unknown_scheme_is_refused_by_name() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("scheme", "true");
    for (stdin, stdout, stderr, named) in [
        ("", "npipe:////x", "", "got scheme \"npipe\""),
        ("", "streaming+unix:///x", "", "got scheme \"streaming+unix\""),
        ("", "/dev/null", "binary:///bin/true", "got scheme \"binary\", want the same address for stdout"),
        ("file:///dev/null", "", "", "got scheme \"file\", want a fifo"),
    ] {
        let request = CreateTaskRequest {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ..shim.create_request(&bundle)
        };
        let (code, message) = refusal(shim.task.create(context(), &request).await);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
        assert!(message.contains(named), "{message}");
    }
    assert_eq!(shim.holdings().2, 0, "nothing stays mounted");
}
