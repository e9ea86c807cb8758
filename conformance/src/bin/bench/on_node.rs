//! This program on a node: `nsenter(1)` must not be in the figures, so it runs itself there once, and is asked by lines of text. Each is
//! answered by a line of JSON.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;
use weft_conformance::Node;

/// The side that asks.
pub(crate) struct OnNode {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl OnNode {
    /// Runs the program with the word that tells it what it is there for, the node's directory, and `more`.
    pub(crate) fn start(node: &Node, word: &str, more: &[&str]) -> Self {
        let program = env::current_exe().expect("the path of this program");
        let mut command = node.command(program);
        command.arg(word).arg(node.dir()).args(more);
        Self::run(command)
    }

    /// The same of another program that is asked like this.
    pub(crate) fn run(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("run nsenter(1)");
        let ask = process.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(process.stdout.take().expect("stdout is piped"));
        Self { process, ask, answers }
    }

    pub(crate) fn ask<T: DeserializeOwned>(&mut self, what: &str) -> T {
        self.begin(what);
        self.answer()
    }

    /// Asks; [`OnNode::answer`] waits for the answer.
    pub(crate) fn begin(&mut self, what: &str) {
        writeln!(self.ask, "{what}").expect("ask for a measurement");
    }

    pub(crate) fn answer<T: DeserializeOwned>(&mut self) -> T {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("read what was measured");
        serde_json::from_str(&answer).expect("a list; if there is none, the other side has said why")
    }

    /// Of the program itself, as seen from here: nsenter(1) has it as its one child.
    pub(crate) fn pid(&self) -> u32 {
        let nsenter = self.process.id();
        let children = fs::read_to_string(format!("/proc/{nsenter}/task/{nsenter}/children"));
        children.expect("read the children of a process").trim().parse().expect("one child")
    }

    pub(crate) fn end(mut self) {
        drop(self.ask);
        assert!(self.process.wait().expect("wait for a child").success(), "measured to the end");
    }
}
