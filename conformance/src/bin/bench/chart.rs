//! A chart of a table, as SVG: a bar for each figure, its value as text beside it, and what was expected. It is readable on a light and on a dark
//! page, and needs no font but the reader's.
//!
//! The figures of a row are its cells between the label and the first ratio ([`is_derived`]). Rows with the same unit, which the label ends with, as in
//! `ADD (ms)`, or else the first cell of the header tells, share a panel and its scale, which is logarithmic where figures are far apart.

use std::fmt::Write;

use crate::report::Table;

/// Of what is drawn, in pixels.
const WIDTH: f64 = 940.0;
const MARGIN: f64 = 16.0;
const LABELS: f64 = 290.0;
const BARS: f64 = 370.0;
/// For a value beside the longest bar.
const VALUE: f64 = 70.0;
const LINE: f64 = 17.0;
const BAR: f64 = 12.0;
/// Characters of a label in a line.
const WRAP: usize = 44;
/// Figures further apart than this need a logarithmic scale.
const FAR: f64 = 20.0;

/// Colours by class: on a light page, and on a dark one. The first of `s` is weft's.
const COLOURS: [(&str, &str, &str); 7] = [
    ("page", "#ffffff", "#0d1117"),
    ("text", "#1f2328", "#f0f6fc"),
    ("faint", "#59636e", "#9198a1"),
    ("s0", "#0969da", "#4493f8"),
    ("s1", "#8c959f", "#7d8590"),
    ("s2", "#bc8c2c", "#d29922"),
    ("s3", "#8250df", "#ab7df8"),
];

struct Chart<'t> {
    table: &'t Table,
    /// Columns that have figures, and the class of the bars of each.
    series: Vec<(usize, String)>,
    body: String,
    y: f64,
}

/// Rows of one unit.
struct Panel<'t> {
    unit: &'t str,
    rows: Vec<(&'t str, &'t [String])>,
}

/// From a figure to the length of its bar.
struct Scale {
    logarithmic: bool,
    from: f64,
    to: f64,
}

/// The chart of the table.
pub(crate) fn svg(table: &Table) -> String {
    let mut chart = Chart { table, series: series(&table.rows[0]), body: String::new(), y: MARGIN + LINE };
    chart.head();
    for panel in panels(table) {
        chart.panel(&panel);
    }
    let (height, title) = (chart.y + MARGIN / 2.0, escaped(table.title));
    let names: Vec<String> =
        chart.series.iter().map(|(column, _)| escaped(&table.rows[0][*column])).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         aria-labelledby=\"title desc\">\n<title id=\"title\">{title}</title>\n<desc id=\"desc\">Bars of the figures in the table {title} of the \
         benchmarks: {}.</desc>\n{}<rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n{}</svg>\n",
        names.join(", "),
        style(),
        chart.body
    )
}

fn style() -> String {
    let rules = |dark: bool| -> String {
        let rule = |(class, on_light, on_dark): &(&str, &str, &str)| {
            format!(".{class}{{fill:{}}}", if dark { on_dark } else { on_light })
        };
        COLOURS.iter().map(rule).collect()
    };
    format!(
        "<style>text{{font:13px system-ui,sans-serif}}.big{{font-size:16px;font-weight:600}}.grid{{opacity:.25}}{}\n\
         @media (prefers-color-scheme:dark){{{}}}</style>\n",
        rules(false),
        rules(true)
    )
}

/// Whether a column is made of others.
fn is_derived(name: &str) -> bool {
    name.starts_with("ratio") || name.contains(" / ") || name.contains("'s share") || name == "expected"
}

/// weft has its own colour; where there is no column of that name, the last has it.
fn series(header: &[String]) -> Vec<(usize, String)> {
    let end = header.iter().position(|name| is_derived(name)).unwrap_or(header.len());
    let weft = header[..end].iter().position(|name| name == "weft").unwrap_or(end - 1);
    let mut others = (1..COLOURS.len() - 3).cycle();
    let class = |column: usize| match column == weft {
        true => 0,
        false => others.next().unwrap_or_default(),
    };
    let classes: Vec<usize> = (1..end).map(class).collect();
    (1..end).zip(classes.iter().map(|class| format!("s{class}"))).collect()
}

/// In the order of their first rows.
fn panels(table: &Table) -> Vec<Panel<'_>> {
    let default = table.rows[0][0].split(':').next().unwrap_or_default();
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for cells in &table.rows[1..] {
        let (label, unit) = match cells[0].strip_suffix(')').and_then(|text| text.rsplit_once(" (")) {
            Some((label, unit)) => (label, unit),
            None => (cells[0].as_str(), default),
        };
        match panels.iter_mut().find(|panel| panel.unit == unit) {
            Some(panel) => panel.rows.push((label, cells)),
            None => panels.push(Panel { unit, rows: vec![(label, cells)] }),
        }
    }
    panels
}

/// The figure that a cell begins with.
fn figure(cell: &str) -> Option<(f64, &str)> {
    let text = cell.split(' ').next()?;
    text.parse().ok().map(|value| (value, text))
}

