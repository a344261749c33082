//! What etcd 3.6 says of a downgrade that cannot be. This version keeps no data that an older etcd reads, so no target is
//! one: what remains is to say it in etcd's words.

use super::pb;
use crate::ApiError;
use pb::downgrade_request::DowngradeAction;

pub(super) fn refusal(request: &pb::DowngradeRequest) -> ApiError {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Validate | DowngradeAction::Enable) if is_version(&request.version) => {
            ApiError::InvalidDowngradeTargetVersion
        }
        Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
            ApiError::WrongDowngradeVersionFormat
        }
        Ok(DowngradeAction::Cancel) => ApiError::NoInflightDowngrade,
        Err(_) => ApiError::UnknownMethod,
    }
}

/// `3.5` or `3.5.0`; what follows the last number with a dash or a plus does not count.
fn is_version(text: &str) -> bool {
    let numbers = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = numbers.split('.').collect();
    let is_number = |part: &&str| {
        part.bytes().all(|digit| digit.is_ascii_digit()) && part.parse::<i64>().is_ok()
    };
    let is_full = parts.len() == 3 || (parts.len() == 2 && numbers == text);
    is_full && parts.iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_downgrade_is_refused_in_the_words_of_etcd() {
        use ApiError as E;
        use DowngradeAction::{Cancel, Enable, Validate};
        for (action, version, expected) in [
            (Validate, "3.5.0", E::InvalidDowngradeTargetVersion),
            (Validate, "3.5", E::InvalidDowngradeTargetVersion),
            (Enable, "3.6.0", E::InvalidDowngradeTargetVersion),
            (Enable, "3.5.0-rc.1", E::InvalidDowngradeTargetVersion),
            (Validate, "", E::WrongDowngradeVersionFormat),
            (Validate, "3", E::WrongDowngradeVersionFormat),
            (Validate, "v3.5.0", E::WrongDowngradeVersionFormat),
            (Enable, "3.x", E::WrongDowngradeVersionFormat),
            (Enable, "3.5.0.1", E::WrongDowngradeVersionFormat),
            (Enable, "3..5", E::WrongDowngradeVersionFormat),
            (Cancel, "", E::NoInflightDowngrade),
        ] {
            let request = pb::DowngradeRequest {
                action: action.into(),
                version: version.to_owned(),
            };
            assert_eq!(refusal(&request), expected, "{action:?} {version:?}");
        }
        let unknown = pb::DowngradeRequest {
            action: 7,
            version: String::new(),
        };
        assert_eq!(refusal(&unknown), E::UnknownMethod);
    }
}
