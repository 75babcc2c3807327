//! Reading and rendering: the two ways through the list of knobs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{
    error::{ConfigError, Mismatch, Origin, nearest_word},
    knob::{Knob, Section, Visitor},
    source::{Given, Value, Values, join, variable},
};

/// Overwrites knobs with what the file and then the environment say, and remembers every mistake.
pub(super) struct Reader {
    layers: Vec<Values>,
    prefix: String,
    sections: BTreeSet<String>,
    /// The paths of all knobs; true: secret.
    knobs: BTreeMap<String, bool>,
    /// What each knob was last set to, for the checks of knobs against each other.
    set: BTreeMap<String, (Origin, String)>,
    errors: Vec<ConfigError>,
}

impl Reader {
    /// Later layers win.
    pub(super) fn new(layers: Vec<Values>) -> Self {
        Self {
            layers,
            prefix: String::new(),
            sections: BTreeSet::new(),
            knobs: BTreeMap::new(),
            set: BTreeMap::new(),
            errors: Vec::new(),
        }
    }

    /// The mistakes, once every knob has been visited: what is left over belongs to no knob.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        let mut reported = BTreeSet::new();
        for (path, given) in std::mem::take(&mut self.layers).into_iter().flatten() {
            if matches!(given.value, Value::Section) && self.sections.contains(&path) {
                continue;
            }
            let (culprit, error) = self.explain(&path, given);
            // One misspelled section is one mistake, however many keys it holds.
            if reported.insert(culprit) {
                self.errors.push(error);
            }
        }
        self.errors
    }

    /// Names the part of a path that is wrong, and how.
    fn explain(&self, path: &str, Given { origin, value }: Given) -> (String, ConfigError) {
        let misplaced = |key: &str, value: &str, wanted: &'static str| ConfigError::BadValue {
            origin: origin.clone(),
            key: key.to_owned(),
            value: value.to_owned(),
            wanted: wanted.into(),
            nearest: None,
        };
        if self.sections.contains(path) {
            return (path.to_owned(), misplaced(path, "a single value", "a section with keys"));
        }
        // The longest beginning of the path that exists, and the shortest that does not.
        let (mut known, mut unknown) = ("", path);
        for (end, _) in path.match_indices('.') {
            let beginning = &path[..end];
            if self.knobs.contains_key(beginning) {
                return (beginning.to_owned(), misplaced(beginning, "a section", "a single value"));
            }
            if !self.sections.contains(beginning) {
                unknown = beginning;
                break;
            }
            known = beginning;
        }
        let nearest = if unknown == path && !matches!(value, Value::Section) {
            self.nearest_knob(known, path)
        } else {
            nearest_word(unknown, self.sections.iter().map(String::as_str)).map(str::to_owned)
        };
        // A value is repeated only if it cannot be a secret under a misspelled name.
        let harmless = nearest.as_ref().is_some_and(|near| self.knobs.get(near) == Some(&false));
        let is_variable = matches!(origin, Origin::Env { .. });
        let spelled = |path: &str| {
            if is_variable { variable(path) } else { path.to_owned() }
        };
        let error = ConfigError::UnknownKey {
            origin,
            key: spelled(unknown),
            value: harmless.then(|| value.to_string()),
            nearest: nearest.as_deref().map(spelled),
        };
        (spelled(unknown), error)
    }

    /// Prefers a neighbour in the section, where a slip of the finger is likelier than a wrong section.
    fn nearest_knob(&self, section: &str, path: &str) -> Option<String> {
        let name = path.rsplit('.').next().unwrap_or(path);
        let inside = self
            .knobs
            .keys()
            .filter_map(|knob| match section {
                "" => Some(knob.as_str()),
                _ => knob.strip_prefix(section)?.strip_prefix('.'),
            })
            .filter(|rest| !rest.contains('.'));
        nearest_word(name, inside)
            .map(|found| join(section, found))
            .or_else(|| {
                let elsewhere = |knob: &&String| knob.rsplit('.').next() == Some(name);
                self.knobs.keys().find(elsewhere).cloned()
            })
            .or_else(|| nearest_word(path, self.knobs.keys().map(String::as_str)).map(str::to_owned))
    }

    fn set(&mut self, path: &str, knob: &mut dyn Knob, Given { origin, value }: Given) {
        let shown = if knob.is_secret() { "<hidden>".to_owned() } else { value.to_string() };
        match knob.set(&value) {
            Ok(()) => {
                self.set.insert(path.to_owned(), (origin, shown));
            }
            Err(Mismatch { wanted, nearest }) => {
                self.errors.push(ConfigError::BadValue { origin, key: path.to_owned(), value: shown, wanted, nearest })
            }
        }
    }

    /// A secret of one layer: given as it is, or by the file that holds it.
    fn secret(&mut self, path: &str, direct: Option<Given>, filed: Option<Given>) -> Option<Given> {
        match (direct, filed.filter(|filed| !filed.value.is_blank())) {
            (direct, None) => direct,
            (Some(direct), Some(_)) if !direct.value.is_blank() => {
                self.errors.push(ConfigError::GivenTwice { origin: direct.origin, key: path.to_owned() });
                None
            }
            (_, Some(filed)) => match read_secret(path, filed) {
                Ok(given) => Some(given),
                Err(error) => {
                    self.errors.push(*error);
                    None
                }
            },
        }
    }
}

