//! Flags as etcd's users write them: Go's flags take one dash as well as two.

use std::ffi::OsString;

use super::options::{ALIASES, OPTIONS};

/// The names of flags that are in no table of options.
const OTHERS: &[&str] = &["config-file", "help", "version"];

/// Gives the flags of `flotilla server` and `flotilla config` the second dash that they may lack; what is no name of an option
/// stays as it is.
pub(crate) fn with_two_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let takes_options = args
        .get(1)
        .is_some_and(|arg| arg == "server" || arg == "config");
    let end = args.iter().position(|arg| arg == "--");
    let end = end.unwrap_or(args.len());
    if takes_options {
        for arg in &mut args[..end] {
            if is_option(arg) {
                let mut longer = OsString::from("-");
                longer.push(&*arg);
                *arg = longer;
            }
        }
    }
    args
}

/// One dash, and the name of an option.
fn is_option(arg: &OsString) -> bool {
    let Some(rest) = arg.to_str().and_then(|arg| arg.strip_prefix('-')) else {
        return false;
    };
    let name = rest.split_once('=').map_or(rest, |(name, _)| name);
    let options = OPTIONS.iter().map(|opt| opt.name);
    let aliases = ALIASES.iter().map(|(alias, _)| *alias);
    options
        .chain(aliases)
        .chain(OTHERS.iter().copied())
        .any(|known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Vec<String> {
        let args = with_two_dashes(args.iter().map(OsString::from));
        args.into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[test]
    fn one_dash_is_as_good_as_two_for_options_and_nothing_else() {
        for (args, expected) in [
            (
                &["flotilla", "server", "-name", "a", "-data-dir=x"][..],
                &["flotilla", "server", "--name", "a", "--data-dir=x"][..],
            ),
            (
                &["flotilla", "server", "-experimental-max-learners", "2"],
                &["flotilla", "server", "--experimental-max-learners", "2"],
            ),
            (
                &["flotilla", "config", "show", "-config-file", "f"],
                &["flotilla", "config", "show", "--config-file", "f"],
            ),
            // Values, short flags, mistakes, and what comes after the flags.
            (
                &[
                    "flotilla",
                    "server",
                    "--quota-backend-bytes",
                    "-1",
                    "-h",
                    "-nam",
                ],
                &[
                    "flotilla",
                    "server",
                    "--quota-backend-bytes",
                    "-1",
                    "-h",
                    "-nam",
                ],
            ),
            (
                &["flotilla", "server", "--", "-name"],
                &["flotilla", "server", "--", "-name"],
            ),
            (
                &["flotilla", "log", "show", "-name"],
                &["flotilla", "log", "show", "-name"],
            ),
            (&["flotilla"], &["flotilla"]),
        ] {
            assert_eq!(given(args), expected);
        }
    }
}
