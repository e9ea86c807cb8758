//! The CNI plugin: ADD, DEL, CHECK, STATUS, VERSION and GC over [`crate::pod`], for the versions of the
//! specification in [`conf::VERSIONS`].
//!
//! One call is one process: environment and standard input in, a result or an error object on standard output.
//! Nothing else is ever printed there, and nothing waits for a daemon.

pub(crate) mod bandwidth;
pub(crate) mod check;
mod conf;
mod env;
mod error;
mod foreign;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod result;

use std::io::{Read, Write};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use weft_ipam::{Family, Owner};

use crate::config::Config;
use crate::journal;
use crate::pod::{self, Network};
use crate::reconcile;
use crate::record::Record;
use crate::state::Ledger;
use crate::tally;
use conf::Conf;
use env::{Command, Env};

pub(crate) use conf::network;
pub(crate) use error::Failure;

/// The line for `--version`, by which `weft doctor` knows whose plugin it is.
#[must_use]
pub fn version() -> &'static str {
    concat!("weft-cni ", env!("CARGO_PKG_VERSION"))
}

/// Reads one plugin's part of a network configuration as an ADD would; the network that it describes.
pub(crate) fn validate(config: &Config, text: &[u8]) -> Result<Network, Failure> {
    Conf::parse(text)?.network(config)
}

/// Answers the call that the environment and `input` describe; the bytes go to `output`. `true` is success.
pub fn run(mut input: impl Read, mut output: impl Write) -> bool {
    let mut text = Vec::new();
    let answer = input.read_to_end(&mut text).map_err(Failure::Input).and_then(|_| answer(&text));
    let (json, ok) = match answer {
        Ok(json) => (json, true),
        Err(failure) => (Some(error::object(&conf::asked_version(&text), &failure)), false),
    };
    let Some(json) = json else { return ok };
    // An answer that nobody can read is a failure: the runtime will take it for one, and so must the exit code.
    writeln!(output, "{json}").is_ok() && output.flush().is_ok() && ok
}

fn answer(text: &[u8]) -> Result<Option<serde_json::Value>, Failure> {
    match Command::from_env()? {
        Command::Version => Ok(Some(result::versions(conf::asked_version(text)))),
        command => perform(command, Conf::parse(text)?),
    }
}

fn perform(command: Command, conf: Conf) -> Result<Option<serde_json::Value>, Failure> {
    let started = Instant::now();
    let config = Config::load().map_err(Failure::Config)?;
    journal::open_inherited();
    let answer = call(&config, command, conf);
    if let Some(operation) = command.operation() {
        // A call is not worth less because it could not be counted, and there is nobody to tell.
        drop(tally::count(&config.run_dir, operation, started.elapsed(), answer.is_ok()));
    }
    answer
}

fn call(config: &Config, command: Command, conf: Conf) -> Result<Option<serde_json::Value>, Failure> {
    match command {
        Command::Add => wait(add(config, conf)).map(Some),
        Command::Del => wait(del(config)).map(|()| None),
        Command::Check => check(config, conf).map(|()| None),
        Command::Status => wait(status(config, &conf)).map(|()| None),
        Command::Gc => gc(config, &conf).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// Only somebody else's [turn](crate::turn) is ever waited for: unless one has to be, no event loop is made.
fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut work = pin!(work);
    if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return done;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Failure::Runtime)?;
    runtime.block_on(work)
}

async fn add(config: &Config, conf: Conf) -> Result<serde_json::Value, Failure> {
    let request = request(config, &conf, &Env::read(Command::Add)?)?;
    let record = pod::attach(config, &request).await?;
    Ok(result::of(&record, &conf))
}

/// What ADD asks for.
fn request(config: &Config, conf: &Conf, env: &Env) -> Result<pod::Request, Failure> {
    let netns =
        env.netns.clone().ok_or(Failure::Variable { name: "CNI_NETNS", problem: "is missing".into() })?;
    Ok(pod::Request {
        owner: env.owner()?,
        netns,
        network: conf.network(config)?,
        asked: conf.asked(env)?,
        bandwidth: conf.bandwidth()?,
        pod: env.pod(),
        ports: conf.ports()?,
    })
}

/// Works from the record alone: the configuration may have changed or be empty, the namespace may be gone.
async fn del(config: &Config) -> Result<(), Failure> {
    let env = Env::read(Command::Del)?;
    Ok(pod::detach(config, &env.owner()?, env.links()).await.or_else(pod::DetachError::unless_kept)?)
}

fn check(config: &Config, conf: Conf) -> Result<(), Failure> {
    let env = Env::read(Command::Check)?;
    let owner = env.owner()?;
    if conf.prev_result.is_none() {
        return Err(Failure::Conf {
            field: "prevResult",
            problem: "is missing, and CHECK compares with it".into(),
        });
    }
    let record = Ledger::open(config)?.read(&owner)?.filter(Record::is_attached);
    let record = record.ok_or_else(|| Failure::Unknown { owner: owner_name(&owner) })?;
    check::same_as_reported(&record, conf.prev_result.as_ref())?;
    Ok(check::whole(config, &record)?)
}

fn owner_name(owner: &Owner) -> String {
    format!("{} {}", owner.container(), owner.interface())
}

/// Ready if an ADD would find the store and a free address of each family.
async fn status(config: &Config, conf: &Conf) -> Result<(), Failure> {
    let network = conf.network(config)?;
    let ledger = Ledger::open(config)?;
    // Full of the dead? ADD would find out, but a node that is not ready gets no pods.
    if full_family(&ledger, &network)?.is_some() {
        reconcile::make_room(config, &network).await;
    }
    match full_family(&ledger, &network)? {
        Some(family) => Err(Failure::Full { network: network.name, family }),
        None => Ok(()),
    }
}

/// The family of ranges that are all leased.
fn full_family(ledger: &Ledger, network: &pod::Network) -> Result<Option<Family>, Failure> {
    let stocks = ledger.view()?.stock(&network.ranges).map_err(|source| ledger.failed(source))?;
    Ok(stocks.iter().find(|stock| stock.used >= stock.total).map(|stock| stock.family))
}

/// Detaches everything of this network that the runtime no longer knows, and removes what has no record.
fn gc(config: &Config, conf: &Conf) -> Result<(), Failure> {
    let valid = conf.valid_attachments.as_ref().ok_or(Failure::Conf {
        field: "cni.dev/valid-attachments",
        problem: "is missing, and without it every attachment would be removed".into(),
    })?;
    let known = |owner: &Owner| {
        let same = |valid: &conf::Attachment| {
            valid.container_id == owner.container() && valid.ifname == owner.interface()
        };
        valid.iter().any(same)
    };
    let left = reconcile::collect(config, &conf.name, known)?.left();
    if left.is_empty() { Ok(()) } else { Err(Failure::Left { left }) }
}
