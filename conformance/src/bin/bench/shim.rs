//! A shim with one container, spoken to as containerd does.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, ShutdownRequest,
    StartRequest, WaitRequest,
};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::context::{Context, with_duration};
use containerd_shim_protos::types::mount::Mount;
use containerd_shim_protos::{Client, TaskClient};
use weft_conformance::wait_until;

use crate::bundle::{Bundle, milliseconds, took};
use crate::task::Times;

const NAMESPACE: &str = "bench";
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Shim {
    binary: String,
    /// The directory of the node.
    node: PathBuf,
    bundle: Bundle,
}

fn context() -> Context {
    with_duration(SOON)
}

fn path(address: &str) -> &Path {
    Path::new(address.trim_start_matches("unix://"))
}

/// Once the shim has ended. That of the reference stays otherwise.
fn remove_socket(address: &str) {
    wait_until(SOON, "the shim has ended", || UnixStream::connect(path(address)).is_err());
    if path(address).exists() {
        fs::remove_file(path(address)).expect("remove a socket");
    }
}

impl Shim {
    pub(crate) fn new(node: &Path, binary: &str, id: &str) -> Self {
        Self { binary: binary.to_owned(), node: node.to_owned(), bundle: Bundle::new(node, id) }
    }

    /// A whole life.
    pub(crate) fn live(&self) -> Times {
        let mut times = Times::default();
        let begin = Instant::now();
        let (task, address) = self.start();
        times[0] = Some(milliseconds(begin.elapsed()));
        times[1] = took(|| self.create(&task));
        times[2] = took(|| self.start_process(&task, ""));
        times[3] = took(|| {
            self.exec(&task, "one");
            self.start_process(&task, "one");
        });
        self.wait(&task, "one");
        self.delete(&task, "one");
        times[4] = took(|| {
            self.exec(&task, "two");
            self.start_process(&task, "two");
            self.wait(&task, "two");
            self.delete(&task, "two");
        });
        times[5] = took(|| {
            self.kill(&task);
            self.wait(&task, "");
        });
        times[6] = took(|| self.delete(&task, ""));
        let shutdown = ShutdownRequest { id: self.id(), ..Default::default() };
        // The Go shim may be gone before it has answered, and leaves its socket to `delete`.
        drop(task.shutdown(context(), &shutdown));
        drop(task);
        remove_socket(&address);
        times
    }

    /// A life that a kill -9 of the shim ends; how long `delete` takes then, in ms.
    pub(crate) fn die(&self) -> f64 {
        let (task, address) = self.start();
        self.create(&task);
        self.start_process(&task, "");
        let pid = task.connect(context(), &self.connect_request()).expect("Connect").shim_pid;
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("run kill").success());
        drop(task);
        wait_until(SOON, "the shim is dead", || UnixStream::connect(path(&address)).is_err());
        let mut delete = self.command();
        delete.args(["-bundle", &self.bundle.file(""), "delete"]).stdin(Stdio::null());
        let took = took(|| {
            let output = delete.output().expect("run a shim");
            assert!(output.status.success(), "delete: {}", String::from_utf8_lossy(&output.stderr));
        });
        remove_socket(&address);
        took.expect("it was measured")
    }

    fn id(&self) -> String {
        self.bundle.id.clone()
    }

    /// With the environment and the words that containerd gives it.
    fn command(&self) -> Command {
        let grpc = self.node.join("containerd.sock").display().to_string();
        let mut command = Command::new(&self.binary);
        command.args(["-namespace", NAMESPACE, "-address", &grpc, "-publish-binary", "containerd"]);
        command.args(["-id", &self.bundle.id]).current_dir(&self.bundle.path);
        command.env("TTRPC_ADDRESS", format!("{grpc}.ttrpc")).env("GRPC_ADDRESS", &grpc);
        command.env("NAMESPACE", NAMESPACE).env("GOMAXPROCS", "2").env("MAX_SHIM_VERSION", "2");
        command
    }

    /// Started, connected to, and with one call answered.
    fn start(&self) -> (TaskClient, String) {
        let mut command = self.command();
        command.arg("start").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let params = BootstrapParams {
            instance_id: self.id(),
            namespace: NAMESPACE.to_owned(),
            containerd_ttrpc_address: self.node.join("containerd.sock.ttrpc").display().to_string(),
            containerd_grpc_address: self.node.join("containerd.sock").display().to_string(),
            containerd_binary: "containerd".to_owned(),
            socket_dir: Some(self.node.join("s").display().to_string()),
            ..Default::default()
        };
        let params = params.write_to_bytes().expect("encode the parameters");
        let mut process = command.spawn().expect("run a shim");
        process.stdin.take().expect("stdin is piped").write_all(&params).expect("write to a shim");
        let output = process.wait_with_output().expect("wait for a shim");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "start: {said}{}", String::from_utf8_lossy(&output.stdout));
        let address = BootstrapResult::parse_from_bytes(&output.stdout).expect("a shim answers").address;
        let task = TaskClient::new(Client::connect(&address).expect("connect to a shim"));
        task.connect(context(), &self.connect_request()).expect("Connect");
        (task, address)
    }

    fn connect_request(&self) -> ConnectRequest {
        ConnectRequest { id: self.id(), ..Default::default() }
    }

    fn create(&self, task: &TaskClient) {
        let rootfs = Mount {
            type_: "bind".into(),
            source: self.bundle.file("image"),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        };
        let request = CreateTaskRequest {
            id: self.id(),
            bundle: self.bundle.path.display().to_string(),
            rootfs: vec![rootfs],
            stdout: self.bundle.file("stdout"),
            stderr: self.bundle.file("stderr"),
            ..Default::default()
        };
        task.create(context(), &request).expect("Create");
    }

    fn exec(&self, task: &TaskClient, exec_id: &str) {
        let process = self.bundle.exec(&["/bin/busybox", "true"]).to_string();
        let spec = Any { type_url: PROCESS.into(), value: process.into(), ..Default::default() };
        let request = ExecProcessRequest {
            id: self.id(),
            exec_id: exec_id.to_owned(),
            stdout: self.bundle.file("stdout"),
            stderr: self.bundle.file("stderr"),
            spec: Some(spec).into(),
            ..Default::default()
        };
        task.exec(context(), &request).expect("Exec");
    }

    fn start_process(&self, task: &TaskClient, exec_id: &str) {
        let request = StartRequest { id: self.id(), exec_id: exec_id.to_owned(), ..Default::default() };
        task.start(context(), &request).expect("Start");
    }

    fn wait(&self, task: &TaskClient, exec_id: &str) {
        let request = WaitRequest { id: self.id(), exec_id: exec_id.to_owned(), ..Default::default() };
        task.wait(context(), &request).expect("Wait");
    }

    fn kill(&self, task: &TaskClient) {
        let request = KillRequest { id: self.id(), signal: 9, ..Default::default() };
        task.kill(context(), &request).expect("Kill");
    }

    fn delete(&self, task: &TaskClient, exec_id: &str) {
        let request = DeleteRequest { id: self.id(), exec_id: exec_id.to_owned(), ..Default::default() };
        task.delete(context(), &request).expect("Delete");
    }
}
