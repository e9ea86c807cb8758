//! Whoever kills: only processes of the node, by their process ids.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use weft_conformance::{Background, Dice};

use crate::Campaign;

/// At least one of containerd's deaths is early: a round may be short.
const FIRST_OF_CONTAINERD: usize = 20;

/// Kills one process after the other.
pub(crate) struct Killer<'a, 'n> {
    campaign: &'a Campaign<'n>,
    dice: Dice,
    serve: Option<Background>,
    blows: usize,
}

impl<'a, 'n> Killer<'a, 'n> {
    pub(crate) fn start(campaign: &'a Campaign<'n>, round: u64) -> Self {
        campaign.begun.store(0, Ordering::Relaxed);
        // Pods have the sequences below.
        let dice = Dice::new(campaign.seed, (1 << 40) + round);
        Self { campaign, dice, serve: Some(serve(campaign)), blows: 0 }
    }

    pub(crate) fn run(&mut self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            thread::park_timeout(Duration::from_millis(1 + self.dice.below(30) as u64));
            // Two kills for three pods, beside those that a pod's maker does: on a busy machine nothing would come to its end else.
            if self.blows >= self.campaign.begun.load(Ordering::Relaxed) * 2 / 3 {
                continue;
            }
            let landed = match self.dice.below(200) {
                _ if self.blows == FIRST_OF_CONTAINERD => self.containerd(),
                0..110 => self.plugin(),
                110..155 => self.shim(),
                155..197 => self.serve(),
                _ => self.containerd(),
            };
            self.blows += usize::from(landed);
        }
    }

    fn plugin(&mut self) -> bool {
        let plugin = self.campaign.node.dir().join("cni/bin/weft");
        let plugin = plugin.to_string_lossy();
        let victims = self.campaign.node.processes().into_iter().filter(|(_, line)| *line == plugin);
        let victims: Vec<_> = victims.map(|(pid, _)| pid).collect();
        let landed =
            !victims.is_empty() && kill(victims[self.dice.below(victims.len())], Signal::SIGKILL).is_ok();
        self.campaign.tally.add("kills of weft-cni by the killer", usize::from(landed));
        landed
    }

    /// A pod whose shim is killed is no pod any more: containerd takes it down, whether or not its client has asked.
    fn shim(&mut self) -> bool {
        let shims = self.campaign.node.processes().into_iter();
        let shims = shims.filter(|(_, line)| !is_delete_of_container(line));
        let shims = shims.filter_map(|(pid, line)| Some((pid, id_of(&line)?.to_owned())));
        let victims: Vec<_> = shims.filter(|(_, id)| !self.campaign.register.is_resident(id)).collect();
        if victims.is_empty() {
            return false;
        }
        let (pid, id) = &victims[self.dice.below(victims.len())];
        self.campaign.register.doom(id);
        let landed = kill(*pid, Signal::SIGKILL).is_ok();
        self.campaign.tally.add("kills of shims", usize::from(landed));
        landed
    }

    fn serve(&mut self) -> bool {
        if let Some(old) = self.serve.take() {
            old.end(Signal::SIGKILL);
        }
        self.serve = Some(serve(self.campaign));
        self.campaign.tally.add("kills of weft serve", 1);
        true
    }

    fn containerd(&self) -> bool {
        self.campaign.restart_containerd();
        self.campaign.tally.add("kills of containerd", 1);
        true
    }
}

fn serve(campaign: &Campaign<'_>) -> Background {
    Background::start(campaign.node.command("weft").arg("serve").stderr(Stdio::null()))
}

/// containerd runs it once for a container whose shim has died, and forgets the container whatever comes of it: what the OCI runtime
/// keeps (its state, the container's cgroups) stays if it is killed. That of a sandbox is run again.
fn is_delete_of_container(line: &str) -> bool {
    line.contains("/io.containerd.runtime.v2.task/") && line.ends_with(" delete")
}

/// The sandbox of a shim's process; none for other programs.
fn id_of(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    let program = words.next()?;
    (program.contains("containerd-shim-weft-v1")).then_some(())?;
    words.skip_while(|word| !["-id", "--id"].contains(word)).nth(1)
}
