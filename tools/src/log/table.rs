//! Tables for people.

use std::fmt::Write;

use super::INTO_STRING;

/// Left-aligned columns, as wide as their longest cell.
pub(crate) fn columns(out: &mut String, header: &[&str], rows: Vec<Vec<String>>) {
    let header = header
        .iter()
        .map(|name| (*name).to_owned())
        .collect::<Vec<_>>();
    let width = |at: usize| {
        let cells = std::iter::once(&header)
            .chain(&rows)
            .map(|row| row[at].len());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in std::iter::once(&header).chain(&rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end()).expect(INTO_STRING);
    }
}
