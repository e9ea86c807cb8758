//! The table: what is tried, and where it is known to be missing, and why.

use crate::behaviours::{addresses, bandwidth, chained, lifecycle, pods, ports, results, sctp, traffic};
use crate::site::Site;

/// Whether a subject has a behaviour.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expect {
    Has,
    /// Must fail there; why it is so, and a part of what the failure says.
    Lacks(&'static str, &'static str),
}

pub(crate) struct Row {
    pub(crate) topic: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Site),
    pub(crate) reference: Expect,
    pub(crate) weft: Expect,
}

const fn both(topic: &'static str, what: &'static str, run: fn(&Site)) -> Row {
    Row { topic, what, run, reference: Expect::Has, weft: Expect::Has }
}

/// weft alone has it.
const fn ours(topic: &'static str, what: &'static str, run: fn(&Site), lacks: [&'static str; 2]) -> Row {
    Row { topic, what, run, reference: Expect::Lacks(lacks[0], lacks[1]), weft: Expect::Has }
}

/// Neither has it, and the failures say the same.
const fn neither(
    topic: &'static str,
    what: &'static str,
    run: fn(&Site),
    why: [&'static str; 2],
    sign: &'static str,
) -> Row {
    Row { topic, what, run, reference: Expect::Lacks(why[0], sign), weft: Expect::Lacks(why[1], sign) }
}

const RESULT: &str = "Result";
const ADDRESSES: &str = "Addresses";
const CALLS: &str = "Calls";
const TRAFFIC: &str = "Traffic";
const PORTS: &str = "Host ports";
const BANDWIDTH: &str = "Bandwidth";
const CHAIN: &str = "Plugins behind";

pub(crate) const ROWS: &[Row] = &[
    both(RESULT, "ADD of specification 0.1.0 answers in its form", results::of_0_1_0),
    both(RESULT, "ADD of specification 0.2.0 answers in its form", results::of_0_2_0),
    both(RESULT, "ADD of specification 0.3.0 answers in its form", results::of_0_3_0),
    both(RESULT, "ADD of specification 0.3.1 answers in its form", results::of_0_3_1),
    both(RESULT, "ADD of specification 0.4.0 answers in its form", results::of_0_4_0),
    both(RESULT, "ADD of specification 1.0.0 answers in its form", results::of_1_0_0),
    both(RESULT, "ADD of specification 1.1.0 answers in its form", results::of_1_1_0),
    both(RESULT, "VERSION names all of them", results::versions),
    both(RESULT, "an unknown version is error 1", results::an_unknown_version_is_error_1),
    both(RESULT, "the default routes are told", results::routes_are_told),
    both(RESULT, "`dns` of the configuration is told", results::dns_of_the_configuration),
    both(RESULT, "`mtu`: the pod's link has it, and a packet of that size passes", results::mtu),
    ours(
        RESULT,
        "without `mtu`, the uplink's",
        results::mtu_of_the_uplink,
        ["1500, whatever the uplink has", "1500"],
    ),
    both(
        RESULT,
        "addresses are usable at once, no duplicate address detection",
        results::addresses_are_usable_at_once,
    ),
    both(RESULT, "IPv4 alone, IPv6 alone", results::one_family_alone),
    both(RESULT, "a second interface in a network of its own", results::a_second_interface),
    both(ADDRESSES, "a range's start and end", addresses::a_start_and_an_end),
    both(ADDRESSES, "a range's gateway is no pod's address", addresses::the_gateway_is_never_a_pods),
    ours(
        ADDRESSES,
        "a second range, of another subnet, serves when the first is full",
        addresses::a_second_range_of_a_set,
        ["the bridge takes one gateway of a family", "already has an IP address"],
    ),
    both(
        ADDRESSES,
        "two sets of one family: two addresses on one interface",
        addresses::two_sets_of_a_family,
    ),
    both(ADDRESSES, "capability `ips`", addresses::the_capability_ips),
    both(ADDRESSES, "capability `ipRanges`", addresses::the_capability_ip_ranges),
    both(ADDRESSES, "`args.cni.ips`", addresses::ips_of_args_cni),
    both(ADDRESSES, "`IP` in `CNI_ARGS`", addresses::ip_of_cni_args),
    both(
        ADDRESSES,
        "an address that another pod has is refused",
        addresses::an_address_of_another_is_refused,
    ),
    both(
        ADDRESSES,
        "an address outside the ranges is refused",
        addresses::an_address_outside_the_ranges_is_refused,
    ),
    both(ADDRESSES, "capability `mac`", addresses::the_capability_mac),
    both(ADDRESSES, "`args.cni.mac`", addresses::mac_of_args_cni),
    both(ADDRESSES, "`MAC` in `CNI_ARGS`", addresses::mac_of_cni_args),
    both(
        ADDRESSES,
        "a full range is an error that leaves nothing after its DEL",
        addresses::a_full_range_is_an_error_that_leaves_nothing,
    ),
    both(ADDRESSES, "a freed address is not the next pod's", addresses::a_freed_address_is_not_the_next),
    ours(
        ADDRESSES,
        "the address of a pod that died without DEL is used again when the range is full",
        addresses::a_dead_pods_address_comes_back,
        ["it stays taken until somebody deletes a file", "no IP addresses available"],
    ),
    both(
        ADDRESSES,
        "`routes`: what they name is reached, and nothing else",
        addresses::routes_of_the_configuration,
    ),
    both(ADDRESSES, "`routes` with a default route", addresses::a_default_route_of_the_configuration),
    ours(
        CALLS,
        "ADD again answers the same",
        lifecycle::add_again_answers_the_same,
        ["an error, and the pod's state is lost", "already exists"],
    ),
    both(
        CALLS,
        "DEL takes the interface; repeated, and for an unknown pod, it succeeds",
        lifecycle::del_takes_the_interface_and_is_repeatable,
    ),
    both(CALLS, "DEL without a namespace frees the address", lifecycle::del_without_a_namespace),
    both(
        CALLS,
        "a failed ADD leaves nothing after its DEL",
        lifecycle::a_failed_add_is_cleaned_up_by_its_del,
    ),
    both(CALLS, "CHECK finds a missing address", lifecycle::check_finds_a_missing_address),
    both(CALLS, "CHECK finds a missing route", lifecycle::check_finds_a_missing_route),
    both(CALLS, "CHECK finds a missing link", lifecycle::check_finds_a_missing_link),
    both(CALLS, "CHECK finds another MAC address", lifecycle::check_finds_another_mac),
    both(CALLS, "CHECK finds a link that is down", lifecycle::check_finds_a_link_that_is_down),
    both(CALLS, "CHECK finds missing host ports", lifecycle::check_finds_missing_host_ports),
    ours(
        CALLS,
        "CHECK finds a missing bandwidth limit",
        lifecycle::check_finds_a_missing_limit,
        ["a link without a limit is as good as one with it", "CHECK does not see it"],
    ),
    ours(
        CALLS,
        "GC frees what the runtime does not know",
        lifecycle::gc_frees_what_the_runtime_forgot,
        ["no plugin of the chain has it", "only lo"],
    ),
    both(CALLS, "STATUS of a good configuration", lifecycle::status_of_a_good_configuration),
    ours(
        CALLS,
        "STATUS of a full range is error 50",
        lifecycle::status_of_a_full_range,
        ["host-local has no STATUS", "`Ok` value"],
    ),
    both(CALLS, "eight ADDs at once get eight addresses", lifecycle::eight_at_once),
    both(
        TRAFFIC,
        "host, pods and the outside reach each other and themselves, IPv4 and IPv6",
        traffic::everybody_reaches_everybody,
    ),
    both(TRAFFIC, "`ipMasq`: the outside sees the node", traffic::masquerade_hides_the_pod),
    both(TRAFFIC, "without `ipMasq`: the outside sees the pod", traffic::without_masquerade_the_pod_is_seen),
    both(TRAFFIC, "pods of a network see each other's addresses", traffic::pods_see_each_other_as_they_are),
    ours(
        TRAFFIC,
        "pods of two networks of the node see each other's addresses",
        traffic::pods_of_two_networks_see_each_other_as_they_are,
        ["masqueraded: only the pod's own subnet is left out", "Some(10.88.9.1)"],
    ),
    both(
        TRAFFIC,
        "`macspoofchk`: frames of another MAC address are dropped",
        traffic::a_spoofed_mac_is_dropped,
    ),
    ours(
        TRAFFIC,
        "packets of another IP address than the pod's are dropped",
        traffic::a_spoofed_address_is_dropped,
        ["no check of IP addresses", "the outside has seen it"],
    ),
    both(
        TRAFFIC,
        "DEL leaves the node's links, routes and rules as they were",
        traffic::nothing_of_the_node_is_changed_by_del,
    ),
    both(PORTS, "TCP from outside, with the client's address", ports::tcp_from_outside),
    both(PORTS, "UDP from outside, with the client's address", ports::udp_from_outside),
    both(PORTS, "SCTP from outside: INIT and INIT ACK, translated and whole", sctp::from_outside),
    ours(
        PORTS,
        "SCTP in capitals, as Kubernetes writes protocols",
        sctp::in_capitals,
        ["the word goes into the rule as it is", "syntax error"],
    ),
    both(PORTS, "from the host at its own address", ports::from_the_host),
    both(PORTS, "from 127.0.0.1", ports::from_localhost),
    both(PORTS, "from the rest of 127.0.0.0/8", ports::from_another_localhost),
    both(PORTS, "from another pod", ports::from_another_pod),
    both(PORTS, "from the pod itself (hairpin)", ports::hairpin),
    both(PORTS, "`hostIP`: at that address only, for two pods the same port", ports::at_one_address),
    both(PORTS, "`hostIP` is not localhost", ports::at_one_address_is_not_at_localhost),
    both(PORTS, "`hostIP` 0.0.0.0 or ::, every address of one family", ports::at_any_address_of_a_family),
    both(
        PORTS,
        "datagrams that came before the port was published do not stick",
        ports::datagrams_sent_before_do_not_stick,
    ),
    both(PORTS, "datagrams of one client follow the port to the next pod", ports::datagrams_follow_the_port),
    both(PORTS, "other ports stay the node's, and all after DEL", ports::other_ports_stay_the_nodes),
    ours(
        PORTS,
        "a taken port is refused",
        ports::a_taken_port_is_refused,
        ["the older rule wins in silence", "two pods have one port"],
    ),
    ours(
        PORTS,
        "flushed rules come back with the next pod",
        ports::flushed_rules_come_back,
        ["only the new pod's", "from.is_some()"],
    ),
    both(BANDWIDTH, "to the pod", bandwidth::ingress),
    both(BANDWIDTH, "from the pod", bandwidth::egress),
    both(BANDWIDTH, "between two pods of the node", bandwidth::between_pods),
    both(BANDWIDTH, "a burst goes at once", bandwidth::burst),
    both(BANDWIDTH, "limits in the configuration go before the runtime's", bandwidth::of_the_configuration),
    both(BANDWIDTH, "a rate without a burst is refused", bandwidth::a_rate_without_burst_is_refused),
    ours(
        BANDWIDTH,
        "Kubernetes' annotations, which have no burst, are felt at once",
        bandwidth::without_a_burst,
        ["the largest number is taken for a burst: 512 MB go first", "faster than its limit"],
    ),
    both(
        CHAIN,
        "they get the result, and CHECK of the whole chain succeeds",
        chained::a_plugin_behind_gets_the_result,
    ),
    both(CHAIN, "`tuning`: sysctls", chained::tuning_sysctl),
    both(CHAIN, "`tuning`: MTU", chained::tuning_mtu),
    both(CHAIN, "`tuning`: promisc, allmulti, txQLen", chained::tuning_flags),
    both(
        CHAIN,
        "`tuning` under containerd: a MAC address that the first plugin has not heard of",
        pods::tuning_mac,
    ),
    both(
        CHAIN,
        "`tuning` under containerd: the MAC address that the first plugin has set, again, by the capability `mac`",
        pods::tuning_mac_by_capability,
    ),
    both(CHAIN, "`sbr`: routing by source", chained::sbr),
    both(CHAIN, "`portmap` by iptables", chained::portmap_by_iptables),
    both(CHAIN, "`portmap` by nftables", chained::portmap_by_nftables),
    both(
        CHAIN,
        "`portmap` with `conditionsV4` and `conditionsV6`, by iptables and nftables: who may come does, nobody else",
        chained::portmap_conditions,
    ),
    both(
        CHAIN,
        "`firewall`: pods of a node whose FORWARD policy is DROP",
        chained::firewall_opens_a_closed_node,
    ),
    both(
        CHAIN,
        "redirects of a mesh in the pod's namespace (istio-cni): both directions by a proxy",
        chained::a_mesh_proxy_in_the_pod,
    ),
    neither(
        CHAIN,
        "without `firewall`, the outside on a node whose FORWARD policy is DROP",
        chained::a_closed_node_by_itself,
        [
            "what the administrator drops is dropped",
            "what the administrator drops is dropped; `weft doctor` says so",
        ],
        "reached.is_some()",
    ),
    ours(
        CHAIN,
        "without `firewall`, pods of such a node reach each other",
        chained::pods_of_a_closed_node,
        ["bridged packets pass FORWARD too", "reached.is_some()"],
    ),
    neither(
        CHAIN,
        "`firewall` against a drop in a foreign chain of nftables",
        chained::firewall_against_nftables,
        ["a drop is final in nftables", "a drop is final in nftables; `weft doctor` says so"],
        "reached.is_some()",
    ),
];

/// What the reference has and no pod of weft can have, and why that takes nothing from it. Not tried.
pub(crate) const NOT_FOR_PODS: &[(&str, &str)] = &[
    (
        "bridge: `promiscMode`, `hairpinMode`, `forceAddress`, `isGateway`, `disableContainerInterface`",
        "there is no bridge: the host routes, and a pod reaches itself anyway",
    ),
    (
        "bridge: `vlan`, `vlanTrunk`, `preserveDefaultVlan`",
        "a pod's link is point to point; two networks are kept apart by their routes",
    ),
    ("bridge: `enabledad`", "the host answers for every address of the node, and leases make them unique"),
    (
        "bridge: `portIsolation`; firewall: `ingressPolicy`",
        "who may talk to whom is a matter of network policy, which weft does not have yet",
    ),
    (
        "portmap: `snat`, `masqAll`, `markMasqBit`, `externalSetMarkChain`",
        "the pod sees its clients; where an answer would not come back it sees its gateway, without a mark",
    ),
    ("host-local: `resolvConf`, `dataDir`", "a runtime reads resolv.conf itself; leases are in weft's store"),
    (
        "tuning: a MAC address behind the first plugin, of pods that weft's shim does not run",
        "nobody calls weft after a plugin behind it: the next `weft reconcile` takes the address over, and `weft doctor` warns",
    ),
    ("firewall: firewalld's zone", "a zone of firewalld is given to links: weft's are `weft*`"),
];
