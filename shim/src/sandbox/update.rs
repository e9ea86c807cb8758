//! `UpdateSandbox`, for which containerd-shim-protos 0.12 has messages and no method.
//!
//! containerd 2.4 tells with it that the kubelet resizes a pod (`UpdatePodSandboxResources` of the CRI). The kubelet itself
//! sets the limits of the pod's cgroup, in which the sandbox runs, and containerd's controller of pause containers does
//! nothing either (internal/cri/server/podsandbox/controller.go): there is nothing to change here.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{UpdateSandboxRequest, UpdateSandboxResponse};
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Request, Response, Result};

use super::service::Server;

struct UpdateSandboxMethod {
    service: Arc<Server>,
}

/// Adds the method to the service that `server` has.
pub(super) fn add(services: &mut HashMap<String, Service>, server: &Arc<Server>) {
    for service in services.values_mut() {
        let method = UpdateSandboxMethod { service: Arc::clone(server) };
        service.methods.insert("UpdateSandbox".to_owned(), Box::new(method));
    }
}

#[async_trait]
impl MethodHandler for UpdateSandboxMethod {
    async fn handler(&self, ctx: TtrpcContext, req: Request) -> Result<Response> {
        ttrpc::async_request_handler!(self, ctx, req, UpdateSandboxRequest, update_sandbox);
    }
}

impl Server {
    async fn update_sandbox(
        &self,
        _: &TtrpcContext,
        request: UpdateSandboxRequest,
    ) -> Result<UpdateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        Ok(UpdateSandboxResponse::new())
    }
}
