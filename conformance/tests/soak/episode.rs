//! The episodes themselves. Each that makes a pod removes it, however it goes.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_conformance::{Container, ContainerSpec, Dice, Pod, PodSpec, image};

use crate::deck::Card;
use crate::outage::{End, refused};
use crate::{Arm, holds_soon};

/// Lines that a container writes in [`Card::Output`].
const LINES: usize = 20_000;

/// Whoever plays a card; pods are named after it.
pub(crate) struct Worker<'a, 'n> {
    pub(crate) arm: &'a Arm<'n>,
    pub(crate) name: String,
    /// Whether its containers have PID namespaces of their own (1) or one together (0).
    pub(crate) pids: usize,
    /// The outages before it.
    pub(crate) since: u64,
}

impl<'n> Worker<'_, 'n> {
    pub(crate) fn play(&self, card: Card, mut dice: Dice) {
        let done = match card {
            Card::Execs => self.execs(&mut dice),
            Card::ExecTimeout => self.exec_timeout(&mut dice),
            Card::ExecInput => self.exec_input(&mut dice),
            Card::ShimKilled => self.in_pod(|pod| self.shim_killed(pod, &mut dice)),
            Card::Bare => self.in_pod(|pod| self.stop(pod)),
            Card::Plain => self.in_pod(|pod| self.plain(pod, &mut dice)),
            Card::Output => self.in_pod(|pod| self.output(pod)),
            Card::Killed => self.in_pod(|pod| self.killed(pod, &mut dice)),
            Card::OutOfMemory => self.in_pod(|pod| self.out_of_memory(pod)),
            Card::BadCommand => self.in_pod(|pod| self.bad_command(pod)),
            Card::BadMount => self.in_pod(|pod| self.bad_mount(pod)),
            Card::Forced => self.in_pod(|pod| self.container(pod, "main", idle()).map(drop)),
        };
        // An episode that did not go on has told the tally why.
        drop(done);
    }

    fn in_pod(&self, work: impl FnOnce(&Pod<'n>) -> Result<(), End>) -> Result<(), End> {
        let spec = PodSpec::new(&self.name).with(pids(self.pids));
        let pod = self.arm.undisturbed("run a pod", || self.arm.node.try_run_pod(&spec))?;
        let done = work(&pod);
        let removed = self.arm.repeat("remove a pod", || {
            // After a restart containerd may need a moment for containers whose shim has died meanwhile.
            self.arm.crictl(&["rmp", "--force", pod.id()])
        });
        done.and(removed.map(drop))
    }

    fn container(&self, pod: &Pod<'n>, name: &str, spec: ContainerSpec) -> Result<Container<'n>, End> {
        let container = self.create(pod, name, spec)?;
        self.arm.once("start a container", || self.arm.crictl(&["start", container.id()]))?;
        Ok(container)
    }

    fn create(&self, pod: &Pod<'n>, name: &str, spec: ContainerSpec) -> Result<Container<'n>, End> {
        let named = json!({ "metadata": { "name": name }, "log_path": format!("{name}.log") });
        let spec = spec.with(named).with(pids(self.pids));
        self.arm.undisturbed("create a container", || pod.try_create(&spec))
    }

    fn exec(&self, container: &str, words: &[&str], want: &str) -> Result<(), End> {
        let words = [&["exec", "--sync", container][..], words].concat();
        self.arm.repeat("exec", || match self.arm.crictl(&words) {
            Ok(said) if said.trim_end() == want => Ok(()),
            Ok(said) => Err(format!("exec says {said:?}, want {want:?}")),
            Err(why) => Err(why),
        })
    }

    fn execs(&self, dice: &mut Dice) -> Result<(), End> {
        let container = self.resident(dice);
        for number in 0..15 + dice.below(15) {
            let word = format!("{}-{number}", self.name);
            self.exec(container, &["echo", &word], &word)?;
        }
        Ok(())
    }

    fn exec_timeout(&self, dice: &mut Dice) -> Result<(), End> {
        let words = ["exec", "--sync", "--timeout", "1", self.resident(dice), "sleep", "10"];
        self.arm.repeat("exec that outlasts its time", || refused(self.arm.crictl(&words), "timeout"))?;
        let words = ["exec", "--sync", self.resident(dice), "sh", "-c", "exit 3"];
        self.arm.repeat("exec that fails", || refused(self.arm.crictl(&words), "exited with 3"))?;
        let words = ["exec", "--sync", self.resident(dice), "nothing-of-that-name"];
        self.arm.repeat("exec of no command", || refused(self.arm.crictl(&words), "not found")).map(drop)
    }

    fn exec_input(&self, dice: &mut Dice) -> Result<(), End> {
        let container = self.resident(dice);
        self.arm
            .repeat("exec with input", || {
                let mut command = self.arm.node.command("sh");
                let config = self.arm.node.dir().join("crictl.yaml");
                let line =
                    format!("seq 20000 | crictl --config {} exec -i {container} md5sum", config.display());
                command.args(["-c", &line]).stdin(Stdio::null());
                let said = self.arm.run(command)?;
                let mut own = self.arm.node.command("sh");
                own.args(["-c", "seq 20000 | md5sum"]);
                let want = self.arm.run(own)?;
                if said.trim() == want.trim() { Ok(()) } else { Err(format!("{said:?}, want {want:?}")) }
            })
            .map(drop)
    }

    fn plain(&self, pod: &Pod<'n>, dice: &mut Dice) -> Result<(), End> {
        let containers =
            (0..1 + dice.below(2)).map(|number| self.container(pod, &format!("c{number}"), idle()));
        for container in containers.collect::<Result<Vec<_>, End>>()? {
            self.exec(container.id(), &["hostname"], &self.name)?;
            self.arm.repeat("logs", || self.arm.crictl(&["logs", container.id()]))?;
            self.arm.repeat("stop a container", || {
                self.arm.crictl(&["stop", "--timeout", "20", container.id()])
            })?;
            self.ends(&container, 0)?;
            self.arm.once("remove a container", || self.arm.crictl(&["rm", container.id()]))?;
        }
        self.stop(pod)
    }

    fn stop(&self, pod: &Pod<'n>) -> Result<(), End> {
        self.arm.repeat("stop a pod", || self.arm.crictl(&["stopp", pod.id()])).map(drop)
    }

    fn output(&self, pod: &Pod<'n>) -> Result<(), End> {
        let script = format!("seq {LINES}; exit 7");
        let container =
            self.container(pod, "main", ContainerSpec::new("main", image::BUSYBOX).shell(&script))?;
        self.ends(&container, 7)?;
        let whole: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
        let said = self.arm.repeat("logs", || self.arm.crictl(&["logs", container.id()]))?;
        // A containerd that is killed takes along what it has read of the output and not yet written to the log.
        if said != whole && self.arm.outage.epoch() != self.since {
            self.arm.tally.interrupted("output");
            return Err(End);
        }
        self.arm.once("output", || match said == whole {
            true => Ok(()),
            false => Err(format!("{} of {} bytes", said.len(), whole.len())),
        })
    }

    fn killed(&self, pod: &Pod<'n>, dice: &mut Dice) -> Result<(), End> {
        for time in 0..2 + dice.below(2) {
            let container = self.container(pod, &format!("t{time}"), idle())?;
            let status = self.inspect(&container)?;
            let pid = status["info"]["pid"].as_u64().expect("a running container has a pid").to_string();
            let mut kill = self.arm.node.command("kill");
            kill.args(["-9", &pid]);
            self.arm.run(kill).expect("kill the first process of a container");
            self.ends(&container, 137)?;
        }
        Ok(())
    }

    fn out_of_memory(&self, pod: &Pod<'n>) -> Result<(), End> {
        let limit = json!({ "linux": { "resources": { "memory_limit_in_bytes": 24 << 20 } } });
        // tail(1) keeps the last line, which never ends.
        let eater = ContainerSpec::new("main", image::BUSYBOX).command(&["tail", "/dev/zero"]).with(limit);
        let container = self.container(pod, "main", eater)?;
        self.ends(&container, 137)?;
        let reason = self.inspect(&container)?["status"]["reason"].clone();
        self.arm.once("reason of a container out of memory", || {
            if reason == "OOMKilled" { Ok(()) } else { Err(format!("{reason}")) }
        })
    }

    fn bad_command(&self, pod: &Pod<'n>) -> Result<(), End> {
        let container =
            self.create(pod, "main", ContainerSpec::new("main", image::BUSYBOX).command(&["/nothing"]))?;
        self.arm
            .once("start a container without a command", || {
                refused(self.arm.crictl(&["start", container.id()]), "/nothing")
            })
            .map(drop)
    }

    fn bad_mount(&self, pod: &Pod<'n>) -> Result<(), End> {
        let mount = json!({ "mounts": [{ "host_path": "/tmp", "container_path": "/bin/busybox/below" }] });
        let container = self.create(pod, "main", idle().with(mount))?;
        self.arm
            .once("start a container with a bad mount", || {
                refused(self.arm.crictl(&["start", container.id()]), "not a directory")
            })
            .map(drop)
    }

    fn shim_killed(&self, pod: &Pod<'n>, dice: &mut Dice) -> Result<(), End> {
        let name = format!("main{}", dice.below(10));
        let container = self.container(pod, &name, idle())?;
        let shims = self.arm.node.signal(Signal::SIGKILL, &["containerd-shim", "-id", pod.id()]);
        assert_eq!(shims, 1, "the pod had one shim");
        let list = ["pods", "--quiet", "--no-trunc", "--state", "notready"];
        let is_seen = holds_soon(|| self.arm.crictl(&list).is_ok_and(|ids| ids.contains(pod.id())));
        self.arm
            .once("see that a shim has died", || if is_seen { Ok(()) } else { Err("pod is ready".into()) })?;
        // containerd says 255 if it finds the task gone, 137 if the shim's `delete` told it.
        let has_ended = holds_soon(|| {
            self.inspect(&container).is_ok_and(|it| it["status"]["state"] == "CONTAINER_EXITED")
        });
        self.arm.once("see that its container has died", || {
            if has_ended { Ok(()) } else { Err("it runs".into()) }
        })
    }

    fn inspect(&self, container: &Container<'n>) -> Result<Value, End> {
        let said = self.arm.repeat("inspect a container", || {
            self.arm.crictl(&["inspect", "--output", "json", container.id()])
        })?;
        Ok(serde_json::from_str(&said).expect("crictl prints JSON"))
    }

    /// It ends soon, with that code.
    fn ends(&self, container: &Container<'n>, code: i64) -> Result<(), End> {
        let mut last = Value::Null;
        let has_ended = {
            let last = std::sync::Mutex::new(&mut last);
            holds_soon(|| {
                let status = self.inspect(container).map_or(Value::Null, |it| it["status"].clone());
                let has_ended = status["state"] == "CONTAINER_EXITED";
                **last.lock().expect("nobody panics with it") = status;
                has_ended
            })
        };
        // CRI leaves out what is zero.
        let got = last["exitCode"].as_i64().unwrap_or_default();
        // A containerd that dies after it has deleted the task and before it has written down how it ended knows no more.
        if got == 255 && self.arm.outage.epoch() != self.since {
            self.arm.tally.interrupted("exit code");
            return Err(End);
        }
        self.arm.once("exit code", || match has_ended && got == code {
            true => Ok(()),
            false => Err(format!("{}: {got}, want {code}", last["state"])),
        })
    }

    fn resident(&self, dice: &mut Dice) -> &str {
        let residents = &self.arm.residents;
        residents[dice.below(residents.len())].container.id()
    }
}

fn idle() -> ContainerSpec {
    ContainerSpec::new("main", image::BUSYBOX)
}

/// CRI's modes: 0 for one namespace of the pod's, 1 for one of each container.
fn pids(mode: usize) -> Value {
    json!({ "linux": { "security_context": { "namespace_options": { "pid": mode } } } })
}
