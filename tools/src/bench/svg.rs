//! Line charts as SVG: enough for the report, nothing that has to be loaded.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 40.0;
const TICKS: u32 = 5;
/// Told apart by people who see no red or green, too.
const COLOURS: [&str; 6] = [
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// The colour of the line with this number.
pub(super) fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Text that may stand in HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A line of a chart.
pub(super) struct Line {
    pub(super) colour: usize,
    pub(super) is_dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart with a linear x axis.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x_label: String,
    /// Values of x that are named; none for round numbers.
    pub(super) x_ticks: Vec<(f64, String)>,
    pub(super) is_log: bool,
    pub(super) lines: Vec<Line>,
}

/// The range of an axis in the data.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .filter(|value| value.is_finite())
        .fold(None, |extent, value| {
            let (low, high) = extent.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        })
}

/// The least of 1, 2 and 5 times a power of ten that is not below.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0].into_iter();
    let mut rounded = factors.map(|factor| factor * power);
    rounded
        .find(|step| *step >= value * 0.999_999)
        .unwrap_or(value)
}

fn label(value: f64) -> String {
    match value {
        v if v >= 100.0 || v == 0.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}

impl Chart {
    /// Draws it; nothing if there are no points.
    pub(super) fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let x = extent(points().map(|point| point.0));
        let y = extent(points().map(|point| point.1));
        let (Some((_, x_max)), Some((y_min, y_max))) = (x, y) else {
            return String::new();
        };
        let x_max = x_max.max(1e-9);
        let (low, high) = if self.is_log {
            let low = 10f64.powf(y_min.max(1e-3).log10().floor());
            (low, 10f64.powf(y_max.max(low * 1.01).log10().ceil()))
        } else {
            (0.0, round_up(y_max.max(1e-6)))
        };
        let at_x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| {
            let part = if self.is_log {
                (value.max(low) / low).log10() / (high / low).log10()
            } else {
                value / high
            };
            HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><text x=\"{LEFT}\" y=\"18\" class=\"title\">{}</text>",
            escape(&self.title)
        );
        let mut values: Vec<f64> = Vec::new();
        if self.is_log {
            values.extend(
                std::iter::successors(Some(low), |value| Some(value * 10.0))
                    .take_while(|value| *value <= high * 1.01),
            );
        } else {
            values.extend((0..=TICKS).map(|n| high * f64::from(n) / f64::from(TICKS)));
        }
        for value in values {
            let y = at_y(value);
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1}\" class=\"y\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                label(value)
            );
        }
        let step = round_up(x_max / 10.0);
        let numbers = std::iter::successors(Some(0.0), |value| Some(value + step));
        let ticks: Vec<(f64, String)> = if self.x_ticks.is_empty() {
            let numbers = numbers.take_while(|value| *value <= x_max * 1.001);
            numbers.map(|value| (value, label(value))).collect()
        } else {
            self.x_ticks.clone()
        };
        for (value, name) in ticks {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" class=\"x\">{}</text>",
                at_x(value),
                HEIGHT - BOTTOM + 16.0,
                escape(&name)
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" class=\"x\">{}</text>",
            (LEFT + WIDTH) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x_label)
        );
        for line in &self.lines {
            let mut path = String::new();
            for (x, y) in &line.points {
                let _ = write!(path, "{:.1},{:.1} ", at_x(*x), at_y(*y));
            }
            let dashes = if line.is_dashed {
                " stroke-dasharray=\"5 3\""
            } else {
                ""
            };
            let _ = write!(
                svg,
                "<polyline points=\"{}\" stroke=\"{}\"{dashes}/>",
                path.trim_end(),
                colour(line.colour)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, is_log: bool) -> String {
        Chart {
            title: "<a&b>".to_owned(),
            x_label: "s".to_owned(),
            x_ticks: Vec::new(),
            is_log,
            lines: vec![Line {
                colour: 0,
                is_dashed: false,
                points,
            }],
        }
        .draw()
    }

    #[test]
    fn chart_has_its_points_within_its_frame() {
        for is_log in [false, true] {
            let svg = chart(vec![(0.0, 0.2), (5.0, 70.0), (10.0, 3.0)], is_log);
            assert!(
                svg.contains("&lt;a&amp;b&gt;") && !svg.contains("NaN"),
                "{svg}"
            );
            let points = svg.split("points=\"").nth(1).unwrap();
            let points = points.split('"').next().unwrap();
            assert_eq!(points.split(' ').count(), 3);
            for point in points.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y),
                    "{svg}"
                );
            }
        }
    }

    #[test]
    fn chart_without_points_is_nothing_and_one_of_zeros_is_a_chart() {
        assert_eq!(chart(Vec::new(), false), "");
        assert!(!chart(vec![(0.0, 0.0)], true).contains("NaN"));
        assert!(!chart(vec![(0.0, 0.0)], false).contains("NaN"));
    }
}
