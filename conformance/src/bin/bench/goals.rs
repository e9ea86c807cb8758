//! The goals that weft was begun with, one line each: what all tables of a run say of them.

use crate::report::{Reached, Table, Verdict};

/// A goal, and the figures that it is made of: the measurement, and how the first cell of its row begins. Of two that fit a row it is the
/// longer one's.
const GOALS: [(&str, &str, &str); 19] = [
    ("CNI ADD, without a host port and with one", "cni", "ADD"),
    ("CNI DEL, and 1,000 pods reclaimed", "cni", "DEL"),
    ("CNI DEL, and 1,000 pods reclaimed", "scale", "reclaimed"),
    ("grace periods waited for in ADD", "waits", "ADD"),
    ("RunPodSandbox, StopPodSandbox", "cri", ""),
    ("200 pods, 8 at a time", "burst", ""),
    ("a container's calls", "task", ""),
    ("memory of a pod", "memory", ""),
    ("1,000 pods beside 10", "scale", ""),
    ("leases", "ipam", ""),
    ("200 host ports, and one beside 10,000", "cni", "ADD, 200"),
    ("200 host ports, and one beside 10,000", "ports", ""),
    ("TCP request/response", "tcp", "request/response"),
    ("TCP request/response", "tcp", "its 99th percentile"),
    ("TCP connect/request/response", "tcp", "connect/request/response"),
    ("one TCP stream, and its time of a CPU", "tcp", "one stream"),
    ("one TCP stream, and its time of a CPU", "tcp", "its GB"),
    ("pod to outside and back", "uplink", ""),
    ("programs replaced under traffic", "replace", ""),
];

const TEXT: &str = "Each figure that is judged, in the order of the tables below, and in brackets what is expected; one that is not reached is \
    bold, one that may be is in italics. A goal is reached if all its figures are, and is not if one is not. The fast path for sockets is not \
    shipped: [performance.md](performance.md) says why.";

/// One line for each goal of which `tables`, each with the name of its measurement, have figures.
///
/// # Panics
///
/// A judged figure is none of a goal's.
pub(crate) fn table(tables: &[(&str, Table)]) -> Table {
    let verdicts = tables.iter().flat_map(|(measurement, table)| {
        table.verdicts.iter().map(move |(row, verdict)| (goal_of(measurement, row), verdict))
    });
    let verdicts: Vec<(&str, &Verdict)> = verdicts.collect();
    let mut goals = GOALS.map(|(goal, ..)| goal).to_vec();
    goals.dedup();
    let mut table = Table::new("Goals", TEXT.to_owned(), &["goal", "figures", "reached"]);
    for goal in goals {
        let own = || verdicts.iter().filter(|(of, _)| *of == goal).map(|(_, verdict)| verdict);
        // Nothing is said of a goal that nothing was measured of.
        if let Some(reached) = own().map(|verdict| verdict.reached).max() {
            let figures = own().map(|verdict| figure(verdict)).collect::<Vec<_>>().join(", ");
            table.rows.push(vec![goal.to_owned(), figures, reached.to_string()]);
        }
    }
    table
}

fn goal_of(measurement: &str, row: &str) -> &'static str {
    let fits = |(_, of, begin): &&(&str, &str, &str)| *of == measurement && row.starts_with(begin);
    let goal = GOALS.iter().filter(fits).max_by_key(|(.., begin)| begin.len());
    goal.unwrap_or_else(|| panic!("{row} of {measurement} is judged, and no goal")).0
}

fn figure(verdict: &Verdict) -> String {
    let expected = verdict.expected.strip_prefix("weft ").unwrap_or(&verdict.expected);
    let mark = match verdict.reached {
        Reached::Yes => "",
        Reached::Open => "*",
        Reached::No => "**",
    };
    format!("{mark}{}{mark} ({expected})", verdict.figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rows: &[(&str, f64, f64)]) -> Table {
        let mut table = Table::new("Measured", String::new(), &["what", "ratio", "expected", "reached"]);
        for (row, ratio, least) in rows {
            table.row(vec![(*row).to_owned()], *ratio, Some(*least));
        }
        table.row(vec!["not judged".to_owned()], 1.0, None);
        table
    }

    #[test]
    fn a_goal_is_reached_if_all_its_figures_are() {
        let tables = [
            (
                "cni",
                measured(&[("ADD", 20.0, 18.0), ("ADD, 200 host ports", 24.0, 200.0), ("DEL", 80.0, 60.0)]),
            ),
            ("ports", measured(&[("ADD (ms)", 1.0, 1.0)])),
        ];
        let lines: Vec<Vec<String>> = table(&tables).rows.split_off(1);
        let wanted = [
            ["CNI ADD, without a host port and with one", "20.0 (≥ 18)", "yes"],
            ["CNI DEL, and 1,000 pods reclaimed", "80.0 (≥ 60)", "yes"],
            ["200 host ports, and one beside 10,000", "**24.0** (≥ 200), 1.00 (≥ 1)", "**no**"],
        ];
        assert_eq!(lines, wanted);
        assert_eq!([Reached::Yes, Reached::Open].into_iter().max(), Some(Reached::Open));
        assert_eq!([Reached::No, Reached::Open].into_iter().max(), Some(Reached::No));
    }

    #[test]
    #[should_panic(expected = "of waits is judged, and no goal")]
    fn a_figure_that_is_no_goals_is_not_left_out() {
        table(&[("waits", measured(&[("DEL", 0.0, 0.0)]))]);
    }
}
