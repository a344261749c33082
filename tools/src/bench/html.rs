//! The report as one page with plots: no script, nothing from elsewhere.

use std::fmt::Write;

use super::client::Method;
use super::collect::{Point, quantile_ms};
use super::report::{Document, Side, percentiles};
use super::svg::{Chart, Line, colour, escape};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
pre{background:#f4f4f4;padding:.8em;overflow-x:auto;font-size:13px}\
svg{width:100%;height:auto;margin:.6em 0}svg text{font:12px system-ui,sans-serif;fill:#444}\
svg .title{font-weight:600;font-size:14px}svg .y{text-anchor:end}svg .x{text-anchor:middle}\
.grid{stroke:#ddd}polyline{fill:none;stroke-width:1.6}\
.key span{display:inline-block;width:1em;height:.3em;margin:0 .4em .2em 1em}";

/// Percentiles are drawn by how many nines they have: up to five.
const NINES_MAX: u32 = 5;
const STEPS_PER_NINE: u32 = 20;

/// The whole page.
pub(super) fn page(document: &Document<'_>, sides: &[Side]) -> String {
    let title = format!("flotilla bench {}", document.workload);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escape(&document.machine.to_string())
    );
    let _ = writeln!(
        page,
        "<p>{} clients, {} connections, {} keys of {} bytes ({}), values of {} random bytes, warm-up of {} s left out.</p>",
        document.clients,
        document.conns,
        document.key_space,
        document.key_size,
        document.distribution,
        document.val_size,
        document.warm_up_seconds
    );
    page.push_str("<p class=\"key\">");
    for (number, side) in sides.iter().enumerate() {
        let _ = write!(
            page,
            "<span style=\"background:{}\"></span>{}",
            colour(number),
            escape(&side.name)
        );
    }
    page.push_str("</p>\n");
    page.push_str(&over_time(
        document,
        "requests per second",
        &[|point| point.per_second],
    ));
    if document.rounds.iter().any(|round| round.events.is_some()) {
        page.push_str(&over_time(
            document,
            "events per second",
            &[|point| point.events_per_second],
        ));
    }
    let tails: [fn(&Point) -> f64; 2] = [|point| point.ms_p50, |point| point.ms_p99];
    page.push_str(&over_time(
        document,
        "latency in ms: p50, and p99 dashed",
        &tails,
    ));
    page.push_str(&by_percentile(sides).draw());
    let _ = writeln!(page, "<pre>{}</pre>", escape(&percentiles(sides)));
    if let Some(comparison) = document.comparison {
        let _ = writeln!(page, "<pre>{}</pre>", escape(&comparison.to_string()));
    }
    page.push_str("<pre>");
    for round in document.rounds {
        page.push_str(&escape(&round.to_string()));
    }
    for checked in document.read_back {
        let _ = writeln!(page, "{}", escape(&checked.summary()));
        for key in &checked.lost_keys {
            let _ = writeln!(page, "  {}", escape(key));
        }
    }
    page.push_str("</pre>\n</body></html>\n");
    page
}

/// Figures over time: a line for each round and figure, those after the first dashed.
fn over_time(document: &Document<'_>, title: &str, figures: &[fn(&Point) -> f64]) -> String {
    let lines = document.rounds.iter().flat_map(|round| {
        figures.iter().enumerate().map(|(number, figure)| Line {
            colour: round.side,
            is_dashed: number > 0,
            points: round
                .points
                .iter()
                .map(|point| (point.second, figure(point)))
                .collect(),
        })
    });
    Chart {
        title: title.to_owned(),
        x_label: "seconds since the warm-up; a line for each round".to_owned(),
        x_ticks: Vec::new(),
        is_log: false,
        lines: lines.collect(),
    }
    .draw()
}

/// Latency by percentile, of all rounds together; of events dashed.
fn by_percentile(sides: &[Side]) -> Chart {
    let lines = sides.iter().enumerate().flat_map(|(number, side)| {
        side.seen.latency.iter().map(move |(method, latency)| Line {
            colour: number,
            is_dashed: *method == Method::Watch,
            points: (0..=NINES_MAX * STEPS_PER_NINE)
                .map(|step| f64::from(step) / f64::from(STEPS_PER_NINE))
                .map(|nines| (nines, 1.0 - 10f64.powf(-nines)))
                // Beyond it every value is the maximum.
                .filter(|(_, quantile)| (1.0 - quantile) * latency.len() as f64 >= 1.0)
                .map(|(nines, quantile)| (nines, quantile_ms(latency, quantile)))
                .collect(),
        })
    });
    let names = ["0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
    let ticks = (0..=NINES_MAX).map(f64::from).zip(names.map(str::to_owned));
    Chart {
        title: "latency in ms by percentile".to_owned(),
        x_label: "percentile".to_owned(),
        x_ticks: ticks.collect(),
        is_log: true,
        lines: lines.collect(),
    }
}
