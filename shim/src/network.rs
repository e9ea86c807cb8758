//! The service `weft.network.v1.PodNetwork` (proto/network.proto): what the store, the kernel and the programs say about
//! attachments, and attaching and detaching them, over ttrpc.
//!
//! Each call is a function of a file of its own; here they meet the protocol. The `weft` command calls the same functions where
//! nobody serves.

mod answer;
mod attach;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
pub(crate) mod list;
pub(crate) mod node;
pub(crate) mod ports;
pub(crate) mod stats;
pub(crate) mod watch;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::Code;
use ttrpc::r#async::{ServerStreamSender, Service, TtrpcContext};
use weft_ipam::Owner;
use weft_netns::NetNs;

use crate::cni::check;
use crate::config::Config;
use crate::error::{chain, status};
use crate::pod;
use crate::proto::network as api;
use crate::proto::network_ttrpc::{PodNetwork, create_pod_network};
use crate::record::{Record, State};
use crate::state::Ledger;
use answer::attachment;
pub(crate) use error::Error;
use error::{invalid, refused};

/// Where the request names no interface.
const DEFAULT_INTERFACE: &str = "eth0";

/// The service for the pods that `scope` lets through.
struct Server {
    config: Arc<Config>,
    scope: Scope,
    /// The node's network namespace, which a shim leaves for its pod's.
    home: NetNs,
    commits: watch::Hub,
}

/// Whose attachments are answered for.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    /// All of the node.
    Node,
    /// One container's.
    Container(String),
}

impl Scope {
    pub(crate) fn sees(&self, container: &str) -> bool {
        match self {
            Scope::Node => true,
            Scope::Container(own) => own == container,
        }
    }
}

/// The service, ready to be registered with a server. Called while the thread is in the node's network namespace.
///
/// # Errors
/// If that cannot be opened.
pub(crate) fn service(
    config: Arc<Config>,
    scope: Scope,
) -> Result<HashMap<String, Service>, weft_netns::Error> {
    let home = NetNs::current()?;
    Ok(create_pod_network(Arc::new(Server { config, scope, home, commits: watch::Hub::default() })))
}

impl Server {
    fn owner(&self, container: &str, interface: &str) -> ttrpc::Result<Owner> {
        let interface = if interface.is_empty() { DEFAULT_INTERFACE } else { interface };
        Owner::new(container, interface).map_err(|err| status(Code::INVALID_ARGUMENT, &err))
    }

    fn find(&self, container: &str, interface: &str) -> ttrpc::Result<Record> {
        let owner = self.owner(container, interface)?;
        let absent = || {
            let text = format!("interface {} of container {container} is not attached", owner.interface());
            ttrpc::error::get_rpc_status(Code::NOT_FOUND, text)
        };
        if !self.scope.sees(container) {
            return Err(absent());
        }
        Ledger::open(&self.config).and_then(|ledger| ledger.read(&owner)).map_err(refused)?.ok_or_else(absent)
    }

    /// Those that this server answers for.
    fn records(&self) -> ttrpc::Result<Vec<Record>> {
        let records = Ledger::open(&self.config).and_then(|ledger| ledger.records()).map_err(refused)?;
        Ok(records.into_iter().filter(|record| self.scope.sees(&record.container)).collect())
    }

    fn page(&self, filter: &api::Filter, size: u32, token: &str) -> ttrpc::Result<list::Page> {
        list::page(self.records()?, filter, size, token).map_err(|err| status(Code::INVALID_ARGUMENT, &err))
    }

    /// A shim's thread is in its pod's namespace, so what asks the node's links does it on a thread that enters the node's. In `weft
    /// serve`, which never leaves, it is done here.
    fn at_home<T: Send>(&self, work: impl FnOnce() -> T + Send) -> ttrpc::Result<T> {
        match self.scope {
            Scope::Node => Ok(work()),
            Scope::Container(_) => self.home.run(work).map_err(|err| status(Code::INTERNAL, &err)),
        }
    }

    /// containerd attaches and detaches the pod of a shim.
    fn changes_pods(&self) -> ttrpc::Result<()> {
        match self.scope {
            Scope::Node => Ok(()),
            Scope::Container(_) => {
                let text = "a shim attaches and detaches nothing for clients: ask weft serve".to_owned();
                Err(ttrpc::error::get_rpc_status(Code::UNIMPLEMENTED, text))
            }
        }
    }
}

