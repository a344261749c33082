//! The table that the suite prints.

use std::fmt;

use crate::bench::compare::{Ratios, median};
use crate::failure::Failure;

/// What a row should show.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim {
    /// Ours over the peer's is at least that.
    AtLeast(f64),
    /// It is at most that.
    AtMost(f64),
    /// Our figure is below that.
    Below(f64, &'static str),
    None,
}

/// A measured row.
pub(super) struct Line {
    pub(super) work: String,
    /// The figures of each round, and their unit.
    pub(super) peer: Vec<f64>,
    pub(super) ours: Vec<f64>,
    pub(super) unit: &'static str,
    pub(super) ratios: Option<Ratios>,
    pub(super) aim: Aim,
    /// What the load generator itself took, in microseconds of CPU for a request to the peer and to us.
    pub(super) client_us: Option<(f64, f64)>,
    /// Requests that failed, and events that are missing.
    pub(super) faults: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Table {
    pub(super) lines: Vec<Line>,
    /// What was not measured, and why.
    pub(super) left_out: Vec<String>,
}

impl Table {
    /// Fails if requests failed: then figures say little.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        let faulty: Vec<String> = self
            .lines
            .iter()
            .filter(|line| line.faults > 0)
            .map(|line| format!("{} ({})", line.work, line.faults))
            .collect();
        if faulty.is_empty() {
            return Ok(());
        }
        Err(Failure::Failed(format!(
            "requests failed, or events are missing: {}",
            faulty.join(", ")
        )))
    }
}

fn figure(values: &[f64], unit: &str) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    let value = median(values);
    match value {
        v if v >= 1e3 => format!("{v:.0} {unit}"),
        v if v >= 10.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.3} {unit}"),
    }
}

impl Line {
    fn aim(&self) -> String {
        let ratio = self.ratios.as_ref().map(|ratios| ratios.median);
        let ours = (!self.ours.is_empty()).then(|| median(&self.ours));
        let (text, is_met) = match self.aim {
            Aim::None => return "-".to_owned(),
            Aim::AtLeast(aim) => (format!("at least {aim}"), ratio.map(|ratio| ratio >= aim)),
            Aim::AtMost(aim) => (format!("at most {aim}"), ratio.map(|ratio| ratio <= aim)),
            Aim::Below(aim, unit) => (format!("below {aim} {unit}"), ours.map(|ours| ours < aim)),
        };
        let verdict = match is_met {
            None => "not measured",
            Some(true) => "met",
            Some(false) => "missed",
        };
        format!("{text}: {verdict}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| work | peer | ours | ours over peer: median [95 % of the mean] (rounds) | aim | client, us of CPU per request: peer, ours |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for line in &self.lines {
            let ratios = line.ratios.as_ref();
            let ratios = ratios.map_or_else(|| "-".to_owned(), ToString::to_string);
            let client = line.client_us;
            let client = client.map_or_else(
                || "-".to_owned(),
                |(peer, ours)| format!("{peer:.1}, {ours:.1}"),
            );
            let faults = match line.faults {
                0 => String::new(),
                n => format!(" ({n} FAILED)"),
            };
            writeln!(
                f,
                "| {}{faults} | {} | {} | {ratios} | {} | {client} |",
                line.work,
                figure(&line.peer, line.unit),
                figure(&line.ours, line.unit),
                line.aim()
            )?;
        }
        if !self.left_out.is_empty() {
            writeln!(f)?;
        }
        for why in &self.left_out {
            writeln!(f, "- Left out: {why}.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(aim: Aim, ratio: f64) -> Line {
        Line {
            work: "put".to_owned(),
            peer: vec![1.0, 2.0, 3.0],
            ours: vec![4_000.0],
            unit: "/s",
            ratios: Some(Ratios::new(vec![ratio])),
            aim,
            client_us: Some((1.0, 2.0)),
            faults: 0,
        }
    }

    #[test]
    fn table_says_which_aims_are_met() {
        let aims = [
            (Aim::AtLeast(1.9), 1.9, "at least 1.9: met"),
            (Aim::AtLeast(1.9), 1.8, "at least 1.9: missed"),
            (Aim::AtMost(0.6), 0.5, "at most 0.6: met"),
            (Aim::Below(50.0, "ms"), 0.1, "below 50 ms: missed"),
            (Aim::None, 0.1, "-"),
        ];
        for (aim, ratio, expected) in aims {
            assert_eq!(line(aim, ratio).aim(), expected);
        }
        let table = Table {
            lines: vec![line(Aim::AtLeast(1.9), 2.0)],
            left_out: vec!["memory: no --pids".to_owned()],
        };
        let text = table.to_string();
        assert!(
            text.contains(
                "| put | 2.000 /s | 4000 /s | 2.00 (2.00) | at least 1.9: met | 1.0, 2.0 |"
            ),
            "{text}"
        );
        assert!(text.ends_with("- Left out: memory: no --pids.\n"), "{text}");
        table.judge().unwrap();
    }

    #[test]
    fn table_with_failed_requests_says_so_and_fails() {
        let table = Table {
            lines: vec![Line {
                faults: 3,
                ..line(Aim::None, 1.0)
            }],
            left_out: Vec::new(),
        };
        assert!(table.to_string().contains("| put (3 FAILED) |"));
        assert!(table.judge().is_err());
    }
}
