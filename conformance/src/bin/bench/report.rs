//! Samples, and tables of them: Markdown that is aligned, so that a terminal and the file show the same text.

use std::fmt;
use std::iter::once;

use weft_conformance::Dice;

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

    /// As many, each any of these.
    fn drawn(&self, dice: &mut Dice) -> Self {
        self.0.iter().map(|_| self.0[dice.below(self.0.len())]).collect()
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

/// A figure made of samples, and what it may as well be: between the bounds lie 95 of 100 that are made of samples drawn from the same ones
/// anew (bootstrap; B. Efron, 1979). What a whole run has in common is not in it.
#[derive(Clone, Copy)]
pub(crate) struct Estimate {
    value: f64,
    low: f64,
    high: f64,
}

impl From<f64> for Estimate {
    /// One that nothing is drawn for.
    fn from(value: f64) -> Self {
        Self { value, low: value, high: value }
    }
}

impl Estimate {
    pub(crate) fn of<const N: usize>(samples: [&Samples; N], make: impl Fn([&Samples; N]) -> f64) -> Self {
        const DRAWS: usize = 400;
        let mut dice = Dice::new(1, 1);
        let draws: Samples = (0..DRAWS)
            .map(|_| {
                let drawn = samples.map(|samples| samples.drawn(&mut dice));
                make(drawn.each_ref())
            })
            .collect();
        Self { value: make(samples), low: draws.at(0.025), high: draws.at(0.975) }
    }

    /// How many times `one` is `other`, by their medians.
    pub(crate) fn ratio(one: &Samples, other: &Samples) -> Self {
        Self::of([one, other], |[one, other]| one.median() / other.median())
    }

    pub(crate) fn least(self, goal: f64) -> Reached {
        Reached::by(self.low >= goal, self.high >= goal)
    }

    pub(crate) fn most(self, goal: f64) -> Reached {
        Reached::by(self.high <= goal, self.low <= goal)
    }
}

impl fmt::Display for Estimate {
    /// Three digits: 0.929 is not 0.93.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.value)?;
        if self.low < self.high { write!(f, " ({:.2} – {:.2})", self.low, self.high) } else { Ok(()) }
    }
}

/// Whether a goal was reached; of several the last one in this order is the one of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    Yes,
    /// It lies within the bounds of the figure.
    Open,
    No,
}

impl Reached {
    fn by(surely: bool, perhaps: bool) -> Self {
        match (surely, perhaps) {
            (true, _) => Self::Yes,
            (_, false) => Self::No,
            _ => Self::Open,
        }
    }
}

impl From<bool> for Reached {
    fn from(reached: bool) -> Self {
        Self::by(reached, reached)
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "**no**",
            Self::Open => "open",
        })
    }
}

/// What was measured beside what is expected.
pub(crate) struct Verdict {
    pub(crate) figure: String,
    pub(crate) expected: String,
    pub(crate) reached: Reached,
}

impl Verdict {
    pub(crate) fn of(figure: Estimate, expected: String, reached: Reached) -> Self {
        Self { figure: brief(figure.value), expected, reached }
    }
}

/// A heading, what the reader must know, and rows.
pub(crate) struct Table {
    pub(crate) title: &'static str,
    text: String,
    /// The first is the header.
    pub(crate) rows: Vec<Vec<String>>,
    /// Of the rows that are judged, by their first cell.
    pub(crate) verdicts: Vec<(String, Verdict)>,
}

impl Table {
    pub(crate) fn new(title: &'static str, text: String, header: &[&str]) -> Self {
        let rows = vec![header.iter().map(ToString::to_string).collect()];
        Self { title, text, rows, verdicts: Vec::new() }
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
            Estimate::ratio(reference, weft),
            least,
        );
    }

    /// One more row; the cells before `ratio`, then it, `least` and whether it was reached.
    pub(crate) fn row(&mut self, mut cells: Vec<String>, ratio: impl Into<Estimate>, least: Option<f64>) {
        let ratio = ratio.into();
        cells.push(ratio.to_string());
        let verdict = least.map(|least| Verdict::of(ratio, format!("≥ {least}"), ratio.least(least)));
        self.judged(cells, verdict);
    }

    /// One more row of a table with another measure than a ratio: what is expected, and whether it was reached.
    pub(crate) fn judged(&mut self, mut cells: Vec<String>, verdict: Option<Verdict>) {
        match verdict {
            Some(verdict) => {
                cells.extend([verdict.expected.clone(), verdict.reached.to_string()]);
                self.verdicts.push((cells[0].clone(), verdict));
            }
            None => cells.extend([none(), none()]),
        }
        self.rows.push(cells);
    }

    /// One more row whose `value` is to be no more than `most`.
    pub(crate) fn bounded(
        &mut self,
        mut cells: Vec<String>,
        ratio: impl Into<Estimate>,
        value: impl Into<Estimate>,
        most: f64,
    ) {
        let value = value.into();
        cells.push(ratio.into().to_string());
        let verdict = Verdict::of(value, format!("weft ≤ {most}"), value.most(most));
        self.judged(cells, Some(verdict));
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

/// Three digits or more.
pub(crate) fn brief(value: f64) -> String {
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}")
}

/// The cell of what there is not.
pub(crate) fn none() -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_open_where_the_samples_do_not_decide() {
        let samples = |from: u32| (0..50).map(|number| f64::from(from + number)).collect::<Samples>();
        let (one, other) = (samples(200), samples(100));
        let figure = Estimate::ratio(&one, &other);
        assert!(figure.low < figure.value && figure.value < figure.high, "{figure}");
        assert!((1.6..1.8).contains(&figure.low) && (1.8..2.0).contains(&figure.high), "{figure}");
        for (goal, least, most) in [
            (1.5, Reached::Yes, Reached::No),
            (figure.value, Reached::Open, Reached::Open),
            (2.0, Reached::No, Reached::Yes),
        ] {
            assert_eq!((figure.least(goal), figure.most(goal)), (least, most), "{goal}");
        }
        let exact = Estimate::from(3.0);
        assert_eq!(
            (exact.least(3.0), exact.most(3.0), exact.least(3.1)),
            (Reached::Yes, Reached::Yes, Reached::No)
        );
    }
}
