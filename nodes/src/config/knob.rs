//! A knob: a typed slot of the configuration that can be set from a raw value and shown again.
//!
//! Every section lists its knobs once, in [`Section::visit`]; reading, rendering and checking are visitors of that list.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use super::{error::Mismatch, source::Value};

/// A group of knobs with a name.
pub(super) trait Section {
    /// Shows every knob, then every section inside, to the visitor. A section may check its knobs against each other
    /// after it has shown them.
    fn visit(&mut self, visitor: &mut dyn Visitor);
}

/// Goes through the knobs of a configuration.
pub(super) trait Visitor {
    /// A knob of the current section.
    fn knob(&mut self, name: &'static str, knob: &mut dyn Knob);
    /// A section within the current one.
    fn section(&mut self, name: &'static str, section: &mut dyn Section);
    /// A knob that is fine by itself and wrong beside the others.
    fn misfit(&mut self, name: &'static str, mismatch: Mismatch);
}

/// A typed slot.
pub(super) trait Knob {
    /// Takes the value over, or leaves the slot as it is.
    fn set(&mut self, value: &Value) -> Result<(), Mismatch>;
    /// The current value as TOML.
    fn show(&self) -> String;
    /// Secrets are never shown, and may be given as `<key>_file`.
    fn is_secret(&self) -> bool {
        false
    }
    /// The last word of the knob's name, if it measures something.
    fn unit(&self) -> Option<&'static str> {
        None
    }
}

/// A yes or no.
pub(super) fn flag(slot: &mut bool) -> impl Knob {
    Flag(slot)
}

/// A whole number within bounds, of no unit.
pub(super) fn count<T: Whole>(slot: &mut T, range: RangeInclusive<u64>) -> impl Knob {
    Number { slot, range, unit: None }
}

/// A size in bytes within bounds.
pub(super) fn bytes<T: Whole>(slot: &mut T, range: RangeInclusive<u64>) -> impl Knob {
    Number { slot, range, unit: Some("bytes") }
}

/// A time in milliseconds within bounds.
pub(super) fn millis(slot: &mut Duration, range: RangeInclusive<u64>) -> impl Knob {
    Time { slot, range, unit: "ms", unit_ms: 1 }
}

/// A time in seconds within bounds.
pub(super) fn seconds(slot: &mut Duration, range: RangeInclusive<u64>) -> impl Knob {
    Time { slot, range, unit: "s", unit_ms: 1_000 }
}

/// A time in days within bounds.
pub(super) fn days(slot: &mut Duration, range: RangeInclusive<u64>) -> impl Knob {
    Time { slot, range, unit: "days", unit_ms: 86_400_000 }
}

/// A type that knows its own text.
pub(super) fn text<T: FromStr<Err = Mismatch> + Display>(slot: &mut T) -> impl Knob {
    Text(slot)
}

/// As [`text`], but it need not be given; empty stands for none.
pub(super) fn optional_text<T: FromStr<Err = Mismatch> + Display>(slot: &mut Option<T>) -> impl Knob {
    OptionalText(slot)
}

/// Several of them; in the environment separated by commas.
pub(super) fn list<T: FromStr<Err: Into<Mismatch>> + Display>(slot: &mut Vec<T>) -> impl Knob {
    List(slot)
}

/// Free text that is not empty.
pub(super) fn words(slot: &mut String) -> impl Knob {
    Words { slot, may_be_empty: false }
}

/// Free text, possibly empty.
pub(super) fn optional_words(slot: &mut String) -> impl Knob {
    Words { slot, may_be_empty: true }
}

/// An address to listen on.
pub(super) fn address(slot: &mut SocketAddr) -> impl Knob {
    Address(slot)
}

/// An address to listen on that need not be given; empty stands for none.
pub(super) fn optional_address(slot: &mut Option<SocketAddr>) -> impl Knob {
    OptionalAddress(slot)
}

/// A file or folder.
pub(super) fn path(slot: &mut PathBuf) -> impl Knob {
    FilePath(slot)
}

/// A file that need not be given; empty stands for none.
pub(super) fn optional_path(slot: &mut Option<PathBuf>) -> impl Knob {
    OptionalPath(slot)
}

/// A secret that need not be given; empty stands for none.
pub(super) fn secret<T: FromStr<Err = Mismatch>>(slot: &mut Option<T>) -> impl Knob {
    Secret(slot)
}

/// An unsigned number of any width.
pub(super) trait Whole: Copy + TryFrom<u64> + TryInto<u64> {}
impl<T: Copy + TryFrom<u64> + TryInto<u64>> Whole for T {}

struct Flag<'a>(&'a mut bool);

impl Knob for Flag<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        *self.0 = match value {
            Value::Flag(flag) => *flag,
            Value::Variable(text) => text.parse().map_err(|_| Mismatch::none_of(&["true", "false"], text))?,
            _ => return Err(Mismatch::wanted("true or false")),
        };
        Ok(())
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

struct Number<'a, T> {
    slot: &'a mut T,
    range: RangeInclusive<u64>,
    unit: Option<&'static str>,
}

impl<T: Whole> Knob for Number<'_, T> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let wide = whole(value, &self.range)?;
        *self.slot = T::try_from(wide).ok().expect("the range of a knob lies within its type");
        Ok(())
    }

    fn show(&self) -> String {
        let wide: Option<u64> = (*self.slot).try_into().ok();
        wide.expect("no number of ours is wider than 64 bits").to_string()
    }

    fn unit(&self) -> Option<&'static str> {
        self.unit
    }
}

