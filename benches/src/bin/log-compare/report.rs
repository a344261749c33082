//! The table, the ratios, and where the table is kept.

use std::fmt::Write as _;
use std::path::Path;

use crate::Failure;
use crate::measure::{Point, Series};
use crate::reopen::Reopened;

const BEGIN: &str = "<!-- log-compare: begin -->";
const END: &str = "<!-- log-compare: end -->";

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 {
        figures[middle]
    } else {
        (figures[middle - 1] + figures[middle]) / 2.0
    }
}

/// The median over the rounds of the one's figure divided by the other's of the same round.
fn ratio(over: &[f64], under: &[f64]) -> f64 {
    median(over.iter().zip(under).map(|(o, u)| o / u).collect())
}

fn series<'a>(point: &'a Point, engine: &str) -> Option<&'a Series> {
    point.iter().find(|series| series.engine == engine)
}

/// A number with commas between thousands.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The results in Markdown.
pub(crate) fn table(points: &[(&str, Point)], reopened: Option<&Reopened>) -> String {
    let mut out = String::new();
    if !points.is_empty() {
        out.push_str(
            "| workload | engine | entries/s | ours over it | p50 | p99 | p99.9 |\n|---|---|---|---|---|---|---|\n",
        );
    }
    for (name, point) in points {
        let ours = &point[0];
        for series in point {
            let times: Vec<_> = [0.5, 0.99, 0.999]
                .iter()
                .map(|q| format!("{} us", series.times.value_at_quantile(*q) / 1000))
                .collect();
            let _ = writeln!(
                out,
                "| {name} | {} | {} | {:.2} | {} |",
                series.engine,
                thousands(median(series.rates.clone())),
                ratio(&ours.rates, &series.rates),
                times.join(" | "),
            );
        }
    }
    if let Some(reopened) = reopened {
        let (ours, peer) = (
            median(reopened.ours.clone()),
            median(reopened.raft_engine.clone()),
        );
        let _ = write!(
            out,
            "\nReopening {} entries of 256 B: ours {:.0} ms, raft-engine {:.0} ms.\n",
            thousands(reopened.entries as f64),
            ours * 1000.0,
            peer * 1000.0,
        );
    }
    out
}

/// One line per target; above 1 is in our favour.
pub(crate) fn ratios(points: &[(&str, Point)], reopened: Option<&Reopened>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, point) in points {
        let (name, other) = match *name {
            "one-writer" => ("one-writer-vs-limit", "limit"),
            name => (name, "raft-engine"),
        };
        if let Some(other) = series(point, other) {
            let value = ratio(&point[0].rates, &other.rates);
            lines.push(format!("ratio {name} {value:.3}"));
        }
    }
    if let Some(reopened) = reopened {
        let value = ratio(&reopened.raft_engine, &reopened.ours);
        lines.push(format!("ratio reopen {value:.3}"));
    }
    lines
}

/// Puts the table between the markers of a Markdown file.
pub(crate) fn write(path: &Path, table: &str) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)?;
    let missing = || format!("{} has no {BEGIN} … {END}", path.display());
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let text = format!("{before}{BEGIN}\nMeasured with {cpus} CPUs.\n\n{table}{END}{after}");
    Ok(std::fs::write(path, text)?)
}
