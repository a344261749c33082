//! Gathers the value of every option from its layers, and remembers where each came from: flag over environment over
//! file over default. It does not judge values; `mod.rs` does, in one place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::{Spanned, Value};

use super::forms::as_bool;
use super::options::{Kind, OPTIONS, Opt, Support, aliases, find};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    /// File and line.
    File(PathBuf, usize),
    /// The variable's name.
    Env(String),
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "environment, {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// One option's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// The value of every option, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<&'static str, Setting>);

impl Settings {
    /// The setting of an option of the table.
    pub(crate) fn get(&self, name: &str) -> &Setting {
        self.0
            .get(name)
            .expect("each option of the table has a value")
    }
}

/// Adds the flag of every option to a subcommand.
pub(crate) fn add_flags(mut command: Command) -> Command {
    command = command.arg(
        Arg::new("config-file")
            .long("config-file")
            .value_name("FILE")
            .overrides_with("config-file")
            .help("TOML file whose keys are the names of the flags [env: FLOTILLA_CONFIG_FILE]"),
    );
    for opt in OPTIONS {
        let mut help = opt.help.to_owned();
        if !opt.default.is_empty() {
            help.push_str(&format!(" [default: {}]", opt.default));
        }
        let arg = Arg::new(opt.name)
            .long(opt.name)
            .value_name("VALUE")
            .aliases(aliases(opt.name))
            .help(help);
        let arg = match opt.support {
            Support::Idle(..) => arg.help_heading("Accepted as etcd has them, without effect"),
            Support::Full | Support::Only(..) => arg,
        };
        command = command.arg(match opt.kind {
            // A value below zero is refused for what it says, not taken for a flag. The last one counts, as in Go.
            Kind::Text => arg.allow_negative_numbers(true).overrides_with(opt.name),
            Kind::List => arg.action(ArgAction::Append),
            Kind::Bool => arg
                .overrides_with(opt.name)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        });
    }
    command
}

/// etcd's variable for a configuration file, which is written in another language than ours.
const ETCD_CONFIG_FILE: &str = "ETCD_CONFIG_FILE";

/// Reads all layers. `env` is the environment, given so that a test can choose it. Variables of etcd that are empty do not
/// count, as in etcd.
pub(crate) fn gather(
    flags: &ArgMatches,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Settings, String> {
    let env =
        |name: &str| env(name).filter(|value| !name.starts_with("ETCD_") || !value.is_empty());
    let env_text = |name: &str| match env(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(format!("environment, {name}: expected UTF-8")),
    };
    if env(ETCD_CONFIG_FILE).is_some() {
        return Err(format!(
            "environment, {ETCD_CONFIG_FILE}: a configuration file of etcd, in YAML, cannot be read; write its settings to \
             a TOML file with the same keys, name that in FLOTILLA_CONFIG_FILE, and unset {ETCD_CONFIG_FILE}"
        ));
    }
    let file = match flags.get_one::<String>("config-file") {
        Some(path) => Some(path.clone()),
        None => env_text("FLOTILLA_CONFIG_FILE")?,
    };
    let file = file
        .map(|path| read_file(Path::new(&path)))
        .transpose()?
        .unwrap_or_default();
    let mut settings = BTreeMap::new();
    for opt in OPTIONS {
        let given = flags.get_many::<String>(opt.name);
        let flag = given.map(|values| {
            let values: Vec<_> = values.map(String::as_str).collect();
            (values.join(","), Origin::Flag)
        });
        let from_env = || -> Result<_, String> {
            for name in opt.env_names() {
                if let Some(value) = env_text(&name)? {
                    return Ok(Some((value, Origin::Env(name))));
                }
            }
            Ok(None)
        };
        let (value, origin) = match flag {
            Some(found) => found,
            None => match from_env()? {
                Some(found) => found,
                None => match file.get(opt.name) {
                    Some(setting) => (setting.value.clone(), setting.origin.clone()),
                    None => (opt.default.to_owned(), Origin::Default),
                },
            },
        };
        let value = match opt.kind {
            Kind::Bool => as_bool(value),
            Kind::Text | Kind::List => value,
        };
        settings.insert(opt.name, Setting { value, origin });
    }
    Ok(Settings(settings))
}

fn read_file(path: &Path) -> Result<BTreeMap<&'static str, Setting>, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("configuration file {}: {error}", path.display()))?;
    parse_file(path, &text)
}

fn parse_file(path: &Path, text: &str) -> Result<BTreeMap<&'static str, Setting>, String> {
    let table: BTreeMap<String, Spanned<Value>> = toml::from_str(text)
        .map_err(|error| format!("configuration file {}: {error}", path.display()))?;
    let mut settings = BTreeMap::new();
    for (key, value) in table {
        let line = text[..value.span().start].matches('\n').count() + 1;
        let at = format!("{}:{line}", path.display());
        let opt = find(&key).ok_or_else(|| match closest(&key) {
            Some(near) => format!("{at}: unknown key {key:?}; did you mean {near:?}"),
            None => format!("{at}: unknown key {key:?}; `flotilla server --help` lists the keys"),
        })?;
        let value = file_value(value.into_inner()).map_err(|found| {
            format!(
                "{at}: {key}: expected text, a number, true, false or a list of text, found {found}"
            )
        })?;
        let origin = Origin::File(path.to_owned(), line);
        settings.insert(opt.name, Setting { value, origin });
    }
    Ok(settings)
}

