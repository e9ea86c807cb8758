//! The service `containerd.runtime.sandbox.v1.Sandbox`: containerd's words for what [`Sandbox`] does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async;
use containerd_shim_protos::types::platform::Platform;
use protobuf::well_known_types::any::Any;
use ttrpc::r#async::{Service, TtrpcContext};
use ttrpc::{Code, Result};

use super::{Error, Sandbox, update};
use crate::error::{chain, status};
use crate::memory;
use crate::task::{Meter, Tasks};

/// The type of an OCI configuration in JSON.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The type of a cgroup's counters; all fields may be missing.
const METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// The sandbox, its tasks, and what the pod's cgroup has used.
pub(super) struct Server(Arc<Sandbox>, Arc<Tasks>, Meter);

/// The service, ready to be registered with a server.
pub(crate) fn service(sandbox: Arc<Sandbox>, tasks: Arc<Tasks>) -> HashMap<String, Service> {
    let server = Arc::new(Server(sandbox, tasks, Meter::default()));
    let mut services = sandbox_async::create_sandbox(Arc::clone(&server) as _);
    update::add(&mut services, &server);
    services
}

impl Error {
    fn code(&self) -> Code {
        match self {
            Error::Unknown(_) => Code::NOT_FOUND,
            Error::Exists(_) => Code::ALREADY_EXISTS,
            Error::NotRunning(_) => Code::FAILED_PRECONDITION,
            Error::Options(_)
            | Error::Decode(_)
            | Error::NodeSysctl(_)
            | Error::CgroupParent(_)
            | Error::UserMode(_)
            | Error::MapsOfNode
            | Error::MapCount { .. }
            | Error::NoRoot { .. } => Code::INVALID_ARGUMENT,
            _ => Code::INTERNAL,
        }
    }
}

fn reply(err: &Error) -> ttrpc::Error {
    log::warn!("{}", chain(err));
    status(err.code(), err)
}

impl Server {
    pub(super) fn check(&self, id: &str) -> Result<()> {
        if id == self.0.owner.id { Ok(()) } else { Err(reply(&Error::Unknown(id.into()))) }
    }

    /// Runs `work` to its end even if the client goes away meanwhile: ttrpc drops a handler with its connection.
    async fn finish<F>(&self, work: impl FnOnce(Arc<Sandbox>, Arc<Tasks>) -> F) -> Result<()>
    where
        F: Future<Output = std::result::Result<(), Error>> + Send + 'static,
    {
        match tokio::spawn(work(Arc::clone(&self.0), Arc::clone(&self.1))).await {
            Ok(done) => done.map_err(|err| reply(&err)),
            Err(err) => Err(status(Code::INTERNAL, &err)),
        }
    }
}

#[async_trait]
impl sandbox_async::Sandbox for Server {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        memory::give_back_soon();
        self.0.adopt_network(&request.netns_path).await;
        self.0.create(request).map_err(|err| reply(&err))?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let mut instance = self.0.instance();
        let instance = instance.as_mut().filter(|_| self.0.end.borrow().is_none());
        let instance = instance.ok_or_else(|| reply(&Error::NotRunning(request.sandbox_id)))?;
        instance.await_cgroup().map_err(|err| reply(&err))?;
        instance.started = true;
        let facts = instance.facts();
        let spec =
            Any { type_url: SPEC.into(), value: facts.sandbox().to_string().into(), ..Default::default() };
        Ok(StartSandboxResponse {
            pid: facts.reported,
            created_at: Some(instance.created.into()).into(),
            spec: Some(spec).into(),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> Result<PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let platform =
            Platform { os: "linux".into(), architecture: architecture().into(), ..Default::default() };
        Ok(PlatformResponse { platform: Some(platform).into(), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> Result<StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.finish(|sandbox, tasks| async move { sandbox.stop(&tasks).await }).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> Result<WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let mut end = self.0.end.subscribe();
        let end = end.wait_for(Option::is_some).await.map_err(|err| status(Code::INTERNAL, &err))?;
        let (exit_status, at) = end.as_ref().map_or((0, SystemTime::now()), |exit| (exit.status, exit.at));
        Ok(WaitSandboxResponse { exit_status, exited_at: Some(at.into()).into(), ..Default::default() })
    }

    /// For the shim's own sandbox there is always an answer: containerd takes an error for its own failure.
    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> Result<SandboxStatusResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = SandboxStatusResponse { sandbox_id: request.sandbox_id, ..Default::default() };
        response.state = "SANDBOX_NOTREADY".into();
        response.exited_at = self.0.end.borrow().as_ref().map(|exit| exit.at.into()).into();
        let Some(instance) = &*self.0.instance() else {
            return Ok(response);
        };
        response.created_at = Some(instance.created.into()).into();
        let facts = instance.facts();
        if self.0.is_running(instance) {
            response.state = "SANDBOX_READY".into();
            response.pid = facts.reported;
        }
        if request.verbose {
            response.info = HashMap::from([
                ("info".into(), facts.info(&response.state).to_string()),
                ("pid".into(), response.pid.to_string()),
                ("state".into(), response.state.clone()),
            ]);
            let netns = instance.plan.netns.as_ref().map(|path| path.display().to_string());
            response.info.extend(netns.map(|path| ("networkSandboxPath".into(), path)));
        }
        Ok(response)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> Result<PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.finish(|sandbox, tasks| async move { sandbox.shutdown(&tasks).await }).await?;
        Ok(ShutdownSandboxResponse::new())
    }

    /// The counters of the whole pod, empty where there are none to read. Never an error for the shim's own sandbox:
    /// a single one fails containerd's list for all pods, and not even `NOT_FOUND` is forgiven, because the
    /// controller passes the status on unmapped (`plugins/sandbox/controller.go`, `sandbox_stats_list.go` of 2.4.2).
    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> Result<SandboxMetricsResponse> {
        self.check(&request.sandbox_id)?;
        memory::give_back_stack_soon();
        let cgroup = self.0.instance().as_ref().and_then(|instance| Some(instance.cgroup()?.pod.clone()));
        let counted = cgroup.and_then(|pod| {
            let counted = self.2.read_at(&pod);
            counted.inspect_err(|err| log::debug!("{}", chain(err))).ok()
        });
        let none = || Any { type_url: METRICS.into(), ..Default::default() };
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = request.sandbox_id;
        metric.timestamp = Some(SystemTime::now().into()).into();
        metric.data = Some(counted.unwrap_or_else(none)).into();
        Ok(response)
    }
}

/// The architecture in Go's spelling, which image indexes use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
