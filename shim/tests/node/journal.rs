//! The journal, by a journald of the test's own: what became of a pod's network is found by the pod's name.

use serde_json::{Value, json};

use crate::common::{Node, conf};

/// Starts journald over an empty /run and runs the plugin twice, ADD and DEL, as a service of systemd would: with a standard error
/// that is the journal's, but for the plugin's own, which the runtime keeps. Prints the entries of the pod.
const SCRIPT: &str = r#"
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal
/lib/systemd/systemd-journald 2>/dev/null &
journald=$!
trap 'kill -9 $journald' EXIT
until [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ]; do sleep 0.05; done
for verb in ADD DEL; do
    CNI_COMMAND=$verb systemd-cat sh -c 'export JOURNAL_STREAM=$(stat -L -c %d:%i /dev/fd/2); exec "$0" <"$1" >/dev/null 2>/dev/null' \
        "$1" "$2" || [ "$3" = fails ]
done
journalctl --sync
journalctl --file '/run/log/journal/*/*.journal' --output=json K8S_POD_NAME=web
"#;

/// The entries of the pod `web`, after ADD and DEL of this configuration.
fn entries(node: &Node, conf: &Value, how: &str) -> Vec<Value> {
    let path = node.dir.path().join("conf.json");
    std::fs::write(&path, conf.to_string()).unwrap();
    let mut command = node.command("unshare");
    command
        .args(["--mount", "--propagation=private", "sh", "-c", SCRIPT, "sh"])
        .args([env!("CARGO_BIN_EXE_weft-cni").as_ref(), path.as_os_str(), how.as_ref()])
        .envs([("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/")])
        .env("CNI_NETNS", node.pod("a"))
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u-1");
    let output = node.run(&mut command, "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    node.remove_pod("a");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_pods_attach_and_detach_are_in_the_journal_under_its_name() {
    let node = Node::new();
    let entries = entries(&node, &conf(), "succeeds");
    let told: Vec<_> = entries.iter().map(|entry| (&entry["MESSAGE"], &entry["PRIORITY"])).collect();
    let line = |what| json!(format!("pod default/web eth0: {what}"));
    assert_eq!(told, [(&line("attached"), &json!("5")), (&line("detached"), &json!("5"))]);
    let addresses = entries[0]["WEFT_ADDRESSES"].as_str().unwrap();
    assert!(addresses.starts_with("10.88.0.") && addresses.contains(" fd00:88::"), "{addresses}");
    for (field, value) in [
        ("CONTAINER_ID", "a"),
        ("K8S_POD_NAMESPACE", "default"),
        ("K8S_POD_UID", "u-1"),
        ("SYSLOG_IDENTIFIER", "weft"),
        ("WEFT_INTERFACE", "eth0"),
        ("WEFT_NETWORK", "test"),
    ] {
        assert_eq!(entries[0][field], value, "{field}");
    }
}

#[test]
fn a_failed_attach_is_in_the_journal_with_its_reason() {
    let node = Node::new();
    let mut full = conf();
    full["ranges"] = json!([{ "subnet": "10.88.0.0/30" }]);
    node.pod("b");
    assert!(node.cni("ADD", "b", &full).status.success());
    let entries = entries(&node, &full, "fails");
    let message = entries[0]["MESSAGE"].as_str().unwrap();
    assert!(message.starts_with("pod default/web eth0: not attached: lease an address: "), "{message}");
    assert_eq!(entries[0]["PRIORITY"], "3");
    assert!(node.cni("DEL", "b", &full).status.success());
}
