//! The service `weft.network.v1.PodNetwork`: what the store says about attachments, over ttrpc.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};
use weft_ipam::Owner;

use crate::config::Config;
use crate::error::status;
use crate::pod;
use crate::proto::network as api;
use crate::proto::network_ttrpc::{PodNetwork, create_pod_network};
use crate::record::{self, DataPath, Record, State};
use crate::state::Ledger;

/// Where the request names no interface.
const DEFAULT_INTERFACE: &str = "eth0";

/// The service for the pods that `scope` lets through.
struct Server {
    config: Arc<Config>,
    scope: Scope,
}

/// Whose attachments are answered for.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    /// All of the node.
    Node,
    /// One container's.
    Container(String),
}

/// The service, ready to be registered with a server.
pub(crate) fn service(config: Arc<Config>, scope: Scope) -> HashMap<String, Service> {
    create_pod_network(Arc::new(Server { config, scope }))
}

impl Server {
    fn sees(&self, container: &str) -> bool {
        match &self.scope {
            Scope::Node => true,
            Scope::Container(own) => own == container,
        }
    }

    fn find(&self, container: &str, interface: &str) -> ttrpc::Result<Record> {
        let owner = Owner::new(container, interface).map_err(|err| status(Code::INVALID_ARGUMENT, &err))?;
        let absent = || {
            let text = format!("interface {interface} of container {container} is not attached");
            ttrpc::error::get_rpc_status(Code::NOT_FOUND, text)
        };
        if !self.sees(container) {
            return Err(absent());
        }
        Ledger::open(&self.config).and_then(|ledger| ledger.read(&owner)).map_err(failed)?.ok_or_else(absent)
    }
}

fn failed(err: pod::Error) -> ttrpc::Error {
    let newer = matches!(
        err,
        pod::Error::Record(record::Error::Newer { .. })
            | pod::Error::Store { source: weft_ipam::Error::NewerFormat { .. }, .. }
    );
    status(if newer { Code::FAILED_PRECONDITION } else { Code::INTERNAL }, &err)
}

#[async_trait]
impl PodNetwork for Server {
    async fn status(
        &self,
        _: &TtrpcContext,
        request: api::StatusRequest,
    ) -> ttrpc::Result<api::StatusResponse> {
        let interface = if request.interface.is_empty() { DEFAULT_INTERFACE } else { &request.interface };
        let record = self.find(&request.container_id, interface)?;
        let attachment = Some(attachment(record)).into();
        Ok(api::StatusResponse { attachment, ..Default::default() })
    }

    async fn list(&self, _: &TtrpcContext, _: api::ListRequest) -> ttrpc::Result<api::ListResponse> {
        let records = Ledger::open(&self.config).and_then(|ledger| ledger.records()).map_err(failed)?;
        let attachments =
            records.into_iter().filter(|record| self.sees(&record.container)).map(attachment).collect();
        Ok(api::ListResponse { attachments, ..Default::default() })
    }
}

fn attachment(record: Record) -> api::Attachment {
    api::Attachment {
        container_id: record.container,
        interface: record.interface,
        network: record.network,
        state: match record.state {
            State::Attaching => api::State::ATTACHING,
            State::Attached => api::State::ATTACHED,
            State::Detaching => api::State::DETACHING,
        }
        .into(),
        addresses: record.addresses.iter().map(ToString::to_string).collect(),
        netns_path: record.netns.path.to_string_lossy().into_owned(),
        netns_device: record.netns.dev,
        netns_inode: record.netns.inode,
        host_link: record.host_link,
        host_index: record.host_index,
        mac: record.mac,
        host_mac: record.host_mac,
        mtu: record.mtu,
        data_path: match record.data_path {
            DataPath::Redirect => api::DataPath::REDIRECT,
            DataPath::Routing => api::DataPath::ROUTING,
        }
        .into(),
        data_path_reason: record.data_path_reason.unwrap_or_default(),
        pod_namespace: record.pod.namespace,
        pod_name: record.pod.name,
        pod_uid: record.pod.uid,
        ..Default::default()
    }
}
