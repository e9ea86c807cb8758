//! What each method answers in each state of a task or an exec. containerd acts on the codes: "not found" is "already
//! done" to it.

use containerd_shim_protos::api::*;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;

use crate::fixture::*;

const OK: Code = Code::OK;
const NF: Code = Code::NOT_FOUND;
const FP: Code = Code::FAILED_PRECONDITION;
const AE: Code = Code::ALREADY_EXISTS;
const IA: Code = Code::INVALID_ARGUMENT;
/// Would go on to the next state, or block; the table's own steps do that.
const __: Code = Code::DATA_LOSS;

/// Method, and its code for a task that is unknown, created, running, paused, stopped, deleted.
const TASK: [(&str, [Code; 6]); 20] = [
    ("create", [__, AE, AE, AE, AE, __]),
    ("start", [NF, __, FP, FP, FP, NF]),
    ("delete", [NF, __, FP, FP, __, NF]),
    ("exec", [NF, __, __, FP, FP, NF]),
    ("exec without a name", [NF, IA, IA, IA, IA, NF]),
    ("exec of no process", [NF, IA, IA, IA, IA, NF]),
    ("state", [NF, OK, OK, OK, OK, NF]),
    ("pids", [NF, OK, OK, OK, OK, NF]),
    ("pause", [NF, FP, __, FP, FP, NF]),
    ("resume", [NF, FP, FP, __, FP, NF]),
    ("checkpoint", [NF, FP, __, __, FP, NF]),
    ("kill", [NF, OK, OK, OK, NF, NF]),
    ("kill all", [NF, OK, OK, OK, NF, NF]),
    ("kill with 0", [NF, IA, IA, IA, IA, NF]),
    ("resize", [NF, OK, OK, OK, FP, NF]),
    ("resize too far", [IA, IA, IA, IA, IA, IA]),
    ("close", [NF, OK, OK, OK, OK, NF]),
    ("update", [NF, OK, OK, OK, FP, NF]),
    ("update with nothing", [NF, IA, IA, IA, IA, NF]),
    ("stats", [NF, OK, OK, OK, OK, NF]),
];

/// The same for an exec that is unknown, added, running, stopped, deleted.
const EXEC: [(&str, [Code; 5]); 9] = [
    ("start", [NF, __, FP, FP, NF]),
    ("delete", [NF, __, FP, __, NF]),
    ("exec", [__, AE, AE, AE, __]),
    ("state", [NF, OK, OK, OK, NF]),
    ("kill", [NF, FP, OK, NF, NF]),
    ("resize", [NF, OK, OK, FP, NF]),
    ("close", [NF, OK, OK, OK, NF]),
    ("wait", [NF, __, __, OK, NF]),
    ("kill with 0", [IA, IA, IA, IA, IA]),
];

fn code<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        refused => refusal(refused).0,
    }
}

/// What a signal does not change: nobody has stopped.
const SIGCONT: u32 = 18;

async fn code_of(method: &str, shim: &Shim, bundle: &Bundle, exec_id: &str) -> Code {
    let (task, id, exec_id) = (&shim.task, bundle.id.clone(), exec_id.to_owned());
    let resize = |width| ResizePtyRequest { width, height: 2, ..Default::default() };
    match method {
        "create" => code(task.create(context(), &shim.create_request(bundle)).await),
        "start" => code(shim.start_task(bundle, &exec_id).await),
        "delete" => code(shim.delete(bundle, &exec_id).await),
        "exec" if exec_id.is_empty() => code(shim.exec(bundle, "new", "true").await),
        "exec" => code(shim.exec(bundle, &exec_id, "true").await),
        "exec without a name" => code(shim.exec(bundle, "", "true").await),
        "exec of no process" => {
            let mut request = exec_request(bundle, "new", "true");
            request.spec = MessageField::none();
            code(task.exec(context(), &request).await)
        }
        "state" => code(shim.state(bundle, &exec_id).await),
        "pids" => code(task.pids(context(), &PidsRequest { id, ..Default::default() }).await),
        "pause" => code(task.pause(context(), &PauseRequest { id, ..Default::default() }).await),
        "resume" => code(task.resume(context(), &ResumeRequest { id, ..Default::default() }).await),
        "checkpoint" => {
            let request = CheckpointTaskRequest { id, path: "/nowhere/x".into(), ..Default::default() };
            code(task.checkpoint(context(), &request).await)
        }
        "kill" => code(shim.kill(bundle, &exec_id, SIGCONT, false).await),
        "kill all" => code(shim.kill(bundle, &exec_id, SIGCONT, true).await),
        "kill with 0" => code(shim.kill(bundle, &exec_id, 0, false).await),
        "resize" => code(task.resize_pty(context(), &ResizePtyRequest { id, exec_id, ..resize(2) }).await),
        "resize too far" => {
            code(task.resize_pty(context(), &ResizePtyRequest { id, exec_id, ..resize(70_000) }).await)
        }
        "close" => {
            let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
            code(task.close_io(context(), &request).await)
        }
        "update" | "update with nothing" => {
            let value = if method == "update" { b"{}".to_vec() } else { Vec::new() };
            let resources = MessageField::some(Any { value, ..Default::default() });
            code(task.update(context(), &UpdateTaskRequest { id, resources, ..Default::default() }).await)
        }
        "wait" => code(shim.wait(bundle, &exec_id).await),
        "stats" => code(task.stats(context(), &StatsRequest { id, ..Default::default() }).await),
        other => panic!("no such method: {other}"),
    }
}

