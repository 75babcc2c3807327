//! Settings on which all nodes must agree, and that nothing else compares: pinned in the databases by whoever comes first. A
//! node whose configuration says otherwise does not start; a change is a command.
//!
//! docs/operations.md lists these and what else must be the same everywhere, with how a node that differs is refused.

use rookery_actors::{
    event::Topic,
    runtime::{self, Connection, DirectoryError, PoolSize},
};

use crate::{config::Config, databases::Databases, migrate::Database};

/// A setting, as one database has it and as this configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Which database.
    pub database: Database,
    /// The key in the configuration.
    pub key: &'static str,
    /// What the database says; none: nothing yet.
    pub pinned: Option<String>,
    /// What the configuration says.
    pub configured: String,
}

/// Why a node may not start, or a pin was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The configuration says otherwise.
    #[error(
        "the {database} database says that {key} is {pinned} on all nodes, and this configuration says {configured}: set it back{}",
        .change
    )]
    Differs {
        /// Which database.
        database: Database,
        /// The key in the configuration.
        key: &'static str,
        /// What all nodes have.
        pinned: String,
        /// What this one would have.
        configured: String,
        /// How all of them could have it, if there is a way.
        change: String,
    },
    /// No such pin, or one that lasts as long as the database.
    #[error("{key} cannot be changed: {}", match .is_pinned {
        true => "it is fixed with the databases".to_owned(),
        false => format!("it is no pinned setting; {} are", changeable().join(", ")),
    })]
    Fixed {
        /// The key.
        key: String,
        /// Whether it is one that is pinned.
        is_pinned: bool,
    },
    /// Nobody knows how long the lease of these members is, so nobody can wait for its end.
    #[error(
        "{} runs a release that does not say how long its lease is: upgrade it first, then change {key}", .nodes.join(", ")
    )]
    OlderNodes {
        /// What was to be changed.
        key: &'static str,
        /// The nodes.
        nodes: Vec<String>,
    },
    /// A database did not answer.
    #[error("the {database} database does not say what the nodes agree on")]
    Database {
        /// Which.
        database: Database,
        /// What it or the network says.
        #[source]
        source: DirectoryError,
    },
}

/// One pinned setting.
struct Pin {
    /// Its row in `setting`.
    name: &'static str,
    key: &'static str,
    configured: String,
    /// The databases cannot follow another value.
    is_fixed: bool,
}

const LEASE: &str = "lease.ttl_ms";
const EVENTS: &str = "kafka.brokers";
const TOKENS: [&str; 3] = ["tokens.issuer", "tokens.audience", "tokens.access_ttl_s"];

fn changeable() -> Vec<&'static str> {
    [&[LEASE, EVENTS][..], &TOKENS].concat()
}

/// What a database pins, with what this configuration says of it.
fn pins(database: Database, config: &Config) -> Vec<Pin> {
    let (key, shards) = match database {
        Database::Search => ("cluster.search_partitions", config.cluster.search_partitions),
        _ => ("cluster.shards", config.cluster.shards),
    };
    let pin = |key, configured: String| Pin { name: key, key, configured, is_fixed: false };
    let mut pins = vec![
        // Whoever routes by another number asks, and writes, elsewhere. Members have always compared it.
        Pin { name: "shards", key, configured: shards.to_string(), is_fixed: true },
        // An owner serves as long as its lease, and is taken over from after it.
        pin(LEASE, config.lease.ttl.as_millis().to_string()),
    ];
    if Topic::ALL.iter().any(|topic| topic.service() == database.name()) {
        // A node without Kafka would relay nothing of its shards, and those with it wait for that for ever.
        let events = if config.kafka.is_enabled() { "set (Kafka)" } else { "empty (the embedded log)" };
        pins.push(pin(EVENTS, events.to_owned()));
    }
    if database == Database::Users {
        // Any gateway takes the tokens of the others, and remembers closed sessions for as long as these live.
        let [issuer, audience, access_ttl] = TOKENS;
        pins.push(pin(issuer, config.tokens.issuer.clone()));
        pins.push(pin(audience, config.tokens.audience.clone()));
        pins.push(pin(access_ttl, config.tokens.access_ttl.as_secs().to_string()));
    }
    pins
}