/// A value as a flag would have it; a list is joined by commas.
fn file_value(value: Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        Value::Array(items) => {
            let texts: Result<Vec<String>, _> = items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(other.type_str()),
                })
                .collect();
            Ok(texts?.join(","))
        }
        other => Err(other.type_str()),
    }
}

/// The option whose name is nearest to a mistyped one, if any is near.
fn closest(key: &str) -> Option<&'static str> {
    let key = key.replace('_', "-");
    let near = |opt: &&Opt| edit_distance(&key, opt.name);
    let best = OPTIONS.iter().min_by_key(near)?;
    (near(&best) <= 2).then_some(best.name)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> ArgMatches {
        add_flags(Command::new("server"))
            .try_get_matches_from(args)
            .unwrap()
    }

    #[test]
    fn gather_all_layers_set_the_flag_wins_then_environment_then_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flotilla.toml");
        fs::write(
            &path,
            "# comment\nname = \"file\"\nmax-txn-ops = 7\nlog-level = \"warn\"\n",
        )
        .unwrap();
        let path = path.to_str().unwrap();
        let flags = flags(&["server", "--config-file", path, "--name", "flag"]);
        let env = |name: &str| match name {
            "FLOTILLA_NAME" | "FLOTILLA_MAX_TXN_OPS" => Some(OsString::from("9")),
            _ => None,
        };
        let settings = gather(&flags, env).unwrap();
        let get = |name: &str| {
            let setting = settings.get(name);
            (setting.value.clone(), setting.origin.to_string())
        };
        assert_eq!(get("name"), ("flag".into(), "flag".into()));
        assert_eq!(
            get("max-txn-ops"),
            ("9".into(), "environment, FLOTILLA_MAX_TXN_OPS".into())
        );
        assert_eq!(get("log-level"), ("warn".into(), format!("{path}:4")));
        assert_eq!(get("log-format"), ("text".into(), "default".into()));
    }

    #[test]
    fn gather_variables_of_etcd_count_where_ours_are_not_set() {
        let env = |name: &str| match name {
            "ETCD_NAME" => Some(OsString::from("theirs")),
            "ETCD_MAX_TXN_OPS" => Some(OsString::from("5")),
            "FLOTILLA_MAX_TXN_OPS" => Some(OsString::from("9")),
            _ => None,
        };
        let settings = gather(&flags(&["server"]), env).unwrap();
        let get = |name: &str| settings.get(name).origin.to_string();
        assert_eq!(settings.get("name").value, "theirs");
        assert_eq!(get("name"), "environment, ETCD_NAME");
        assert_eq!(settings.get("max-txn-ops").value, "9");
        assert_eq!(get("max-txn-ops"), "environment, FLOTILLA_MAX_TXN_OPS");
    }

    #[test]
    fn gather_empty_variable_of_etcd_does_not_count() {
        let env = |name: &str| match name {
            "ETCD_NAME" | "ETCD_CONFIG_FILE" | "FLOTILLA_DATA_DIR" => Some(OsString::new()),
            _ => None,
        };
        let settings = gather(&flags(&["server"]), env).unwrap();
        assert_eq!(settings.get("name").value, "default");
        assert_eq!(settings.get("data-dir").value, "");
    }

    #[test]
    fn gather_flag_given_twice_the_last_one_counts_but_keyspaces_stay() {
        let args = [
            "server",
            "--name=a",
            "--auto-tls",
            "--keyspace=a=http://a:1",
            "--name=b",
            "--auto-tls=F",
            "--keyspace=b=http://b:1",
            "--experimental-max-learners=2",
            "--max-learners=3",
        ];
        let settings = gather(&flags(&args), |_| None).unwrap();
        let get = |name: &str| settings.get(name).value.as_str();
        assert_eq!(get("name"), "b");
        assert_eq!(get("auto-tls"), "false");
        assert_eq!(get("max-learners"), "3");
        assert_eq!(get("keyspace"), "a=http://a:1,b=http://b:1");
    }

    #[test]
    fn gather_configuration_file_of_etcd_is_refused_not_ignored() {
        let env = |name: &str| (name == "ETCD_CONFIG_FILE").then(|| OsString::from("etcd.yaml"));
        let error = gather(&flags(&["server"]), env).unwrap_err();
        assert!(error.contains("FLOTILLA_CONFIG_FILE"), "{error}");
    }

    #[test]
    fn parse_file_unknown_key_names_line_and_nearest_key() {
        let error =
            parse_file(Path::new("f.toml"), "name = \"a\"\ndata_dri = \"b\"\n").unwrap_err();
        assert_eq!(
            error,
            "f.toml:2: unknown key \"data_dri\"; did you mean \"data-dir\""
        );
    }

    #[test]
    fn parse_file_list_is_joined_and_table_is_refused() {
        let text = "listen-client-urls = [\"http://a:1\", \"http://b:2\"]";
        let settings = parse_file(Path::new("f"), text).unwrap();
        assert_eq!(
            settings["listen-client-urls"].value,
            "http://a:1,http://b:2"
        );
        assert!(parse_file(Path::new("f"), "[name]\nx = 1\n").is_err());
    }

    #[test]
    fn flags_boolean_without_value_means_true() {
        let flags = flags(&["server", "--auto-tls", "--name", "x"]);
        assert_eq!(
            gather(&flags, |_| None).unwrap().get("auto-tls").value,
            "true"
        );
    }
}