async fn check<const N: usize>(
    state: (usize, &str),
    table: &[(&str, [Code; N])],
    shim: &Shim,
    bundle: &Bundle,
    exec_id: &str,
) {
    for (method, codes) in table.iter().filter(|(_, codes)| codes[state.0] != __) {
        let got = code_of(method, shim, bundle, exec_id).await;
        assert_eq!(got, codes[state.0], "{method} of one that is {}", state.1);
    }
    // These are answered in every state.
    let id = bundle.id.clone();
    let connect = ConnectRequest { id: id.clone(), ..Default::default() };
    let connected = shim.task.connect(context(), &connect).await.unwrap();
    assert_eq!(connected.shim_pid, shim.process.id());
    let exists = shim.state(bundle, "").await.map(|state| state.pid);
    assert_eq!(connected.task_pid, exists.unwrap_or(0), "{}", state.1);
}

#[tokio::test]
async fn each_method_answers_with_its_code_in_each_state_of_a_task() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("codes", "sleep 1000");
    let of = async |state| check(state, &TASK, &shim, &bundle, "").await;
    of((0, "unknown")).await;
    shim.task.create(context(), &shim.create_request(&bundle)).await.unwrap();
    of((1, "created")).await;
    shim.start_task(&bundle, "").await.unwrap();
    of((2, "running")).await;
    let id = bundle.id.clone();
    shim.task.pause(context(), &PauseRequest { id: id.clone(), ..Default::default() }).await.unwrap();
    of((3, "paused")).await;
    shim.task.resume(context(), &ResumeRequest { id: id.clone(), ..Default::default() }).await.unwrap();
    // One that has ended still has its id: containerd asks all processes to end before it deletes.
    shim.task.shutdown(context(), &ShutdownRequest { id, ..Default::default() }).await.unwrap();
    shim.exec(&bundle, "late", "true").await.unwrap();
    shim.kill(&bundle, "", 9, false).await.unwrap();
    assert_eq!(shim.wait(&bundle, "").await.unwrap(), 137);
    of((4, "stopped")).await;
    assert_eq!(code(shim.start_task(&bundle, "late").await), FP, "an exec of a container that has ended");
    shim.delete(&bundle, "").await.unwrap();
    of((5, "deleted")).await;
    assert_eq!(code(shim.wait(&bundle, "").await), NF);
}

#[tokio::test]
async fn each_method_answers_with_its_code_in_each_state_of_an_exec() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("exec-codes", "sleep 1000");
    shim.run(&bundle).await;
    let of = async |state| check(state, &EXEC, &shim, &bundle, "e").await;
    of((0, "unknown")).await;
    shim.exec(&bundle, "e", "sleep 1000").await.unwrap();
    of((1, "added")).await;
    shim.start_task(&bundle, "e").await.unwrap();
    of((2, "running")).await;
    shim.kill(&bundle, "e", 9, false).await.unwrap();
    assert_eq!(shim.wait(&bundle, "e").await.unwrap(), 137);
    of((3, "stopped")).await;
    shim.delete(&bundle, "e").await.unwrap();
    of((4, "deleted")).await;
    shim.end(&bundle).await;
}

/// The limits that the OCI runtime takes are set, and of those that it does not take none.
#[tokio::test]
async fn an_update_is_seen_in_the_cgroup() {
    let shim = Shim::new().await;
    let bundle = shim.bundle("update", "sleep 1000");
    shim.run(&bundle).await;
    let update = async |json: &str| {
        let resources = MessageField::some(Any { value: json.into(), ..Default::default() });
        let id = bundle.id.clone();
        shim.task.update(context(), &UpdateTaskRequest { id, resources, ..Default::default() }).await
    };
    let pid = shim.state(&bundle, "").await.unwrap().pid;
    let limit = || {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let of = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let is_its = controllers.is_empty() || controllers == "pids";
            let file = format!("/sys/fs/cgroup/{controllers}{path}/pids.max");
            if is_its { std::fs::read_to_string(file).ok() } else { None }
        };
        cgroups.lines().find_map(of).unwrap()
    };
    update(r#"{"cpu":{"shares":512},"pids":{"limit":50}}"#).await.unwrap();
    assert_eq!(limit(), "50\n");
    let is_v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let unified = update(r#"{"unified":{"pids.max":"40"}}"#).await;
    if is_v2 {
        unified.unwrap();
        assert_eq!(limit(), "40\n");
    } else {
        let (code, message) = refusal(unified);
        assert_eq!(code, Code::INTERNAL);
        assert!(
            message.starts_with("OCI runtime update failed: ") && message.contains("unified"),
            "{message}"
        );
        assert_eq!(limit(), "50\n");
    }
    let (code, message) = refusal(update(r#"{"pids":"#).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.starts_with("decode resources: "), "{message}");
    assert_eq!(shim.status(&bundle, "").await, Status::RUNNING);
    shim.end(&bundle).await;
}
