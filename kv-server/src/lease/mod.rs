//! Deadlines, counted in ticks.
