//! Values that cannot be wrong once they exist.

use std::{collections::BTreeSet, fmt, net::SocketAddr, str::FromStr};

use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;

use super::error::Mismatch;

/// The name of a node, part of its address in the cluster: 1–32 of `a-z`, `0-9` and `-`, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        let letters = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if letters && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.len() <= 32 {
            Ok(Self(text.to_owned()))
        } else {
            Err(Mismatch::wanted("1 to 32 of a-z, 0-9 and -, a letter first"))
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An enum whose variants have one fixed word each, in the configuration and on the command line.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = Mismatch;

            fn from_str(text: &str) -> Result<Self, Mismatch> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(Mismatch::none_of(&[$($word),+], text)),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a node can do for the cluster.
    Role {
        /// Answers HTTP.
        Gateway = "gateway",
        /// Owns users.
        Users = "users",
        /// Owns posts.
        Posts = "posts",
        /// Owns comment threads.
        Comments = "comments",
        /// Holds search partitions.
        Search = "search",
    }
}

words! {
    /// How log lines look.
    LogFormat {
        /// Human in a terminal, JSON otherwise.
        Auto = "auto",
        /// For eyes.
        Human = "human",
        /// For machines.
        Json = "json",
    }
}

words! {
    /// How a Kafka client proves who it is.
    SaslMechanism {
        /// The password as it is; only sensible over TLS.
        Plain = "plain",
        /// SCRAM-SHA-256.
        ScramSha256 = "scram-sha-256",
        /// SCRAM-SHA-512.
        ScramSha512 = "scram-sha-512",
    }
}

/// The roles of a node: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// Every role: a node that is the whole product.
    #[must_use]
    pub fn all() -> Self {
        Self(Role::ALL.iter().copied().collect())
    }

    /// These roles.
    ///
    /// # Errors
    /// `Mismatch` if there are none.
    pub fn new(roles: impl IntoIterator<Item = Role>) -> Result<Self, Mismatch> {
        let roles: BTreeSet<_> = roles.into_iter().collect();
        if roles.is_empty() {
            let words: Vec<_> = Role::ALL.iter().map(|role| role.as_str()).collect();
            return Err(Mismatch::wanted(format!("at least one of {}", words.join(", "))));
        }
        Ok(Self(roles))
    }

    /// Whether the node has this role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// The roles, each once.
    pub fn iter(&self) -> impl Iterator<Item = Role> {
        self.0.iter().copied()
    }
}

impl FromStr for Roles {
    type Err = Mismatch;

    /// Comma-separated, as on the command line.
    fn from_str(text: &str) -> Result<Self, Mismatch> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        Self::new(words.map(str::parse).collect::<Result<Vec<Role>, _>>()?)
    }
}

/// Where a Postgres is and how to log in there; a secret, since it usually holds the password.
#[derive(Clone)]
pub struct DatabaseUrl(SecretString);

impl DatabaseUrl {
    /// The parsed form, whose `Debug` hides the password.
    #[must_use]
    pub fn postgres(&self) -> tokio_postgres::Config {
        self.expose().parse().expect("the URL was parsed when it was read")
    }

    /// The URL with its password.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl FromStr for DatabaseUrl {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        let wanted = "a Postgres URL such as postgres://user:password@host:5432/database";
        let parsed: tokio_postgres::Config = text.parse().map_err(|_| match text.contains("ssl") {
            // As libpq spells it: verify-full, sslrootcert.
            true => Mismatch::wanted(format!(
                "{wanted}; of TLS it says sslmode=disable, prefer or require, and with TLS certificate and name are always \
                 checked, against the machine's authorities or those of SSL_CERT_FILE"
            )),
            false => Mismatch::wanted(wanted),
        })?;
        if parsed.get_hosts().is_empty() || parsed.get_dbname().is_none() {
            return Err(Mismatch::wanted(format!("{wanted}, with host and database")));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(<set>)")
    }
}

/// The secret that all nodes of a cluster share: at least 32 bytes. Keys are derived from it, so it is never used raw.
#[derive(Clone)]
pub struct ClusterSecret(SecretString);

impl ClusterSecret {
    /// The text of the secret: hex digits, base64, or a pass phrase.
    #[must_use]
    pub fn text(&self) -> &SecretString {
        &self.0
    }
}

impl FromStr for ClusterSecret {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        if text.len() < 32 {
            return Err(Mismatch::wanted("at least 32 bytes, as `openssl rand -hex 32` makes them"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(<set>)")
    }
}

/// A password that is used as it is.
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// The password itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl FromStr for Password {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(<set>)")
    }
}

/// The host and port of a Kafka broker. Names are allowed: they are resolved anew at every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker(String);

impl Broker {
    /// `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Broker {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        host_port(text, "kafka:9092").map(Self)
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host and port of a node. Names are allowed, as for a [`Broker`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort(String);

impl FromStr for HostPort {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        host_port(text, "n1.example.org:7400").map(Self)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn host_port(text: &str, example: &str) -> Result<String, Mismatch> {
    let wanted = || Mismatch::wanted(format!("host:port, such as {example}"));
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wanted)?;
    let name = host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    match port.parse::<u16>() {
        Ok(1..) if name && !host.is_empty() => Ok(text.to_owned()),
        _ => Err(wanted()),
    }
}

/// A web origin that may read our answers: `*`, or scheme, host and port without a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsOrigin {
    /// Every origin, without credentials.
    Any,
    /// One origin, as browsers spell it.
    Only(String),
}

impl FromStr for CorsOrigin {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wanted = || Mismatch::wanted("\"*\" or an origin such as https://example.org");
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(wanted)?;
        match host.find(['/', '?', '#', '@', ' ']) {
            None if !host.is_empty() => Ok(Self::Only(text.to_owned())),
            // A path is the usual mistake; the browser would never send it.
            Some(end) if end > 0 && host.as_bytes()[end] == b'/' => {
                Err(Mismatch { nearest: Some(text[..text.len() - host.len() + end].to_owned()), ..wanted() })
            }
            _ => Err(wanted()),
        }
    }
}

impl fmt::Display for CorsOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::Only(origin) => origin,
        })
    }
}

/// Which log events are kept, in the syntax of `RUST_LOG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The directives as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        // EnvFilter takes any single word for a target, so a misspelled level would silence everything.
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        for directive in text.split(',') {
            let bare_word = !directive.contains(['=', ':', '[', '_']);
            if bare_word && !LEVELS.contains(&directive.trim().to_ascii_lowercase().as_str()) {
                return Err(Mismatch::none_of(&LEVELS, directive.trim()));
            }
        }
        match EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(Mismatch::wanted("log directives such as info,rookery_gateway=debug")),
        }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
