//! What the value of an option looks like that is read and changes nothing: a mistake in it is told all the same.

use super::duration;

/// The values that such an option may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A whole number from 0 on.
    Number,
    /// `true` or `false`.
    Flag,
    /// A duration as Go has them, or nothing.
    Duration,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Any text.
    Any,
}

impl Form {
    /// Whether a value is one of them.
    pub(super) fn allows(self, value: &str) -> bool {
        match self {
            Self::Number => value.parse::<u64>().is_ok(),
            Self::Flag => value.parse::<bool>().is_ok(),
            Self::Duration => value.is_empty() || duration::parse(value).is_some(),
            Self::OneOf(values) => values.contains(&value),
            Self::Any => true,
        }
    }

    /// What an error says was expected.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Number => "a number from 0 on".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Duration => "a duration such as 100ms".to_owned(),
            Self::OneOf(values) => values.join(" or "),
            Self::Any => "any text".to_owned(),
        }
    }
}

/// `true` or `false` for whatever Go's flags take for one of them; other text as it is.
pub(super) fn as_bool(value: String) -> String {
    match value.as_str() {
        "1" | "t" | "T" | "TRUE" | "True" => "true".to_owned(),
        "0" | "f" | "F" | "FALSE" | "False" => "false".to_owned(),
        _ => value,
    }
}