struct Time<'a> {
    slot: &'a mut Duration,
    range: RangeInclusive<u64>,
    unit: &'static str,
    unit_ms: u64,
}

impl Knob for Time<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        *self.slot = Duration::from_millis(whole(value, &self.range)? * self.unit_ms);
        Ok(())
    }

    fn show(&self) -> String {
        (self.slot.as_millis() / u128::from(self.unit_ms)).to_string()
    }

    fn unit(&self) -> Option<&'static str> {
        Some(self.unit)
    }
}

fn whole(value: &Value, range: &RangeInclusive<u64>) -> Result<u64, Mismatch> {
    let wanted = || Mismatch::wanted(format!("a whole number from {} to {}", range.start(), range.end()));
    let number = match value {
        Value::Whole(number) => i128::from(*number),
        Value::Variable(text) => text.trim().parse().map_err(|_| wanted())?,
        _ => return Err(wanted()),
    };
    match u64::try_from(number) {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(Mismatch {
            nearest: Some(if number < i128::from(*range.start()) { range.start() } else { range.end() }.to_string()),
            ..wanted()
        }),
    }
}

struct Text<'a, T>(&'a mut T);

impl<T: FromStr<Err = Mismatch> + Display> Knob for Text<'_, T> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        *self.0 = string(value)?.parse()?;
        Ok(())
    }

    fn show(&self) -> String {
        quoted(&self.0.to_string())
    }
}

struct OptionalText<'a, T>(&'a mut Option<T>);

impl<T: FromStr<Err = Mismatch> + Display> Knob for OptionalText<'_, T> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let text = string(value)?;
        *self.0 = if text.is_empty() { None } else { Some(text.parse()?) };
        Ok(())
    }

    fn show(&self) -> String {
        quoted(&self.0.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

struct List<'a, T>(&'a mut Vec<T>);

impl<T: FromStr<Err: Into<Mismatch>> + Display> Knob for List<'_, T> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let parse = |text: &str| text.parse().map_err(Into::into);
        *self.0 = match value {
            Value::List(items) => items.iter().map(|item| parse(string(item)?)).collect::<Result<_, _>>()?,
            Value::Variable(text) => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(parse).collect::<Result<_, _>>()?
            }
            _ => return Err(Mismatch::wanted("a list of strings")),
        };
        Ok(())
    }

    fn show(&self) -> String {
        let items: Vec<_> = self.0.iter().map(|item| quoted(&item.to_string())).collect();
        format!("[{}]", items.join(", "))
    }
}

struct Words<'a> {
    slot: &'a mut String,
    may_be_empty: bool,
}

impl Knob for Words<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let text = string(value)?;
        if text.is_empty() && !self.may_be_empty {
            return Err(Mismatch::wanted("some text"));
        }
        text.clone_into(self.slot);
        Ok(())
    }

    fn show(&self) -> String {
        quoted(self.slot)
    }
}

struct Address<'a>(&'a mut SocketAddr);

impl Knob for Address<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        *self.0 = socket_address(string(value)?)?;
        Ok(())
    }

    fn show(&self) -> String {
        quoted(&self.0.to_string())
    }
}

struct OptionalAddress<'a>(&'a mut Option<SocketAddr>);

impl Knob for OptionalAddress<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let text = string(value)?;
        *self.0 = if text.is_empty() { None } else { Some(socket_address(text)?) };
        Ok(())
    }

    fn show(&self) -> String {
        quoted(&self.0.map(|address| address.to_string()).unwrap_or_default())
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, Mismatch> {
    text.parse().map_err(|_| Mismatch {
        wanted: "an IP address and a port, such as 127.0.0.1:8080".into(),
        nearest: text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}")),
    })
}

struct FilePath<'a>(&'a mut PathBuf);

impl Knob for FilePath<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let text = string(value)?;
        if text.is_empty() {
            return Err(Mismatch::wanted("a path"));
        }
        *self.0 = text.into();
        Ok(())
    }

    fn show(&self) -> String {
        quoted(&self.0.to_string_lossy())
    }
}

struct OptionalPath<'a>(&'a mut Option<PathBuf>);

impl Knob for OptionalPath<'_> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        *self.0 = Some(string(value)?).filter(|text| !text.is_empty()).map(PathBuf::from);
        Ok(())
    }

    fn show(&self) -> String {
        quoted(&self.0.as_deref().map(|path| path.to_string_lossy()).unwrap_or_default())
    }
}

struct Secret<'a, T>(&'a mut Option<T>);

impl<T: FromStr<Err = Mismatch>> Knob for Secret<'_, T> {
    fn set(&mut self, value: &Value) -> Result<(), Mismatch> {
        let text = string(value)?;
        *self.0 = if text.is_empty() { None } else { Some(text.parse()?) };
        Ok(())
    }

    fn show(&self) -> String {
        quoted(if self.0.is_some() { "<set>" } else { "" })
    }

    fn is_secret(&self) -> bool {
        true
    }
}

fn string(value: &Value) -> Result<&str, Mismatch> {
    match value {
        Value::Text(text) | Value::Variable(text) => Ok(text),
        _ => Err(Mismatch::wanted("a string")),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
