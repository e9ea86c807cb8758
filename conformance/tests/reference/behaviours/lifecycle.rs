//! ADD, DEL, CHECK, STATUS and GC as a runtime calls them.

use serde_json::{Value, json};

use crate::site::{Pod, Site};
use crate::traffic::pings;
use crate::wish::Wish;

pub(crate) fn add_again_answers_the_same(site: &Site) {
    let pod = site.add(&Wish::default());
    assert_eq!(pod.again().as_ref(), Ok(&pod.result));
    assert!(pings(&site.host, &pod.address()));
    pod.del();
}

pub(crate) fn del_takes_the_interface_and_is_repeatable(site: &Site) {
    let pod = site.add(&Wish::default());
    for _ in 0..3 {
        pod.del();
        assert_eq!(pod.space.ip("link show").as_array().unwrap().len(), 1, "only lo");
    }
    site.pod(&Wish::default()).del();
}

pub(crate) fn del_without_a_namespace(site: &Site) {
    let wish = Wish { sets: json!([[{ "subnet": "10.88.0.0/30" }]]), ..Wish::default() };
    let pod = site.add(&wish);
    let address = pod.address();
    pod.try_del(false).unwrap();
    drop(pod);
    let next = site.add(&wish);
    assert_eq!(next.address(), address, "the only address is free again");
    next.del();
}

pub(crate) fn a_failed_add_is_cleaned_up_by_its_del(site: &Site) {
    let wish = Wish { sets: json!([[{ "subnet": "10.88.0.0/30" }]]), ..Wish::default() };
    let pod = site.pod(&wish);
    pod.space.must("ip link add eth0 type veth peer name other");
    pod.again().unwrap_err();
    pod.del();
    let next = site.add(&wish);
    assert_eq!(next.address(), "10.88.0.2");
    next.del();
}

fn check_finds(site: &Site, harm: impl FnOnce(&Pod<'_>)) {
    let pod = site.add(&Wish::default());
    assert_eq!(pod.check(), Ok(()));
    harm(&pod);
    let error = pod.check().expect_err("CHECK does not see it");
    assert!(error["code"].as_u64().is_some(), "{error}");
    pod.del();
}

pub(crate) fn check_finds_a_missing_address(site: &Site) {
    check_finds(site, |pod| {
        let link = pod.link();
        let info = &link["addr_info"][0];
        let (local, length) = (info["local"].as_str().unwrap(), &info["prefixlen"]);
        // The route goes with it.
        let routes = pod.space.must("ip route show default");
        pod.space.must(&format!("ip addr del {local}/{length} dev eth0"));
        pod.space.exec(
            std::process::Command::new("ip")
                .args(["route", "add"])
                .args(routes.split_whitespace())
                .arg("onlink"),
            b"",
        );
    });
}

pub(crate) fn check_finds_a_missing_route(site: &Site) {
    check_finds(site, |pod| drop(pod.space.must("ip route del default")));
}

pub(crate) fn check_finds_a_missing_link(site: &Site) {
    check_finds(site, |pod| drop(pod.space.must("ip link del eth0")));
}

pub(crate) fn check_finds_another_mac(site: &Site) {
    check_finds(site, |pod| drop(pod.space.must("ip link set eth0 address 02:00:00:00:0b:ad")));
}

pub(crate) fn check_finds_a_link_that_is_down(site: &Site) {
    check_finds(site, |pod| drop(pod.space.must("ip link set eth0 down")));
}

pub(crate) fn check_finds_missing_host_ports(site: &Site) {
    let runtime = json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] });
    let pod = site.add(&Wish { runtime, ..Wish::default() });
    assert_eq!(pod.check(), Ok(()));
    site.host.must("nft flush ruleset");
    pod.check().expect_err("CHECK does not see it");
    pod.del();
}

pub(crate) fn check_finds_a_missing_limit(site: &Site) {
    let runtime = json!({ "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 } });
    let pod = site.add(&Wish { runtime, ..Wish::default() });
    assert_eq!(pod.check(), Ok(()));
    let links = site.host.ip("link show type veth");
    let own = links.as_array().unwrap().iter().find(|link| link["qdisc"] == "tbf").unwrap();
    site.host.must(&format!("tc qdisc del dev {} root", own["ifname"].as_str().unwrap()));
    pod.check().expect_err("CHECK does not see it");
    pod.del();
}

pub(crate) fn gc_frees_what_the_runtime_forgot(site: &Site) {
    let wish = Wish { sets: json!([[{ "subnet": "10.88.0.0/29" }]]), ..Wish::default() };
    let (kept, lost) = (site.add(&wish), site.add(&wish));
    let mut conf = site.first(&wish);
    conf["cni.dev/valid-attachments"] = json!([{ "containerID": kept.id, "ifname": "eth0" }]);
    site.plugin(&conf, "GC", |command| command).unwrap();
    assert_eq!(lost.space.ip("link show").as_array().unwrap().len(), 1, "only lo");
    assert!(pings(&site.host, &kept.address()));
    kept.del();
}

pub(crate) fn status_of_a_good_configuration(site: &Site) {
    let answer = site.plugin(&site.first(&Wish::default()), "STATUS", |command| command);
    assert_eq!(answer, Ok(Value::Null));
}

/// STATUS says that the next ADD would fail for want of an address (specification 1.1, code 50).
pub(crate) fn status_of_a_full_range(site: &Site) {
    let wish = Wish { sets: json!([[{ "subnet": "10.88.0.0/30" }]]), ..Wish::default() };
    let pod = site.add(&wish);
    let answer = site.plugin(&site.first(&wish), "STATUS", |command| command);
    pod.del();
    assert_eq!(answer.unwrap_err()["code"], 50);
}

/// Many at once: each has its own address.
pub(crate) fn eight_at_once(site: &Site) {
    let pods: Vec<_> = (0..8).map(|_| site.pod(&Wish::default())).collect();
    let mut addresses: Vec<String> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|pod| (pod.id.clone(), pod.wish.clone(), pod.space.path().to_owned()))
            .map(|(id, wish, path)| {
                let (first, host) = (site.first(&wish), &site.host);
                let mut command = site.command(&first, "ADD");
                command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", path);
                scope.spawn(move || host.exec(&mut command, first.to_string().as_bytes()).stdout)
            })
            .collect();
        adds.into_iter()
            .map(|add| {
                let answer: Value = serde_json::from_slice(&add.join().unwrap()).unwrap();
                answer["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
            })
            .collect()
    });
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
    pods.iter().for_each(|pod| pod.del());
}
