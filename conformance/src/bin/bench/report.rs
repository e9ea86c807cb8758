//! Samples, and tables of them: Markdown that is aligned, so that a terminal and the file show the same text.

use std::fmt;
use std::iter::once;

/// What was measured, in any order.
#[derive(Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn extend(&mut self, values: Vec<f64>) {
        self.0.extend(values);
    }

    pub(crate) fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub(crate) fn median_if_any(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.median())
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// What each is of the one of `others` that was measured in the same round.
    pub(crate) fn ratios(&self, others: &Self) -> Self {
        assert_eq!(self.0.len(), others.0.len(), "both were measured in every round");
        self.0.iter().zip(&others.0).map(|(one, other)| one / other).collect()
    }

    pub(crate) fn p10(&self) -> f64 {
        self.at(0.1)
    }

    pub(crate) fn p90(&self) -> f64 {
        self.at(0.9)
    }

    /// The median and the spread.
    pub(crate) fn with_p90(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$})", self.median(), self.p90())
    }

    pub(crate) fn p99(&self) -> f64 {
        self.at(0.99)
    }

    fn at(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        *sorted.get((sorted.len() as f64 * part) as usize).expect("something was measured")
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// A heading, what the reader must know, and rows.
pub(crate) struct Table {
    pub(crate) title: &'static str,
    text: String,
    /// The first is the header.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: &'static str, text: String, header: &[&str]) -> Self {
        Self { title, text, rows: vec![header.iter().map(ToString::to_string).collect()] }
    }

    /// A table of rows that [`Table::durations`] makes.
    pub(crate) fn of_durations(title: &'static str, text: String) -> Self {
        let header = [
            "ms: median (mean; 90th percentile)",
            "weft",
            "reference",
            "ratio of means",
            "ratio of medians",
            "expected",
            "reached",
        ];
        Self::new(title, text, &header)
    }

    /// Times of weft and of the reference, in ms; the ratios are how many times faster weft is.
    pub(crate) fn durations(&mut self, what: &str, samples: &[Samples; 2], least: Option<f64>) {
        let [weft, reference] = samples;
        let cells = [weft, reference]
            .map(|times| format!("{:.2} ({:.2}; {:.2})", times.median(), times.mean(), times.p90()));
        let means = format!("{:.2}", reference.mean() / weft.mean());
        self.row(
            [vec![what.to_owned()], cells.into(), vec![means]].concat(),
            reference.median() / weft.median(),
            least,
        );
    }

    /// One more row; the cells before `ratio`, then it, `least` and whether it was reached.
    pub(crate) fn row(&mut self, mut cells: Vec<String>, ratio: f64, least: Option<f64>) {
        // Three digits: 0.929 is not 0.93.
        cells.push(format!("{ratio:.3}"));
        cells.push(least.map_or_else(none, |least| format!("≥ {least}")));
        cells.push(least.map_or_else(none, |least| if ratio >= least { "yes" } else { "**no**" }.to_owned()));
        self.rows.push(cells);
    }

    /// One more row of a table with another measure than a ratio: what is expected, and whether it was reached.
    pub(crate) fn judged(&mut self, cells: Vec<Option<String>>, verdict: Option<(String, bool)>) {
        let (expected, reached) = match verdict {
            Some((expected, reached)) => {
                (Some(expected), Some(if reached { "yes" } else { "**no**" }.to_owned()))
            }
            None => (None, None),
        };
        let cells = cells.into_iter().chain([expected, reached]);
        self.rows.push(cells.map(|cell| cell.unwrap_or_else(none)).collect());
    }

    /// One more row whose `value` is to be no more than `most`.
    pub(crate) fn bounded(&mut self, mut cells: Vec<String>, ratio: f64, value: f64, most: f64) {
        let reached = if value <= most { "yes" } else { "**no**" };
        cells.extend([format!("{ratio:.3}"), format!("weft ≤ {most}"), reached.to_owned()]);
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let columns = 0..self.rows.iter().map(Vec::len).max().unwrap_or_default();
        columns
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or_default().max(2)
            })
            .collect()
    }
}

fn none() -> String {
    "–".to_owned()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}\n\n{}\n", self.title, self.text)?;
        let widths = self.widths();
        // The first column is text, the others are figures.
        let ruler = widths.iter().enumerate().map(|(column, width)| match column {
            0 => "-".repeat(*width),
            _ => format!("{}:", "-".repeat(width - 1)),
        });
        let (header, rows) = self.rows.split_first().expect("a table has a header");
        for row in once(header).chain(once(&ruler.collect())).chain(rows) {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
        Ok(())
    }
}
