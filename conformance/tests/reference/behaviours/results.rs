//! What ADD answers, and what the pod has then.

use serde_json::{Value, json};

use crate::site::{BEYOND, Site};
use crate::traffic::pings;
use crate::wish::Wish;

/// `ip4` and `ip6` of specifications 0.1.0 and 0.2.0.
fn oldest(site: &Site, version: &'static str) {
    let pod = site.add(&Wish { version, ..Wish::default() });
    assert_eq!(pod.result["cniVersion"], version, "{}", pod.result);
    for (key, inet) in [("ip4", "inet"), ("ip6", "inet6")] {
        let told = pod.result[key]["ip"].as_str().unwrap_or_else(|| panic!("{}", pod.result));
        let link = pod.link();
        let has = |info: &&Value| info["family"] == inet && info["scope"] == "global";
        let info = link["addr_info"].as_array().unwrap().iter().find(has).unwrap();
        assert_eq!(told, format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]));
        assert!(pings(&site.host, told.split('/').next().unwrap()), "{told}");
        let default = if key == "ip4" { "0.0.0.0/0" } else { "::/0" };
        assert_eq!(pod.result[key]["routes"][0]["dst"], default, "{}", pod.result);
    }
    pod.del();
}

pub(crate) fn of_0_1_0(site: &Site) {
    oldest(site, "0.1.0");
}

pub(crate) fn of_0_2_0(site: &Site) {
    oldest(site, "0.2.0");
}

/// `interfaces` and `ips`; `version` in each of `ips` before 1.0.0.
fn with_interfaces(site: &Site, version: &'static str) {
    let pod = site.add(&Wish { version, ..Wish::default() });
    assert_eq!(pod.result["cniVersion"], version, "{}", pod.result);
    for (at, family) in ["4", "6"].iter().enumerate() {
        let ip = &pod.result["ips"][at];
        let wanted = if version.starts_with('0') { json!(family) } else { Value::Null };
        assert_eq!(ip["version"], wanted, "{ip}");
        let interface = usize::try_from(ip["interface"].as_u64().unwrap()).unwrap();
        assert_eq!(pod.result["interfaces"][interface], pod.reported());
        let default = pod.space.ip(&format!("-{family} route show default"));
        assert_eq!(default[0]["gateway"], ip["gateway"], "{default}");
        assert!(pings(&site.host, &pod.addresses()[at]));
    }
    let (link, told) = (pod.link(), pod.reported());
    assert_eq!((&told["name"], &told["mac"]), (&link["ifname"], &link["address"]));
    assert_eq!(told["sandbox"], pod.space.path().to_str().unwrap());
    pod.del();
}

pub(crate) fn of_0_3_0(site: &Site) {
    with_interfaces(site, "0.3.0");
}

pub(crate) fn of_0_3_1(site: &Site) {
    with_interfaces(site, "0.3.1");
}

pub(crate) fn of_0_4_0(site: &Site) {
    with_interfaces(site, "0.4.0");
}

pub(crate) fn of_1_0_0(site: &Site) {
    with_interfaces(site, "1.0.0");
}

pub(crate) fn of_1_1_0(site: &Site) {
    with_interfaces(site, "1.1.0");
}

pub(crate) fn routes_are_told(site: &Site) {
    let pod = site.add(&Wish::default());
    for (route, default) in ["0.0.0.0/0", "::/0"].iter().enumerate() {
        assert_eq!(pod.result["routes"][route]["dst"], *default, "{}", pod.result);
    }
    pod.del();
}

pub(crate) fn dns_of_the_configuration(site: &Site) {
    let dns = json!({ "nameservers": ["192.0.2.53"], "domain": "example", "search": ["a.example"], "options": ["ndots:2"] });
    let pod = site.add(&Wish { dns: dns.clone(), ..Wish::default() });
    assert_eq!(pod.result["dns"], dns);
    pod.del();
}

/// The versions that the plugin speaks.
pub(crate) fn versions(site: &Site) {
    let answer = site.plugin(&site.first(&Wish::default()), "VERSION", |command| command).unwrap();
    let spoken = answer["supportedVersions"].as_array().unwrap();
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(spoken.contains(&version.into()), "{version} in {answer}");
    }
}

pub(crate) fn an_unknown_version_is_error_1(site: &Site) {
    let error = site.refuses(&Wish { version: "9.9.9", ..Wish::default() });
    assert_eq!(error["code"], 1, "{error}");
}

pub(crate) fn mtu(site: &Site) {
    let pod = site.add(&Wish { mtu: Some(1400), ..Wish::default() });
    assert_eq!(pod.link()["mtu"], 1400);
    pod.space.must(&format!("ping -n -c 1 -W 2 -M do -s 1372 {}", crate::site::HOST[0]));
    pod.del();
}

/// An MTU that nobody names is the uplink's.
pub(crate) fn mtu_of_the_uplink(site: &Site) {
    site.host.must("ip link set uplink mtu 1420");
    let pod = site.add(&Wish::default());
    assert_eq!(pod.link()["mtu"], 1420);
    pod.del();
}

/// Nobody waits for duplicate address detection.
pub(crate) fn addresses_are_usable_at_once(site: &Site) {
    let pod = site.add(&Wish::default());
    let link = pod.link();
    let of_result = pod.addresses();
    let infos = link["addr_info"].as_array().unwrap().iter();
    for info in infos.filter(|info| of_result.contains(&info["local"].as_str().unwrap().to_owned())) {
        assert!(info["tentative"].is_null(), "{info}");
    }
    assert_eq!(link["operstate"], "UP");
    pod.del();
}

pub(crate) fn one_family_alone(site: &Site) {
    for sets in [json!([[{ "subnet": "10.88.0.0/24" }]]), json!([[{ "subnet": "fd00:88::/64" }]])] {
        let pod = site.add(&Wish { sets, ..Wish::default() });
        assert_eq!(pod.addresses().len(), 1);
        assert!(pings(&site.host, &pod.address()));
        pod.del();
    }
}

/// A second interface, in another network.
pub(crate) fn a_second_interface(site: &Site) {
    let mut pod = site.add(&Wish::default());
    let address = pod.address();
    let second = Wish {
        network: "second",
        interface: "net1",
        sets: json!([[{ "subnet": "10.88.9.0/24" }]]),
        bridge: json!({ "bridge": "cni1", "isDefaultGateway": false, "isGateway": true }),
        ..Wish::default()
    };
    let other = site.add(&second);
    let first = std::mem::replace(&mut pod.wish, second);
    pod.result = pod.again().unwrap();
    assert!(pings(&pod.space, &other.address()), "the other pod of the second network");
    assert!(pings(&other.space, &pod.address()), "the way back");
    assert!(pings(&pod.space, BEYOND[0]), "the default route is the first one's");
    other.del();
    pod.del();
    pod.wish = first;
    assert!(pings(&site.host, &address), "the first interface is still there");
    pod.del();
}
