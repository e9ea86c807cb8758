//! Events to containerd, in the order in which they happened.
//!
//! One task sends one event at a time over ttrpc (`containerd.services.events.ttrpc.v1.Events/Forward`) and repeats it,
//! over a new connection, until containerd has taken it: a later event never overtakes an earlier one, also over a
//! restart of containerd. The queue is bounded; when it is full the oldest event goes, with a line in the log.
//! An event whose answer was lost is sent twice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Of the messages about tasks (containerd's api/events/task.proto).
const PACKAGE: &str = "containerd.events";
/// Events kept while containerd is away; a pod makes some four for each container.
const CAPACITY: usize = 1024;
/// What one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The publisher of this shim's events.
#[derive(Debug)]
pub(crate) struct Events {
    /// `None` without an address: nobody listens.
    queue: Option<Arc<Queue>>,
    namespace: String,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    added: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Envelope>,
    /// One event has left `events` and is not yet taken by containerd.
    sending: bool,
}

impl Events {
    /// Starts the sender, in a task of the current runtime, for containerd's ttrpc socket at `address`: a path or a
    /// `unix://` address. The socket need not exist yet.
    pub(crate) fn start(address: Option<&str>, namespace: &str) -> Events {
        let queue = address.filter(|address| !address.is_empty()).map(|address| {
            let address =
                if address.contains("://") { address.to_owned() } else { format!("unix://{address}") };
            let queue = Arc::new(Queue::default());
            tokio::spawn(run(Arc::clone(&queue), address));
            queue
        });
        Events { queue, namespace: namespace.to_owned() }
    }

    /// Appends an event; containerd gets it later.
    pub(crate) fn publish(&self, topic: &str, event: &impl Message) {
        let Some(queue) = &self.queue else { return };
        let Some(event) = any(PACKAGE, event) else { return };
        queue.push(Envelope {
            timestamp: MessageField::some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        });
    }

    /// Waits until containerd has everything, no longer than `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let Some(queue) = &self.queue else { return };
        if timeout(limit, queue.until_empty()).await.is_err() {
            log::warn!("{} events were not taken in {limit:?}", queue.waiting().events.len() + 1);
        }
    }
}

impl Queue {
    fn push(&self, event: Envelope) {
        let mut waiting = self.waiting();
        if waiting.events.len() == CAPACITY
            && let Some(oldest) = waiting.events.pop_front()
        {
            log::warn!("event {} dropped: {CAPACITY} later ones wait for containerd", oldest.topic);
        }
        waiting.events.push_back(event);
        drop(waiting);
        self.added.notify_one();
    }

    async fn next(&self) -> Envelope {
        loop {
            if let Some(event) = self.pop() {
                return event;
            }
            self.emptied.notify_waiters();
            self.added.notified().await;
        }
    }

    fn pop(&self) -> Option<Envelope> {
        let mut waiting = self.waiting();
        let event = waiting.events.pop_front();
        waiting.sending = event.is_some();
        event
    }

    fn is_empty(&self) -> bool {
        let waiting = self.waiting();
        waiting.events.is_empty() && !waiting.sending
    }

    async fn until_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message as containerd's `typeurl` package packs it: the full name alone, without a host. The package is given, because
/// asking the message for it builds the description of all messages of its file, 0.5 MB that are never freed.
pub(crate) fn any<M: Message>(package: &str, message: &M) -> Option<Any> {
    let type_url = format!("{package}.{}", M::NAME);
    match message.write_to_bytes() {
        Ok(value) => Some(Any { type_url, value, ..Default::default() }),
        // proto3 has no required fields, and a vector takes any number of bytes.
        Err(err) => {
            log::error!("encode {type_url}: {err}");
            None
        }
    }
}

async fn run(queue: Arc<Queue>, address: String) {
    let mut client = None;
    loop {
        let event = queue.next().await;
        let topic = event.topic.clone();
        let request = ForwardRequest { envelope: MessageField::some(event), ..Default::default() };
        let mut pause = PAUSE.0;
        while let Err(err) = forward(&mut client, &address, &request).await {
            client = None;
            if is_final(&err) {
                log::warn!("event {topic} refused: {err}");
                break;
            }
            log::debug!("event {topic} is repeated in {pause:?}: {err}");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<Empty> {
    let client = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    client.forward(ttrpc::context::with_duration(ATTEMPT), request).await
}

/// containerd understood the event and does not want it; any other failure is one of the way to it.
fn is_final(err: &ttrpc::Error) -> bool {
    use ttrpc::Code;
    match err {
        ttrpc::Error::RpcStatus(status) => {
            !matches!(status.code(), Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED | Code::CANCELLED)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::cgroups::metrics::Metrics as MetricsV1;
    use containerd_shim_protos::cgroups_v2::metrics::Metrics as MetricsV2;
    use containerd_shim_protos::events::task::TaskExit;
    use containerd_shim_protos::shim::oci::ProcessDetails;
    use protobuf::MessageFull;

    use super::*;

    fn name<M: MessageFull>(package: &str) -> (String, String) {
        (any(package, &M::new()).unwrap().type_url, M::descriptor().full_name().to_owned())
    }

    #[test]
    fn the_given_packages_are_the_messages_own() {
        let names = [
            name::<TaskExit>(PACKAGE),
            name::<MetricsV1>("io.containerd.cgroups.v1"),
            name::<MetricsV2>("io.containerd.cgroups.v2"),
            name::<ProcessDetails>("containerd.runc.v1"),
        ];
        for (packed, own) in names {
            assert_eq!(packed, own);
        }
    }
}
