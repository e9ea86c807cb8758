//! The kernel: its version, and whether it makes what a pod is made of.

use nix::sys::utsname::uname;
use weft_netns::{Error, Mac, NetNs, Netfilter, Netlink, PacketSizes, Veth, sysctl};

use super::Finding;
use crate::config::Config;
use crate::state::Ledger;

/// The first kernel on which weft is tested; `bpf_redirect_peer` is of that version.
const WANTED: (u32, u32) = (5, 10);

pub(super) fn look(config: &Config) -> Vec<Finding> {
    // What is wrong with the store is told where that is looked at.
    let records = Ledger::open(config).and_then(|ledger| ledger.records()).unwrap_or_default();
    let used = |ipv4: bool| {
        records.iter().flat_map(|record| &record.addresses).any(|address| address.is_ipv4() == ipv4)
    };
    vec![
        version(),
        links(),
        forwarding("ipv4 forwarding", "net/ipv4/ip_forward", used(true)),
        forwarding("ipv6 forwarding", "net/ipv6/conf/all/forwarding", used(false)),
        reverse_path(),
        closed(),
    ]
}

/// Chains that drop what is forwarded drop what pods and the outside send each other; pods of the node keep reaching each other on
/// the fast path.
fn closed() -> Finding {
    let check = "firewall";
    let remedy = "accept there what comes from and goes to links weft*; or, for iptables, chain the plugin firewall behind weft";
    match Netfilter::open().and_then(|netfilter| netfilter.closed_to_forwarding()) {
        Ok(chains) if chains.is_empty() => {
            Finding::ok(check, "no chain of nftables drops by its policy what is forwarded")
        }
        Ok(chains) => Finding::warning(
            check,
            format!("by their policy these drop what they do not accept: {}", chains.join(", ")),
            remedy,
        ),
        Err(err) => Finding::problem(
            check,
            crate::error::chain(&err),
            "run as root on a kernel with CONFIG_NF_TABLES",
        ),
    }
}

fn version() -> Finding {
    let check = "kernel";
    let remedy = "boot Linux 5.10 or newer";
    let release = match uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(err) => return Finding::problem(check, format!("uname: {err}"), remedy),
    };
    match parse(&release) {
        Some(version) if version < WANTED => Finding::problem(check, release, remedy),
        Some(_) => Finding::ok(check, release),
        None => Finding::warning(check, format!("version {release:?} is not understood"), remedy),
    }
}

/// The first two numbers of a release: `6.1.0-13-amd64`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Makes a pair in a namespace that nobody sees and that ends here.
fn links() -> Finding {
    let check = "veth";
    match pair() {
        Ok(()) => Finding::ok(check, "a namespace and a pair of links can be made"),
        Err(err) => Finding::problem(
            check,
            crate::error::chain(&err),
            "run as root on a kernel with CONFIG_NET_NS and CONFIG_VETH (modprobe veth)",
        ),
    }
}

fn pair() -> Result<(), Error> {
    let netns = NetNs::create()?;
    let veth = Veth {
        name: "weft-doctor0".parse()?,
        mac: Mac::new([6, 0, 0, 0, 0, 1]),
        mtu: 1500,
        packets: PacketSizes::default(),
        peer_name: "weft-doctor1".parse()?,
        peer_mac: Mac::new([2, 0, 0, 0, 0, 1]),
        peer_ns: &netns,
    };
    Netlink::open_in(&netns)?.create_veth(&veth).map(drop)
}

/// Pods that have an address of the family need it now; without one, the next pod sets it.
fn forwarding(check: &'static str, key: &str, is_used: bool) -> Finding {
    match sysctl::read(key) {
        Ok(value) if value == "1" => Finding::ok(check, format!("{key} = 1")),
        Ok(value) if is_used => Finding::problem(
            check,
            format!("{key} = {value}, and pods have addresses"),
            format!("sysctl -w {}=1, and find what has reset it: see /etc/sysctl.d", key.replace('/', ".")),
        ),
        Ok(value) => Finding::ok(check, format!("{key} = {value}: the first pod of the family sets it")),
        Err(err) => Finding::warning(
            check,
            crate::error::chain(&err),
            "the kernel does not have this family: use ranges of the other one",
        ),
    }
}

/// Strict filtering does no harm: a pod's packets come in where the route to its address goes out.
fn reverse_path() -> Finding {
    let check = "rp_filter";
    match sysctl::read("net/ipv4/conf/all/rp_filter") {
        Ok(value) => {
            let word = match value.as_str() {
                "0" => "off",
                "1" => "strict, which pods pass",
                "2" => "loose",
                _ => "unknown",
            };
            Finding::ok(check, format!("net/ipv4/conf/all/rp_filter = {value}: {word}"))
        }
        Err(err) => Finding::warning(check, crate::error::chain(&err), "mount /proc with its sys folder"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_its_version() {
        for (release, version) in [
            ("6.1.0-13-amd64", Some((6, 1))),
            ("5.10", Some((5, 10))),
            ("6.18-rc1+", Some((6, 18))),
            ("six", None),
            ("", None),
        ] {
            assert_eq!(parse(release), version, "{release}");
        }
        assert!(parse("5.9.1").unwrap() < WANTED && parse("5.10.0").unwrap() >= WANTED);
    }
}