#[async_trait]
impl PodNetwork for Server {
    async fn attach(
        &self,
        _: &TtrpcContext,
        request: api::AttachRequest,
    ) -> ttrpc::Result<api::AttachResponse> {
        self.changes_pods()?;
        let owner = self.owner(&request.container_id, &request.interface)?;
        let leaves = attach::Leaves::of(&request);
        let request = attach::request(&self.config, owner, request).map_err(|err| invalid(&err))?;
        let (config, asked) = (Arc::clone(&self.config), request.clone());
        // Of its own: what a deadline cuts short is the answer, not the deed.
        let done = tokio::spawn(async move { pod::attach(&config, &request).await }).await;
        let record = done.map_err(|err| status(Code::INTERNAL, &err))?.map_err(refused)?;
        attach::as_asked(leaves, &asked, &record).map_err(|err| status(Code::ALREADY_EXISTS, &err))?;
        Ok(api::AttachResponse { attachment: Some(attachment(record)).into(), ..Default::default() })
    }

    async fn detach(
        &self,
        _: &TtrpcContext,
        request: api::DetachRequest,
    ) -> ttrpc::Result<api::DetachResponse> {
        self.changes_pods()?;
        // Checks the names even where all interfaces are meant.
        let owner = self.owner(&request.container_id, &request.interface)?;
        let config = Arc::clone(&self.config);
        let links = if request.namespace_ends { pod::Links::DieWithNamespace } else { pod::Links::Delete };
        let done = tokio::spawn(async move {
            match request.interface.is_empty() {
                true => pod::detach_all(&config, owner.container(), links).await,
                false => pod::detach(&config, &owner, links).await,
            }
        });
        let done = done.await.map_err(|err| status(Code::INTERNAL, &err))?;
        done.map_err(|err| status(Code::INTERNAL, &err))?;
        Ok(api::DetachResponse::new())
    }

    async fn check(&self, _: &TtrpcContext, request: api::CheckRequest) -> ttrpc::Result<api::CheckResponse> {
        let record = self.find(&request.container_id, &request.interface)?;
        let deviations = match record.state {
            State::Attaching => vec!["the attach has not come to its end".to_owned()],
            State::Detaching => vec!["the detach has not come to its end".to_owned()],
            State::Attached => {
                let checked = self.at_home(|| check::whole(&self.config, &record))?;
                checked.err().map(|deviation| chain(&deviation)).into_iter().collect()
            }
        };
        Ok(api::CheckResponse { deviations, ..Default::default() })
    }

    async fn status(
        &self,
        _: &TtrpcContext,
        request: api::StatusRequest,
    ) -> ttrpc::Result<api::StatusResponse> {
        let record = self.find(&request.container_id, &request.interface)?;
        Ok(api::StatusResponse { attachment: Some(attachment(record)).into(), ..Default::default() })
    }

    async fn list(&self, _: &TtrpcContext, request: api::ListRequest) -> ttrpc::Result<api::ListResponse> {
        let page = self.page(&request.filter, request.page_size, &request.page_token)?;
        let attachments = page.records.into_iter().map(attachment).collect();
        Ok(api::ListResponse { attachments, next_page_token: page.next, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let page = self.page(&request.filter, request.page_size, &request.page_token)?;
        let stats = self.at_home(|| stats::of_all(&self.config, &page.records))?;
        let stats = stats.map_err(Error::status)?;
        Ok(api::StatsResponse { stats, next_page_token: page.next, ..Default::default() })
    }

    async fn ports(&self, _: &TtrpcContext, request: api::PortsRequest) -> ttrpc::Result<api::PortsResponse> {
        let records = self.records()?;
        let page = ports::page(&records, &request.filter, request.page_size, &request.page_token);
        let page = page.map_err(|err| status(Code::INVALID_ARGUMENT, &err))?;
        let ports = self.at_home(|| page.tell())?.map_err(refused)?;
        Ok(api::PortsResponse { ports, next_page_token: page.next, ..Default::default() })
    }

    async fn watch(
        &self,
        context: &TtrpcContext,
        request: api::WatchRequest,
        events: ServerStreamSender<api::WatchResponse>,
    ) -> ttrpc::Result<()> {
        watch::tell(&self.config, &self.commits, &self.scope, &request.filter, context.timeout_nano, &events)
            .await
    }

    async fn node_status(
        &self,
        _: &TtrpcContext,
        _: api::NodeStatusRequest,
    ) -> ttrpc::Result<api::NodeStatusResponse> {
        node::status(&self.config).map_err(|err| err.status())
    }
}
