//! The raw values of a configuration, by path, each with its origin.

use std::{collections::BTreeMap, ffi::OsString, fmt, path::Path, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};

/// Begins the name of every environment variable that is ours to understand.
const PREFIX: &str = "ROOKERY__";

/// Values by path (`gateway.listen`).
pub(super) type Values = BTreeMap<String, Given>;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// A value before anyone knows what it should be.
#[derive(Debug)]
pub(super) enum Value {
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Whole(i64),
    /// A TOML boolean.
    Flag(bool),
    /// A TOML array.
    List(Vec<Value>),
    /// An empty table, which holds no value to be wrong about but may have a wrong name.
    Section,
    /// What no key takes: a float, a date.
    Other(String),
    /// An environment variable, whose text may stand for any of these.
    Variable(String),
}

impl Value {
    /// Whether it is the empty text, which stands for "not given" wherever nothing need be given.
    pub(super) fn is_blank(&self) -> bool {
        matches!(self, Self::Text(text) | Self::Variable(text) if text.is_empty())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Variable(text) => write!(f, "{text:?}"),
            Self::Whole(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Section => f.write_str("a section"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Reads a TOML text; `path` names it in errors.
pub(super) fn from_toml(path: &Path, text: &str) -> Result<Values, Box<ConfigError>> {
    let path: Arc<Path> = path.into();
    let origin = |offset: usize| Origin::File { path: path.clone(), line: text[..offset].matches('\n').count() + 1 };
    let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: origin(error.span().map_or(0, |span| span.start.min(text.len()))),
        message: error.message().to_owned(),
    })?;
    let mut values = Values::new();
    flatten("", root.get_ref(), &origin, &mut values);
    Ok(values)
}

fn flatten(prefix: &str, table: &DeTable<'_>, origin: &impl Fn(usize) -> Origin, values: &mut Values) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten(&path, inner, origin, values),
            other => {
                let given = Given { origin: origin(key.span().start), value: Value::from_toml(other) };
                values.insert(path, given);
            }
        }
    }
}

impl Value {
    fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).map_or_else(|_| Self::Other(number.to_string()), Self::Whole)
            }
            DeValue::Boolean(flag) => Self::Flag(*flag),
            DeValue::Float(number) => Self::Other(number.to_string()),
            DeValue::Datetime(time) => Self::Other(time.to_string()),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::from_toml(item.get_ref())).collect()),
            DeValue::Table(_) => Self::Section,
        }
    }
}

/// Takes the variables that are ours out of an environment.
pub(super) fn from_env(variables: impl IntoIterator<Item = (OsString, OsString)>) -> (Values, Vec<ConfigError>) {
    let mut values = Values::new();
    let mut errors = Vec::new();
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let path = rest.to_lowercase().replace("__", ".");
        let origin = Origin::Env { name: name.clone() };
        if name != variable(&path) {
            errors.push(ConfigError::UnknownKey { origin, key: name, value: None, nearest: Some(variable(&path)) });
            continue;
        }
        match value.into_string() {
            Ok(text) => {
                let value = Value::Variable(text);
                values.insert(path, Given { origin, value });
            }
            Err(_) => errors.push(ConfigError::BadValue {
                origin,
                key: path,
                value: "<not UTF-8>".to_owned(),
                wanted: "UTF-8".into(),
                nearest: None,
            }),
        }
    }
    (values, errors)
}

/// The environment variable that overrides a path.
pub(crate) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.to_uppercase().replace('.', "__"))
}

/// The path of `name` within a section; the root has no name.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
