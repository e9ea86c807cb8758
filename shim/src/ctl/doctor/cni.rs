//! The CNI configuration: containerd takes the first file in lexical order, whoever wrote it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Finding;
use crate::cni::validate;
use crate::config::Config;
use crate::error::chain;

/// The name of weft's plugin in a configuration.
const TYPE: &str = "weft";
/// From this version on a runtime asks the plugin whether it is ready (STATUS) and lets it collect garbage (GC).
const VERSION: &str = "1.1.0";
/// What containerd has to be told to pass on.
const CAPABILITIES: [&str; 3] = ["portMappings", "bandwidth", "dns"];

pub(super) fn look(config: &Config, dir: &Path) -> Vec<Finding> {
    let check = "CNI configuration";
    let remedy = "packaging/cni/10-weft.conflist into that folder";
    let files = match files(dir) {
        Ok(files) => files,
        Err(err) => return vec![Finding::problem(check, format!("{}: {err}", dir.display()), remedy)],
    };
    let Some(file) = files.first() else {
        return vec![Finding::problem(check, format!("none in {}", dir.display()), remedy)];
    };
    let read = std::fs::read(file).map_err(|err| err.to_string());
    match read.and_then(|text| serde_json::from_slice(&text).map_err(|err| err.to_string())) {
        Ok(conf) => of_conf(config, &file.display().to_string(), &conf),
        Err(err) => vec![Finding::problem(check, format!("{}: {err}", file.display()), remedy)],
    }
}

