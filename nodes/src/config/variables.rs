//! Pure. The environment variables of ours: the knobs, those that are no knobs, and those that nobody knows.

use std::fmt;

use super::{
    error::{Mismatch, nearest_word},
    knob::{Knob, Section, Visitor},
    source::{join, variable},
};

/// An administrator's access token, for commands to a node elsewhere.
pub const TOKEN: &str = "ROOKERY_TOKEN";
/// The folder of the Postgres programs to start.
pub const PG_BIN: &str = "ROOKERY_PG_BIN";

/// The variables that are no knobs, with what they are for; the last field: whether users need to hear of it.
const OTHERS: &[(&str, &str, bool)] = &[
    (TOKEN, "an administrator's access token, for --node", true),
    (PG_BIN, "the bin folder of the Postgres to start, instead of a search", true),
    (rookery_actors::fail_point::VARIABLE, "the folder of armed fail points, if they are built in", false),
    ("ROOKERY", "the gateway that README's tour talks to", false),
    ("ROOKERY_SCALE", "how large the tests of scale are", false),
    ("ROOKERY_BALANCER_S", "how long docker/update.sh waits for a balancer to notice, in seconds", false),
    ("ROOKERY_READY_S", "how long docker/update.sh waits for a container to be ready, in seconds", false),
    ("ROOKERY_CHAOS_NODES", "how many nodes the chaos tests start", false),
    ("ROOKERY_BENCHES_RUSTC", "the compiler that the benches were built by", false),
];

/// Families of variables by which our tests and benches talk to processes that they start.
const FAMILIES: &[&str] = &["ROOKERY_TEST_", "ROOKERY_BENCH_"];

/// A variable that begins as ours do, and that nobody reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownVariable {
    /// Its name. Never its value, which may be a secret.
    pub name: String,
    /// What was probably meant.
    pub meant: Option<String>,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes nothing: there is no such variable", self.name)?;
        match &self.meant {
            Some(meant) => write!(f, "; did you mean {meant}?"),
            None => Ok(()),
        }
    }
}

/// What the help says of variables.
pub fn variables_help() -> String {
    let mut text = "Environment:\n".to_owned();
    let prefix = variable("section.key");
    let mut line = |name: &str, about: &str| text.push_str(&format!("  {name:<24}  {about}\n"));
    line(&prefix, "`key` in [section] of the configuration; wins over the file");
    line(&format!("{}_FILE", variable("secret")), "a secret, by the file that holds it; so for every secret");
    line("RUST_LOG", "what is logged; wins over `filter` in [log]");
    for (name, about, _) in OTHERS.iter().filter(|(.., told)| *told) {
        line(name, about);
    }
    text.trim_end().to_owned()
}

/// The variables of an environment that look like ours and are nobody's. Names that begin with `ROOKERY__` are
/// left to the reader of the configuration, for which a wrong one is an error.
pub(super) fn unknown<'a>(environment: impl Iterator<Item = (&'a str, &'a str)>, root: &mut dyn Section) -> Vec<UnknownVariable> {
    let knobs = Names::of(root);
    let ours = |name: &str| name.get(..PREFIX.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX));
    environment
        .filter(|(name, value)| {
            ours(name) && !name.starts_with(&variable("")) && !is_known_variable(name) && !is_of_a_link(name, value)
        })
        .map(|(name, _)| UnknownVariable { name: name.to_owned(), meant: meant(name, &knobs) })
        .collect()
}

const PREFIX: &str = "ROOKERY";

/// Whether something of ours reads this variable, which is no knob.
pub fn is_known_variable(name: &str) -> bool {
    OTHERS.iter().any(|(known, ..)| *known == name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// Kubernetes and Docker links describe a service called `rookery` to every container beside it.
fn is_of_a_link(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
    let is_url = PROTOCOLS.iter().any(|protocol| value.strip_prefix(protocol).is_some_and(|rest| rest.starts_with("://")));
    let is_port = |name: &str| {
        let last = name.rsplit_once("_PORT_").map(|(_, rest)| rest.to_lowercase());
        last.is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit()) && PROTOCOLS.iter().any(|protocol| rest.contains(protocol))
        })
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || is_port(name)
}

/// The same words in whatever spelling are what was meant; else the nearest.
fn meant(name: &str, knobs: &[String]) -> Option<String> {
    let words = |name: &str| name.to_lowercase().split('_').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_");
    let others = OTHERS.iter().filter(|(.., told)| *told).map(|(name, ..)| (*name).to_owned());
    let known: Vec<(String, String)> = knobs.iter().cloned().chain(others).map(|name| (words(&name), name)).collect();
    let wanted = words(name);
    let spelled = |word: &str| known.iter().find(|(words, _)| words == word).map(|(_, name)| name.clone());
    spelled(&wanted).or_else(|| {
        // Without what all of them begin with, which would make all of them alike.
        let rest = |words: &'_ str| words.strip_prefix("rookery_").unwrap_or(words).to_owned();
        let rests: Vec<String> = known.iter().map(|(words, _)| rest(words)).collect();
        let nearest = nearest_word(&rest(&wanted), rests.iter().map(String::as_str))?;
        spelled(&format!("rookery_{nearest}"))
    })
}

