//! Keys of the reference plugins that narrow who reaches a pod.
//!
//! Keys that weft does not know are left alone: most of them change nothing that a pod would miss. With these, more would be open than
//! the configuration says, so the plugin's own configuration may not have them.

use serde_json::Value;

/// The first such key of one plugin's configuration, and what is to be done about it. A value that narrows nothing is no harm.
pub(super) fn narrowing(conf: &Value) -> Option<(&'static str, &'static str)> {
    let narrows = |field: &str| match (field, &conf[field]) {
        (_, Value::Null | Value::Bool(false)) => false,
        (_, Value::Array(list)) => !list.is_empty(),
        ("vlan", id) => *id != 0,
        ("ingressPolicy", policy) => !["", "open"].iter().any(|open| policy == open),
        _ => true,
    };
    KEYS.into_iter().find(|(field, _)| narrows(field))
}

const PORTMAP: &str = "is portmap's: chain it behind weft, with the capability portMappings in weft's place";
const APART: &str = "is not served: pods of weft reach each other, so nobody would be kept out";

const KEYS: [(&str, &str); 6] = [
    ("conditionsV4", PORTMAP),
    ("conditionsV6", PORTMAP),
    ("ingressPolicy", APART),
    ("portIsolation", APART),
    ("vlan", APART),
    ("vlanTrunk", APART),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_narrows_is_named() {
        for (conf, found) in [
            (json!({ "conditionsV4": ["-s", "192.0.2.1"] }), Some("conditionsV4")),
            (json!({ "conditionsV6": ["ip6", "saddr", "::1"], "isGateway": true }), Some("conditionsV6")),
            (json!({ "ingressPolicy": "isolated" }), Some("ingressPolicy")),
            (json!({ "portIsolation": true }), Some("portIsolation")),
            (json!({ "vlan": 7 }), Some("vlan")),
            (json!({ "vlanTrunk": [{ "id": 7 }] }), Some("vlanTrunk")),
            (json!({ "conditionsV4": null, "conditionsV6": [], "ingressPolicy": "open" }), None),
            (json!({ "vlan": 0, "vlanTrunk": [], "portIsolation": false, "ingressPolicy": "" }), None),
            (json!({ "hairpinMode": true, "anything": ["else"] }), None),
        ] {
            assert_eq!(narrowing(&conf).map(|(field, _)| field), found, "{conf}");
        }
    }
}
