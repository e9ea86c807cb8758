//! critest with weft as a handler, with weft as the default runtime, and on the reference: all with the same list of what cannot be
//! tried on this machine.

use std::sync::OnceLock;

use weft_conformance::{Node, NodeSpec, Outcome, Outcomes, Subject, critest, skip_list};

fn outcomes(spec: NodeSpec, handler: Option<&str>) -> Outcomes {
    let node = Node::start_with(spec);
    let outcomes = critest(&node, handler);
    node.finish();
    outcomes
}

/// The reference, tried once for all tests.
fn reference() -> &'static Outcomes {
    static OUTCOMES: OnceLock<Outcomes> = OnceLock::new();
    OUTCOMES.get_or_init(|| outcomes(NodeSpec::new(Subject::Reference), Some("runc")))
}

/// Every spec but the listed ones passes on weft; what a person reads if not names what the reference did.
#[track_caller]
fn all_pass(weft: &Outcomes) {
    let tried = weft.iter().filter(|(_, outcome)| **outcome != Outcome::Listed);
    let bad: Vec<String> = tried
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, outcome)| {
            format!("{name}\n  weft: {outcome:?}\n  reference: {:?}", reference().get(name))
        })
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    let passed = |outcomes: &Outcomes| {
        let passed = outcomes.iter().filter(|(_, outcome)| **outcome == Outcome::Passed);
        passed.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(passed(weft), passed(reference()), "the same specs were tried, and passed");
    assert!(passed(weft).len() >= 93, "critest 1.36.0 has that many specs that need no registry");
}

#[test]
fn critest_passes_with_weft_as_a_handler() {
    let spec = NodeSpec::new(Subject::Weft);
    all_pass(&outcomes(spec, Some("weft")));
}

#[test]
fn critest_passes_with_weft_as_the_default_runtime() {
    let spec = NodeSpec { default_handler: "weft", ..NodeSpec::new(Subject::Weft) };
    all_pass(&outcomes(spec, None));
}

#[test]
fn critest_passes_with_weft_under_the_default_sandboxer() {
    let spec = NodeSpec::new(Subject::Weft);
    all_pass(&outcomes(spec, Some("weft-podsandbox")));
}

#[test]
fn each_line_of_the_skip_list_is_needed() {
    for (words, reason) in skip_list() {
        let listed =
            |(name, outcome): (&String, &Outcome)| name.contains(words) && *outcome == Outcome::Listed;
        assert!(reference().iter().any(listed), "no spec is called {words:?}");
        assert!(!reason.is_empty(), "{words}");
    }
}
