//! Host ports of SCTP, by packets: kernels need not have SCTP sockets for their connection tracking to know the protocol.

use std::time::Duration;

use serde_json::json;

use super::ports::{mapping, with};
use crate::sctp::{Ear, Heard, INIT, INIT_ACK, send};
use crate::site::{BEYOND, HOST, Site};
use crate::space::Space;
use crate::traffic::at;

const PATIENCE: Duration = Duration::from_secs(2);

/// An INIT from outside arrives translated and whole, and so does its answer.
fn association(site: &Site, protocol: &str) {
    let pod = site.add(&with(json!([mapping(protocol, 9999, 38412, "")])));
    for family in [0, 1] {
        let (client, published) = (at(BEYOND[family], 5000), at(HOST[family], 9999));
        let server = at(&pod.addresses()[family], 38412);
        let exchange = |from: &Space, said: (_, _, u8), to: &Space, wanted: Heard| {
            let ear = to.run(Ear::open);
            from.run(|| send(said.0, said.1, said.2));
            assert_eq!(ear.hears(wanted.to, PATIENCE), Some(wanted));
        };
        let init = Heard { from: client, to: server, chunk: INIT, intact: true };
        exchange(&site.outside, (client, published, INIT), &pod.space, init);
        let answer = Heard { from: published, to: client, chunk: INIT_ACK, intact: true };
        exchange(&pod.space, (server, client, INIT_ACK), &site.outside, answer);
    }
    let ear = pod.space.run(Ear::open);
    site.outside.run(|| send(at(BEYOND[0], 5001), at(HOST[0], 9998), INIT));
    assert_eq!(ear.hears(at(&pod.address(), 38412), PATIENCE / 4), None, "a port that is not published");
    pod.del();
}

pub(crate) fn from_outside(site: &Site) {
    association(site, "sctp");
}

/// Kubernetes writes protocols in capitals.
pub(crate) fn in_capitals(site: &Site) {
    association(site, "SCTP");
}
