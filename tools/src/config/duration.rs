//! Durations as etcd's flags have them, which are Go's: `300ms`, `1.5h`, `1h30m`.

use std::time::Duration;

/// Nanoseconds of each unit.
const UNITS: [(&str, f64); 7] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Reads a duration that is not negative; none when it is not one, or longer than Go has them: 292 years.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, next) = after.split_at(letters.unwrap_or(after.len()));
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum += number.parse::<f64>().ok()? * size;
        rest = next;
    }
    let longest = Duration::from_nanos(i64::MAX.unsigned_abs());
    let read = Duration::try_from_secs_f64(sum / 1e9).ok()?;
    (!text.is_empty() && read <= longest).then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let table = [
            ("0", 0),
            ("0s", 0),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            (".5s", 500),
            ("72h", 259_200_000),
            ("1h1m1s1ms", 3_661_001),
        ];
        for (text, ms) in table {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse("7ns"), Some(Duration::from_nanos(7)));
        for text in [
            "", "5", "h", "1d", "-1s", "1h-1m", "1..5s", "s1", "9999999h", "1 h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
