//! Where answers come from: `weft serve` if it answers, else the store and the pins. Both ways end in the same functions of
//! [`crate::network`], so the answers are the same.

use std::time::Duration;

use ttrpc::asynchronous::Client;
use ttrpc::context::{Context, with_duration};

use super::Error;
use crate::config::Config;
use crate::network::list::matches;
use crate::network::{self, stats};
use crate::proto::network as api;
use crate::proto::network_ttrpc::PodNetworkClient;
use crate::record::Record;
use crate::state::Ledger;

/// How long the server may take for one answer; the store is read after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// The node's network, by one way or the other.
pub(super) struct Node<'a> {
    config: &'a Config,
    server: Option<PodNetworkClient>,
}

fn soon() -> Context {
    with_duration(PATIENCE)
}

impl Node<'_> {
    /// A server that does not answer is none.
    pub(super) async fn reach(config: &Config) -> Node<'_> {
        let address = format!("unix://{}", config.run_dir.join("weft.sock").display());
        let server = Client::connect(&address).await.ok().map(PodNetworkClient::new);
        Node { config, server }
    }

    /// The records that the filter lets through, in the order of container and interface.
    pub(super) async fn records(&self, filter: &api::Filter) -> Result<Vec<Record>, Error> {
        if let Some(server) = &self.server
            && let Some(records) = served_records(server, filter).await
        {
            return Ok(records);
        }
        let records = Ledger::open(self.config)?.records()?;
        Ok(records.into_iter().filter(|record| matches(filter, record)).collect())
    }

    /// The ports that lead to pods, in the order of their numbers.
    pub(super) async fn ports(&self) -> Result<Vec<api::Port>, Error> {
        if let Some(server) = &self.server
            && let Some(ports) = served_ports(server).await
        {
            return Ok(ports);
        }
        let records = Ledger::open(self.config)?.records()?;
        let (mut ports, mut token) = (Vec::new(), String::new());
        loop {
            let page = network::ports::page(&records, &api::Filter::new(), 0, &token)?;
            ports.extend(page.tell()?);
            if page.next.is_empty() {
                return Ok(ports);
            }
            token = page.next;
        }
    }

    /// The node as a whole.
    pub(super) async fn status(&self) -> Result<api::NodeStatusResponse, Error> {
        if let Some(server) = &self.server
            && let Ok(answer) = server.node_status(soon(), &api::NodeStatusRequest::new()).await
        {
            return Ok(answer);
        }
        Ok(network::node::status(self.config)?)
    }

    /// What went over the links of one container's attachments, in the order of its interfaces.
    pub(super) async fn stats(&self, records: &[Record]) -> Result<Vec<api::Stats>, Error> {
        if let Some(server) = &self.server
            && let Some(first) = records.first()
        {
            let filter = api::Filter { container_id: first.container.clone(), ..Default::default() };
            let request = api::StatsRequest { filter: Some(filter).into(), ..Default::default() };
            if let Ok(answer) = server.stats(soon(), &request).await {
                return Ok(answer.stats);
            }
        }
        Ok(stats::of_all(self.config, records)?)
    }
}

/// `None` if the server does not answer, or in a way that is not understood: what is wrong with the store, the store will say.
async fn served_records(server: &PodNetworkClient, filter: &api::Filter) -> Option<Vec<Record>> {
    let mut request = api::ListRequest { filter: Some(filter.clone()).into(), ..Default::default() };
    let mut records = Vec::new();
    loop {
        let page = server.list(soon(), &request).await.ok()?;
        for attachment in page.attachments {
            let record: Record = serde_json::from_str(&attachment.record).ok()?;
            records.push(record);
        }
        if page.next_page_token.is_empty() {
            return Some(records);
        }
        request.page_token = page.next_page_token;
    }
}

/// `None` as of [`served_records`], and if the server is older than the call.
async fn served_ports(server: &PodNetworkClient) -> Option<Vec<api::Port>> {
    let mut request = api::PortsRequest::new();
    let mut ports = Vec::new();
    loop {
        let page = server.ports(soon(), &request).await.ok()?;
        ports.extend(page.ports);
        if page.next_page_token.is_empty() {
            return Some(ports);
        }
        request.page_token = page.next_page_token;
    }
}