impl Chart<'_> {
    /// The title, and whose bars are whose.
    fn head(&mut self) {
        self.text(MARGIN, "text big", self.table.title);
        let mut x = MARGIN + LABELS;
        for (column, class) in self.series.clone() {
            let name = &self.table.rows[0][column];
            self.rect(x, self.y - 10.0, BAR, BAR, &class);
            self.text(x + BAR + 6.0, "text", name);
            x += BAR + 24.0 + name.chars().count() as f64 * 7.5;
        }
        self.y += LINE;
    }

    fn panel(&mut self, panel: &Panel<'_>) {
        let cells = panel.rows.iter().flat_map(|(_, cells)| self.series.iter().map(|(at, _)| &cells[*at]));
        let scale = Scale::of(cells.filter_map(|cell| figure(cell)).map(|(value, _)| value));
        self.y += LINE;
        let kind = if scale.logarithmic { ", logarithmic scale" } else { "" };
        self.text(MARGIN + LABELS, "faint", &format!("{}{kind}", panel.unit));
        self.y += 6.0;
        let top = self.y;
        for (label, cells) in &panel.rows {
            self.row(&scale, label, cells);
        }
        for value in scale.marks() {
            let x = MARGIN + LABELS + scale.length(value);
            self.rect(x, top, 1.0, self.y - top, "faint grid");
            writeln!(
                self.body,
                "<text class=\"faint\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{value}</text>",
                self.y + 12.0
            )
            .expect("write to a text");
        }
        self.y += LINE;
    }

    fn row(&mut self, scale: &Scale, label: &str, cells: &[String]) {
        let lines = wrapped(label);
        let height = LINE * self.series.len().max(lines.len()) as f64 + 8.0;
        let top = self.y;
        for (number, line) in lines.iter().enumerate() {
            self.y = top + LINE * (number + 1) as f64 - 1.0;
            self.text(MARGIN, "text", line);
        }
        for (number, (column, class)) in self.series.clone().into_iter().enumerate() {
            let Some((value, text)) = figure(&cells[column]) else { continue };
            self.y = top + LINE * (number + 1) as f64 - 1.0;
            let length = scale.length(value).max(1.0);
            self.rect(MARGIN + LABELS, self.y - 10.0, length, BAR, &class);
            self.text(MARGIN + LABELS + length + 6.0, "text", text);
        }
        let [.., ratio, expected, reached] = cells else { panic!("a row ends with its verdict") };
        let x = MARGIN + LABELS + BARS + VALUE;
        self.y = top + LINE - 1.0;
        let what = &self.table.rows[0][cells.len() - 3];
        if is_derived(what) {
            self.text(x, "text", &format!("{what}: {ratio}"));
        }
        if reached.chars().any(char::is_alphabetic) {
            self.y += LINE;
            self.text(x, "faint", &format!("{expected}: {}", reached.trim_matches('*')));
        }
        self.y = top + height;
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        )
        .expect("write to a text");
    }

    fn text(&mut self, x: f64, class: &str, text: &str) {
        let (y, text) = (self.y, escaped(text));
        writeln!(self.body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>")
            .expect("write to a text");
    }
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        if most / least > FAR {
            // The shortest bar has some length too.
            let from = 10_f64.powf((least * 0.8).log10().floor());
            return Self { logarithmic: true, from, to: most };
        }
        Self { logarithmic: false, from: 0.0, to: if most > 0.0 { most } else { 1.0 } }
    }

    fn length(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            value / self.to
        };
        part * BARS
    }

    /// Where the scale is marked: at powers of ten, or at a few round figures.
    fn marks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = self.from.log10().round() as i32..=self.to.log10().floor() as i32;
            return decades.map(|power| 10_f64.powi(power)).collect();
        }
        let rough = self.to / 4.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|part| part * decade).into_iter().find(|step| *step >= rough);
        let step = step.expect("ten times a decade is the next");
        (0..).map(|number| f64::from(number) * step).take_while(|value| *value <= self.to).collect()
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is a first line");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > WRAP {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// As text of XML; Markdown's quotes of code are left out.
fn escaped(text: &str) -> String {
    text.replace('`', "").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_every_figure_and_a_panel_for_each_unit() {
        let header = ["ms: median", "weft", "reference", "ratio", "expected", "reached"];
        let mut table = Table::new("A & B", String::new(), &header);
        let cells = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        table.row(cells(["ADD", "2.50 (2.61; 3.02)", "62.50"]), 25.0, Some(18.0));
        table.row(cells(["pods (1/s)", "118.0", "–"]), 13.8, None);
        let svg = svg(&table);
        for text in
            [">2.50<", ">62.50<", ">118.0<", ">ms, logarithmic scale<", ">1/s<", ">A &amp; B<", ">≥ 18: yes<"]
        {
            assert_eq!(svg.matches(text).count(), 1 + usize::from(text.contains('&')), "{text}: {svg}");
        }
        // Three bars, and what the legend has of each column.
        assert_eq!(
            ["s0", "s1"].map(|class| svg.matches(&format!("class=\"{class}\"")).count()),
            [3, 2],
            "{svg}"
        );
        assert_eq!(svg.matches("<g").count(), 0, "every element is closed: {svg}");
    }

    #[test]
    fn a_scale_is_marked_within_its_bounds() {
        for values in [[2.5, 62.5], [10.0, 11.0], [0.02, 7e4], [0.0, 0.0]] {
            let scale = Scale::of(values.into_iter());
            let marks = scale.marks();
            assert!((2..=9).contains(&marks.len()), "{values:?}: {marks:?}");
            for length in marks.iter().chain(&values).map(|value| scale.length(*value)) {
                assert!((0.0..=BARS + 0.001).contains(&length), "{values:?}: {length}");
            }
        }
    }
}
