//! What is measured, against what, and with which aim.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

/// More connections would only measure how they wait: one login costs 20 ms of a core.
const LOGIN_CONNECTIONS: usize = 16;

/// What a client asks of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// 500 static bytes from a bare axum server.
    Bare,
    /// One INSERT per request by an axum server.
    Insert,
    /// Password verifications without a server.
    Argon2,
    /// Rookery: one post.
    Get,
    /// Rookery: one post, through a node that owns none.
    Remote,
    /// Rookery: a page of 20 comments out of 200.
    Comments,
    /// Rookery: the 20 newest posts.
    List,
    /// Rookery: create a post.
    Create,
    /// Rookery: log in.
    Login,
}

impl Kind {
    /// What it is measured against.
    pub(crate) fn baseline(self) -> Option<Kind> {
        match self {
            Kind::Bare | Kind::Insert | Kind::Argon2 => None,
            Kind::Get | Kind::Remote | Kind::Comments | Kind::List => Some(Kind::Bare),
            Kind::Create => Some(Kind::Insert),
            Kind::Login => Some(Kind::Argon2),
        }
    }

    /// Whether it needs a running Rookery.
    pub(crate) fn is_of_rookery(self) -> bool {
        self.baseline().is_some()
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    /// None for what runs without a server.
    pub(crate) connections: Option<usize>,
}

impl Case {
    /// The ratio to its baseline that it should reach.
    pub(crate) fn target(self) -> Option<f64> {
        match (self.kind, self.connections) {
            (Kind::Get, Some(64)) => Some(0.6),
            (Kind::Remote, Some(64)) => Some(0.35),
            (Kind::Comments, Some(64)) => Some(0.5),
            (Kind::List, Some(64)) => Some(0.3),
            (Kind::Create, Some(64)) => Some(1.5),
            (Kind::Create, Some(256)) => Some(2.0),
            (Kind::Login, _) => Some(0.9),
            _ => None,
        }
    }

    /// The case that it is measured against.
    pub(crate) fn baseline(self) -> Option<Case> {
        let kind = self.kind.baseline()?;
        let connections = self.connections.filter(|_| kind != Kind::Argon2);
        Some(Case { kind, connections })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{:?}", self.kind).to_lowercase();
        match self.connections {
            Some(connections) => f.pad(&format!("{name}@{connections}")),
            None => f.pad(&name),
        }
    }
}

/// The cases of one round in their order, each soon after its baseline.
///
/// An empty `only` means all; what is named brings its baseline along.
pub(crate) fn plan(only: &[Kind], connections: &[usize]) -> Vec<Case> {
    const PER_CONNECTIONS: [Kind; 7] =
        [Kind::Bare, Kind::Get, Kind::Remote, Kind::Comments, Kind::List, Kind::Insert, Kind::Create];
    let wanted = |kind: Kind| only.is_empty() || only.contains(&kind) || only.iter().any(|named| named.baseline() == Some(kind));
    let cases =
        connections.iter().flat_map(|&connections| PER_CONNECTIONS.map(|kind| Case { kind, connections: Some(connections) }));
    let passwords =
        [Case { kind: Kind::Argon2, connections: None }, Case { kind: Kind::Login, connections: Some(LOGIN_CONNECTIONS) }];
    cases.chain(passwords).filter(|case| wanted(case.kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[Kind], connections: &[usize]) -> Vec<String> {
        plan(only, connections).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_named_brings_its_baseline_along() {
        let expected = ["insert@64", "create@64", "insert@256", "create@256"];
        assert_eq!(names(&[Kind::Create], &[64, 256]), expected);
        assert_eq!(names(&[Kind::Login], &[64]), ["argon2", "login@16"]);
        assert_eq!(names(&[Kind::Bare], &[64]), ["bare@64"]);
    }

    #[test]
    fn every_baseline_is_measured_before_what_leans_on_it() {
        let plan = plan(&[], &[64, 256]);
        for (at, case) in plan.iter().enumerate() {
            if let Some(baseline) = case.baseline() {
                assert!(plan[..at].contains(&baseline), "{case}");
            }
        }
    }
}
