//! Histograms of each second as a log that HdrHistogram's tools read (V2, compressed), tagged by endpoint and method.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::recorded::Seen;
use crate::failure::Failure;

const LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// A log that is being written.
pub(super) struct HdrLog {
    path: PathBuf,
    begun: Instant,
    file: BufWriter<File>,
    serializer: V2DeflateSerializer,
}

impl HdrLog {
    pub(super) fn create(path: &Path, title: &str) -> Result<Self, Failure> {
        let wrong = |error| failed(path, error);
        let mut file = BufWriter::new(File::create(path).map_err(wrong)?);
        let mut serializer = V2DeflateSerializer::new();
        let now = SystemTime::now();
        IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment(&format!("flotilla bench {title}; values are nanoseconds"))
            .with_start_time(now)
            .with_base_time(now)
            .begin_log_with(&mut file, &mut serializer)
            .map_err(wrong)?;
        file.write_all(LEGEND.as_bytes()).map_err(wrong)?;
        Ok(Self {
            path: path.to_owned(),
            begun: Instant::now(),
            file,
            serializer,
        })
    }

    /// Writes what was seen in some time, a line for each method.
    pub(super) fn write(
        &mut self,
        label: &str,
        from: Instant,
        took: Duration,
        seen: &Seen,
    ) -> Result<(), Failure> {
        let mut log = IntervalLogWriterBuilder::new()
            .begin_log_with(&mut self.file, &mut self.serializer)
            .map_err(|error| failed(&self.path, error))?;
        for (method, histogram) in &seen.latency {
            let tag = format!("{label}/{}", method.name()).replace([' ', ','], "_");
            let start = from.saturating_duration_since(self.begun);
            log.write_histogram(histogram, start, took, Tag::new(&tag))
                .map_err(|error| failed(&self.path, error))?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| failed(&self.path, error))
    }
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("writing {}", path.display()), error)
}