/// Collects the variables of all knobs.
#[derive(Default)]
struct Names {
    prefix: String,
    names: Vec<String>,
}

impl Names {
    fn of(root: &mut dyn Section) -> Vec<String> {
        let mut names = Self::default();
        root.visit(&mut names);
        names.names
    }
}

impl Visitor for Names {
    fn knob(&mut self, name: &'static str, knob: &mut dyn Knob) {
        let variable = variable(&join(&self.prefix, name));
        if knob.is_secret() {
            self.names.push(format!("{variable}_FILE"));
        }
        self.names.push(variable);
    }

    fn section(&mut self, name: &'static str, section: &mut dyn Section) {
        let inner = join(&self.prefix, name);
        let outer = std::mem::replace(&mut self.prefix, inner);
        section.visit(self);
        self.prefix = outer;
    }

    fn misfit(&mut self, _: &'static str, _: Mismatch) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn unknown_of(environment: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
        let unknown = unknown(environment.iter().copied(), &mut Config::default());
        unknown.into_iter().map(|UnknownVariable { name, meant }| (name, meant)).collect()
    }

    #[test]
    fn a_variable_that_nobody_knows_is_named_with_what_was_meant() {
        for (name, meant) in [
            ("ROOKERY_GATEWAY_LISTEN", "ROOKERY__GATEWAY__LISTEN"),
            ("ROOKERY_DATA_DIR", "ROOKERY__DATA_DIR"),
            ("ROOKERY_SECRET_FILE", "ROOKERY__SECRET_FILE"),
            ("ROOKERY_SERVICES_POSTS_DATABASE_URL", "ROOKERY__SERVICES__POSTS__DATABASE_URL"),
            ("ROOKERY_SERVICES__POSTS__DATABASE_URL_FILE", "ROOKERY__SERVICES__POSTS__DATABASE_URL_FILE"),
            ("rookery__data_dir", "ROOKERY__DATA_DIR"),
            ("ROOKERYDATA_DIR", "ROOKERY__DATA_DIR"),
            ("ROOKERY_GATEWAY_LISTN", "ROOKERY__GATEWAY__LISTEN"),
            ("ROOKERY_TOKN", "ROOKERY_TOKEN"),
            ("ROOKERY_PGBIN", "ROOKERY_PG_BIN"),
        ] {
            assert_eq!(unknown_of(&[(name, "x")]), [(name.to_owned(), Some(meant.to_owned()))], "{name}");
        }
        assert_eq!(unknown_of(&[("ROOKERY_QQQQ", "x")]), [("ROOKERY_QQQQ".to_owned(), None)]);
    }

    #[test]
    fn a_value_is_never_repeated() {
        let told = unknown([("ROOKERY_SECRET", "hunter2")].into_iter(), &mut Config::default());
        assert!(!told[0].to_string().contains("hunter2"), "{}", told[0]);
    }

    #[test]
    fn what_is_read_somewhere_is_known() {
        for name in ["ROOKERY", "ROOKERY_TOKEN", "ROOKERY_PG_BIN", "ROOKERY_TEST_SEED", "ROOKERY_FAIL_POINTS", "PATH"] {
            assert_eq!(unknown_of(&[(name, "x")]), [], "{name}");
        }
        // An error of the configuration already.
        assert_eq!(unknown_of(&[("ROOKERY__GATEWAY__LISTN", "x")]), []);
    }

    #[test]
    fn what_kubernetes_says_of_a_service_called_rookery_is_not_meant_for_us() {
        let said = [
            ("ROOKERY_SERVICE_HOST", "10.0.0.11"),
            ("ROOKERY_SERVICE_PORT", "8080"),
            ("ROOKERY_SERVICE_PORT_HTTP", "8080"),
            ("ROOKERY_PORT", "tcp://10.0.0.11:8080"),
            ("ROOKERY_PORT_8080_TCP", "tcp://10.0.0.11:8080"),
            ("ROOKERY_PORT_8080_TCP_ADDR", "10.0.0.11"),
            ("ROOKERY_GATEWAY_PORT_8080_TCP_PROTO", "tcp"),
        ];
        assert_eq!(unknown_of(&said), []);
        assert_eq!(unknown_of(&[("ROOKERY_PORT", "8080")]).len(), 1, "a person may well try that");
    }

    #[test]
    fn the_help_names_what_users_may_set() {
        let help = variables_help();
        assert!(help.contains("ROOKERY_TOKEN") && help.contains("ROOKERY__SECTION__KEY") && !help.contains("SCALE"), "{help}");
    }
}