/// Compares the configuration with what the nodes agree on, in every database, and pins what nobody has pinned yet.
///
/// A private database follows the configuration instead: nobody else is on it while we hold its data folder.
///
/// # Errors
/// [`PinError`].
pub async fn agree(config: &Config, databases: &Databases) -> Result<(), PinError> {
    for database in Database::ALL {
        let session = session(databases, database).await?;
        for pin in pins(database, config) {
            let follows = !pin.is_fixed && is_private(config, database);
            let pinned = put(&session, &pin, follows).await.map_err(|source| PinError::Database { database, source })?;
            if pinned != pin.configured {
                let change = match pin.is_fixed {
                    true => String::new(),
                    false => format!(", or change it on all nodes: `rookery pins set {}`, see docs/operations.md", pin.key),
                };
                return Err(PinError::Differs { database, key: pin.key, pinned, configured: pin.configured, change });
            }
        }
    }
    Ok(())
}

/// What the databases say, and what this configuration does.
///
/// # Errors
/// [`PinError::Database`].
pub async fn list(config: &Config, databases: &Databases) -> Result<Vec<Pinned>, PinError> {
    let mut all = Vec::new();
    for database in Database::ALL {
        let session = session(databases, database).await?;
        for Pin { name, key, configured, .. } in pins(database, config) {
            let row = session.query_opt("SELECT value FROM setting WHERE name = $1", &[&name]).await;
            let row = row.map_err(|error| PinError::Database { database, source: error.into() })?;
            all.push(Pinned { database, key, pinned: row.map(|row| row.get(0)), configured });
        }
    }
    Ok(all)
}

/// Makes what this configuration says of a setting what all nodes have; nodes that run go on with what they have until they
/// are started anew.
///
/// # Errors
/// [`PinError`]; what was changed in some of the databases is changed in the others by trying again.
pub async fn set(config: &Config, databases: &Databases, key: &str) -> Result<(), PinError> {
    let mut known = Database::ALL.into_iter().flat_map(|database| pins(database, config));
    let known = known.find(|pin| pin.key == key);
    if known.as_ref().is_none_or(|pin| pin.is_fixed) {
        return Err(PinError::Fixed { key: key.to_owned(), is_pinned: known.is_some() });
    }
    if key == LEASE {
        let mut nodes = Vec::new();
        for database in Database::ALL {
            let session = session(databases, database).await?;
            let silent = "SELECT node FROM member WHERE state <> 'dead' AND lease_ms IS NULL ORDER BY node";
            let rows = session.query(silent, &[]).await;
            nodes.extend(
                rows.map_err(|error| PinError::Database { database, source: error.into() })?.iter().map(|row| row.get(0)),
            );
        }
        nodes.sort_unstable();
        nodes.dedup();
        if !nodes.is_empty() {
            return Err(PinError::OlderNodes { key: LEASE, nodes });
        }
    }
    for database in Database::ALL {
        for pin in pins(database, config).iter().filter(|pin| pin.key == key) {
            let session = session(databases, database).await?;
            put(&session, pin, true).await.map_err(|source| PinError::Database { database, source })?;
        }
    }
    Ok(())
}

/// Whether nobody but the holder of our data folder reaches a database.
fn is_private(config: &Config, database: Database) -> bool {
    let services = &config.services;
    let of = match database {
        Database::Users => &services.users,
        Database::Posts => &services.posts,
        Database::Comments => &services.comments,
        Database::Search => &services.search,
    };
    of.database_url.is_none()
}

async fn session(databases: &Databases, database: Database) -> Result<Connection, PinError> {
    let size = PoolSize { connections_max: 1, ..PoolSize::default() };
    let database_of = runtime::Database::new(databases.config(database), "rookery-pins", size);
    let session = database_of.session("rookery-pins").await;
    session.map_err(|error| PinError::Database { database, source: error.into() })
}

/// Writes a pin unless there is one, or over it if told so; what stands there then.
async fn put(session: &Connection, pin: &Pin, over: bool) -> Result<String, DirectoryError> {
    let put = "INSERT INTO setting (name, value) VALUES ($1, $2)
               ON CONFLICT (name) DO UPDATE SET value = CASE WHEN $3 THEN excluded.value ELSE setting.value END RETURNING value";
    Ok(session.query_one(put, &[&pin.name, &pin.configured, &over]).await?.get(0))
}