fn read_secret(key: &str, Given { origin, value }: Given) -> Result<Given, Box<ConfigError>> {
    let (Value::Text(name) | Value::Variable(name)) = &value else {
        return Err(Box::new(ConfigError::BadValue {
            origin,
            key: file_key(key),
            value: value.to_string(),
            wanted: "a path".into(),
            nearest: None,
        }));
    };
    // Beside the configuration file if that names it, wherever the process was started.
    let folder = match &origin {
        Origin::File { path, .. } => path.parent().unwrap_or(Path::new("")),
        _ => Path::new(""),
    };
    let path: PathBuf = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => Err(Box::new(ConfigError::BadValue {
            origin,
            key: file_key(key),
            value: format!("{name:?}"),
            wanted: "a file that is not empty".into(),
            nearest: None,
        })),
        Ok(text) => {
            let text = text.trim_end_matches(['\r', '\n']);
            // No URL and no password begins with a byte order mark. The secret of a running cluster may: to the node that
            // was given such a file, the mark is part of it.
            let text = if key == "secret" { text } else { text.trim_start_matches('\u{FEFF}') };
            Ok(Given { origin, value: Value::Text(text.to_owned()) })
        }
        Err(source) => Err(Box::new(ConfigError::SecretUnreadable { origin, key: key.to_owned(), path, source })),
    }
}

fn file_key(key: &str) -> String {
    format!("{key}_file")
}

impl Visitor for Reader {
    fn knob(&mut self, name: &'static str, knob: &mut dyn Knob) {
        debug_assert!(knob.unit().is_none_or(|unit| name.split('_').any(|word| word == unit)), "{name} has its unit in its name");
        let path = join(&self.prefix, name);
        for layer in 0..self.layers.len() {
            let mut given = self.layers[layer].remove(&path);
            if knob.is_secret() {
                let filed = self.layers[layer].remove(&file_key(&path));
                given = self.secret(&path, given, filed);
            }
            if let Some(given) = given {
                self.set(&path, knob, given);
            }
        }
        if knob.is_secret() {
            self.knobs.insert(file_key(&path), true);
        }
        self.knobs.insert(path, knob.is_secret());
    }

    fn section(&mut self, name: &'static str, section: &mut dyn Section) {
        let path = join(&self.prefix, name);
        self.sections.insert(path.clone());
        let outer = std::mem::replace(&mut self.prefix, path);
        section.visit(self);
        self.prefix = outer;
    }

    fn misfit(&mut self, name: &'static str, Mismatch { wanted, nearest }: Mismatch) {
        let key = join(&self.prefix, name);
        let default = || (Origin::Default, "unset".to_owned());
        let (origin, value) = self.set.get(&key).cloned().unwrap_or_else(default);
        self.errors.push(ConfigError::BadValue { origin, key, value, wanted, nearest });
    }
}

/// Writes every knob with its present value as TOML, secrets as `<set>`.
#[derive(Default)]
pub(super) struct Renderer {
    out: String,
    prefix: String,
    /// The section whose heading was written last.
    heading: String,
}

impl Renderer {
    pub(super) fn finish(self) -> String {
        self.out
    }
}

impl Visitor for Renderer {
    fn knob(&mut self, name: &'static str, knob: &mut dyn Knob) {
        if self.heading != self.prefix {
            self.heading.clone_from(&self.prefix);
            let _ = writeln!(self.out, "\n[{}]", self.prefix);
        }
        let _ = writeln!(self.out, "{name} = {}", knob.show());
    }

    fn section(&mut self, name: &'static str, section: &mut dyn Section) {
        let inner = join(&self.prefix, name);
        let outer = std::mem::replace(&mut self.prefix, inner);
        section.visit(self);
        self.prefix = outer;
    }

    // A configuration that exists has been checked.
    fn misfit(&mut self, _: &'static str, _: Mismatch) {}
}
