//! Two servers beside each other: ratios of rounds that ran one after the other, and how sure they are.

use std::fmt;

use serde::Serialize;

use super::report::Round;

/// Two-sided 95 % points of Student's distribution, by degrees of freedom from 1 on.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];
/// With more degrees of freedom than the table has: a little wide.
const T_95_REST: f64 = 2.042;

/// Second server over first, of one figure.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ratios {
    pub(super) median: f64,
    /// Where the mean ratio is with 95 % confidence, if rounds are as good as independent; none of a single round.
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
    pub(super) rounds: Vec<f64>,
}

impl Ratios {
    pub(super) fn new(rounds: Vec<f64>) -> Self {
        let margin = margin(&rounds);
        Self {
            median: median(&rounds),
            low: margin.map(|(low, _)| low),
            high: margin.map(|(_, high)| high),
            rounds,
        }
    }
}

impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.median)?;
        if let (Some(low), Some(high)) = (self.low, self.high) {
            write!(f, " [{low:.2} .. {high:.2}]")?;
        }
        write!(f, " (")?;
        for (number, ratio) in self.rounds.iter().enumerate() {
            write!(f, "{}{ratio:.2}", if number == 0 { "" } else { " " })?;
        }
        write!(f, ")")
    }
}

/// The interval around the geometric mean, for ratios multiply.
fn margin(ratios: &[f64]) -> Option<(f64, f64)> {
    let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    if logs.len() < 2 || logs.iter().any(|log| !log.is_finite()) {
        return None;
    }
    let count = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / count;
    let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
    let t = T_95.get(logs.len() - 2).unwrap_or(&T_95_REST);
    let half = t * (squares / (count - 1.0) / count).sqrt();
    Some(((mean - half).exp(), (mean + half).exp()))
}

pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A figure of a round.
pub(super) type Figure = fn(&Round) -> Option<f64>;

/// What is compared.
const FIGURES: [(&str, Figure); 8] = [
    ("per second", |round| Some(round.per_second)),
    ("events per second", |round| {
        round.events.as_ref().map(|events| events.per_second)
    }),
    ("p50", |round| Some(round.latency_ms.p50)),
    ("p99", |round| Some(round.latency_ms.p99)),
    ("p99.9", |round| Some(round.latency_ms.p99_9)),
    ("longest gap", |round| Some(round.gap_ms_max)),
    ("server CPU", |round| {
        round
            .server
            .as_ref()
            .map(|server| server.cpu_us_per_request)
    }),
    ("peak memory", |round| {
        round.server.as_ref().map(|server| server.peak_mib)
    }),
];

/// A figure of one side's rounds.
pub(super) fn of_side(rounds: &[Round], side: usize, figure: Figure) -> Vec<f64> {
    let rounds = rounds.iter().filter(|round| round.side == side);
    rounds.filter_map(figure).collect()
}

/// Pairs the rounds of side 1 with those of side 0.
pub(super) fn ratios(rounds: &[Round], figure: Figure) -> Option<Ratios> {
    let (first, second) = (of_side(rounds, 0, figure), of_side(rounds, 1, figure));
    if first.is_empty() || first.len() != second.len() {
        return None;
    }
    let ratios = second.iter().zip(&first).map(|(b, a)| b / a).collect();
    Some(Ratios::new(ratios))
}

/// Second server over first, round by round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison(Vec<(&'static str, Ratios)>);

impl Comparison {
    pub(super) fn new(rounds: &[Round]) -> Self {
        let named = FIGURES.into_iter();
        let named = named.filter_map(|(name, figure)| Some((name, ratios(rounds, figure)?)));
        Self(named.collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(&'static str, Ratios)> {
        self.0.iter()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "second over first, median [95 % of the mean] (rounds):")?;
        for (name, ratios) in self.iter() {
            writeln!(f, "  {name:<17} {ratios}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_odd_and_even_counts_takes_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn margin_is_that_of_the_mean_of_the_logarithms() {
        // ln of 2, 4 and 8 over ln 2: mean 2, standard error 1 / sqrt(3), t of two degrees 4.303.
        let (low, high) = margin(&[2.0, 4.0, 8.0]).unwrap();
        let half = 4.303 / 3f64.sqrt();
        assert!((low.log2() - (2.0 - half)).abs() < 1e-9, "{low}");
        assert!((high.log2() - (2.0 + half)).abs() < 1e-9, "{high}");
        assert_eq!(
            margin(&[1.5, 1.5]),
            Some((1.5f64.ln().exp(), 1.5f64.ln().exp()))
        );
        assert_eq!(margin(&[1.5]), None);
        assert_eq!(margin(&[0.0, 1.0]), None);
    }

    #[test]
    fn ratios_show_median_margin_and_rounds() {
        let shown = Ratios::new(vec![1.0, 1.0, 1.0]).to_string();
        assert_eq!(shown, "1.00 [1.00 .. 1.00] (1.00 1.00 1.00)");
        assert_eq!(Ratios::new(vec![2.0]).to_string(), "2.00 (2.00)");
    }
}