/// In the order and with the endings that libcni takes (`ConfFiles` in libcni/conf.go).
fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("conf" | "conflist" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn of_conf(config: &Config, file: &str, conf: &Value) -> Vec<Finding> {
    let check = "CNI configuration";
    let name = conf["name"].as_str().unwrap_or_default();
    let version = conf["cniVersion"].as_str().unwrap_or_default();
    let plugins = conf["plugins"].as_array().cloned().unwrap_or_else(|| vec![conf.clone()]);
    let Some(plugin) = plugins.iter().find(|plugin| plugin["type"] == TYPE) else {
        let found = format!("{file} is the first of its folder, and is not weft's");
        let remedy = "a name that comes before it, as 05-weft.conflist; or remove it";
        return vec![Finding::problem(check, found, remedy)];
    };
    // As libcni hands it to the plugin.
    let mut plugin = plugin.clone();
    plugin["name"] = name.into();
    plugin["cniVersion"] = version.into();
    let network = match validate(config, plugin.to_string().as_bytes()) {
        Ok(network) => network,
        Err(err) => {
            let remedy = "mend the file; containerd takes it when it is written anew, by rename";
            return vec![Finding::problem(check, format!("{file}: {}", chain(&err)), remedy)];
        }
    };
    let subnets: Vec<String> = network.ranges.iter().map(|range| range.subnet().to_string()).collect();
    let found = format!("{file}: network {name}, {}", subnets.join(", "));
    let behind: Vec<&Value> = plugins.iter().skip_while(|plugin| plugin["type"] != TYPE).skip(1).collect();
    vec![
        Finding::ok(check, found),
        of_version(version),
        of_capabilities(&plugin, &behind),
        of_chain(&plugin, &behind),
    ]
}

/// What plugins behind weft would undo: a change of the MAC address takes the pod's neighbours along, and tells nobody. weft's shim
/// mends it before anything of the pod runs; other runtimes' pods wait for a reconcile.
fn of_chain(weft: &Value, behind: &[&Value]) -> Finding {
    let check = "CNI chain";
    let is = |name: &str| behind.iter().copied().find(|plugin| plugin["type"] == name);
    let sets_mac = |tuning: &&Value| tuning["mac"].is_string() || tuning["capabilities"]["mac"] == true;
    if is("tuning").is_some_and(|tuning| sets_mac(&tuning)) {
        let remedy = "take `mac` from tuning, and give weft the capability `mac`: it sets the address itself";
        let found = "tuning sets MAC addresses behind weft: pods of other runtimes have no network before the next reconcile";
        return Finding::warning(check, found, remedy);
    }
    if is("bandwidth").is_some() {
        let remedy = "take it out: weft has the capability `bandwidth` and the same keys";
        return Finding::warning(
            check,
            "bandwidth behind weft: packets between pods pass its limits by",
            remedy,
        );
    }
    let publishes = |plugin: &Value| plugin["capabilities"]["portMappings"] == true;
    if publishes(weft) && is("portmap").is_some_and(publishes) {
        let found =
            "weft and portmap behind it both publish host ports: portmap's conditions keep nobody out";
        return Finding::warning(check, found, "the capability `portMappings` for one of the two");
    }
    Finding::ok(check, format!("{} plugins behind weft", behind.len()))
}

fn of_version(version: &str) -> Finding {
    let check = "CNI version";
    match version {
        VERSION => Finding::ok(check, version),
        _ => Finding::warning(
            check,
            version,
            format!(
                "cniVersion {VERSION} lets the runtime ask for STATUS; containerd 1.7 knows 1.0.0 at most"
            ),
        ),
    }
}

/// By weft, or by a plugin behind it in its place.
fn of_capabilities(weft: &Value, behind: &[&Value]) -> Finding {
    let check = "CNI capabilities";
    let is_declared = |capability: &str| {
        let mut all = behind.iter().copied().chain([weft]);
        all.any(|plugin| plugin["capabilities"][capability] == true)
    };
    let missing: Vec<&str> = CAPABILITIES.into_iter().filter(|capability| !is_declared(capability)).collect();
    match missing.is_empty() {
        true => Finding::ok(check, CAPABILITIES.join(", ")),
        false => Finding::warning(
            check,
            format!("not declared: {}", missing.join(", ")),
            "what a pod asks for of these is forgotten on the way: set them to true in `capabilities`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use serde_json::json;

    fn found(conf: &Value) -> Vec<(Level, String)> {
        let findings = of_conf(&Config::default(), "10-weft.conflist", conf);
        findings.into_iter().map(|finding| (finding.level, finding.found)).collect()
    }

    #[test]
    fn the_packaged_configuration_has_nothing_to_mend() {
        let text = include_str!("../../../../packaging/cni/10-weft.conflist");
        let found = found(&serde_json::from_str(text).unwrap());
        assert!(found.iter().all(|(level, _)| *level == Level::Ok), "{found:?}");
        assert_eq!(found[0].1, "10-weft.conflist: network weft, 10.88.0.0/16, fd00:88::/64");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = json!({ "cniVersion": "1.0.0", "name": "n", "plugins": [
            { "type": "weft", "ranges": [{ "subnet": "10.1.0.0/24" }], "capabilities": { "dns": true } } ] });
        let levels: Vec<Level> = found(&good).into_iter().map(|(level, _)| level).collect();
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Warning, Level::Ok]);
        for (behind, level) in [
            (json!({ "type": "portmap", "capabilities": { "portMappings": true } }), Level::Ok),
            (json!({ "type": "tuning", "sysctl": {} }), Level::Ok),
            (json!({ "type": "tuning", "mac": "02:00:00:00:00:01" }), Level::Warning),
            (json!({ "type": "tuning", "capabilities": { "mac": true } }), Level::Warning),
            (json!({ "type": "bandwidth" }), Level::Warning),
        ] {
            let mut chained = good.clone();
            chained["plugins"].as_array_mut().unwrap().push(behind);
            assert_eq!(found(&chained)[3].0, level, "{chained}");
        }
        let mut both = good.clone();
        both["plugins"][0]["capabilities"]["portMappings"] = true.into();
        let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        both["plugins"].as_array_mut().unwrap().push(portmap);
        assert!(found(&both)[3].1.contains("both publish host ports"), "{:?}", found(&both));
        let mut narrow = good.clone();
        narrow["plugins"][0]["conditionsV4"] = json!(["-s", "192.0.2.1"]);
        assert!(found(&narrow)[0].1.contains("conditionsV4 is portmap's"), "{:?}", found(&narrow));
        let mut foreign = good.clone();
        foreign["plugins"][0]["type"] = "bridge".into();
        assert!(found(&foreign)[0].1.contains("is not weft's"));
        let mut bad = good;
        bad["plugins"][0]["ranges"] = json!([{ "subnet": "10.1.0.1/24" }]);
        assert_eq!(found(&bad)[0].0, Level::Problem);
        assert!(found(&bad)[0].1.contains("host bits"), "{:?}", found(&bad));
    }
}
