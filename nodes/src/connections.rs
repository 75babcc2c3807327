//! How many connections a node opens to each Postgres, compared with how many that allows. One that allows too few answers
//! some, and then nobody knows which part of the node goes without: pools are made smaller until all others have theirs.
//!
//! docs/operations.md has the same numbers for people.

use std::collections::BTreeMap;

use rookery_actors::runtime::{self, DirectoryError, PoolSize};

use crate::{
    config::{Config, Role},
    databases::{self, Databases},
    migrate::Database,
};

/// Apart from the pool, of a service whose role the node has: two for commits, and one more for each while an outcome is open;
/// one for the membership and one for hand-offs; one for health.
const OF_A_MEMBER: u32 = 7;
/// Of a service that the node only asks: one to watch its members and one for health.
const OF_AN_ONLOOKER: u32 = 2;
/// The smallest pool.
pub(crate) const POOL_MIN: u32 = 2;
/// To the users database, of every node: for the cluster's secret.
pub(crate) const FOR_SECRETS: u32 = 2;

/// How many connections a node opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Apart from the pool.
    apart: u32,
    /// With the smallest pool.
    pub at_least: u32,
    /// With the pool that is configured.
    pub at_most: u32,
}

impl Need {
    /// What a node of this configuration opens to one of its databases.
    pub fn of(config: &Config, database: Database) -> Self {
        let role = match database {
            Database::Users => Role::Users,
            Database::Posts => Role::Posts,
            Database::Comments => Role::Comments,
            Database::Search => Role::Search,
        };
        let secrets = if database == Database::Users { FOR_SECRETS } else { 0 };
        let apart = secrets + if config.node.roles.has(role) { OF_A_MEMBER } else { OF_AN_ONLOOKER };
        Self { apart, at_least: apart + POOL_MIN, at_most: apart + pool_max(config, database) }
    }

    fn plus(self, other: Self) -> Self {
        Self { apart: self.apart + other.apart, at_least: self.at_least + other.at_least, at_most: self.at_most + other.at_most }
    }

    fn times(self, nodes: u32) -> Self {
        Self { apart: self.apart * nodes, at_least: self.at_least * nodes, at_most: self.at_most * nodes }
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionsError {
    /// It would go without some of what it needs.
    #[error(
        "{nodes} at least {} connections to the Postgres of {databases} ({place}), and {} with the pools that are configured, but it \
         allows {allowed}: raise its max_connections, or the limit of the role or of the database", .need.at_least, .need.at_most
    )]
    TooFew {
        /// Who needs them.
        nodes: &'static str,
        /// Which databases.
        databases: String,
        /// Where it is.
        place: String,
        /// How many.
        need: Need,
        /// What it allows.
        allowed: u32,
    },
    /// A pool could never be as large as it may be.
    #[error(
        "services.{database}.pool_max is {pool_max}, and the Postgres of {database} ({place}) allows {allowed} connections: \
         lower it, or raise max_connections of that server"
    )]
    Pool {
        /// Which database.
        database: Database,
        /// Where it is.
        place: String,
        /// As configured.
        pool_max: u32,
        /// What it allows.
        allowed: u32,
    },
    /// A database did not answer.
    #[error("the {database} database does not say how many connections it allows")]
    Database {
        /// Which.
        database: Database,
        /// What it or the network says.
        #[source]
        source: DirectoryError,
    },
}

/// What a server says.
struct Allowed {
    /// The same for all databases of a server.
    server: String,
    /// By all of its databases together.
    by_server: u32,
    by_database: Option<u32>,
}

/// Makes the pools no larger than this.
pub(crate) fn limit(config: &mut Config, pools: &[(Database, u32)]) {
    let services = &mut config.services;
    for (database, pool_max) in pools {
        let service = match database {
            Database::Users => &mut services.users,
            Database::Posts => &mut services.posts,
            Database::Comments => &mut services.comments,
            Database::Search => &mut services.search,
        };
        service.pool_max = *pool_max;
    }
}

/// Compares what this many nodes of a configuration open with what each Postgres allows; how large the pools of one may be, where
/// that is less than is configured.
///
/// # Errors
/// [`ConnectionsError`].
pub async fn check(config: &Config, databases: &Databases, nodes: u32) -> Result<Vec<(Database, u32)>, ConnectionsError> {
    // By server, then each database that has a limit of its own.
    let mut limits: BTreeMap<String, (Vec<Database>, u32)> = BTreeMap::new();
    for database in Database::ALL {
        let allowed = ask(databases, database).await.map_err(|source| ConnectionsError::Database { database, source })?;
        limits.entry(allowed.server).or_insert((Vec::new(), allowed.by_server)).0.push(database);
        if let Some(limit) = allowed.by_database {
            limits.insert(database.name().to_owned(), (vec![database], limit));
        }
    }
    let mut smaller: BTreeMap<Database, u32> = BTreeMap::new();
    for (of, allowed) in limits.into_values() {
        let place = databases::place(&databases.config(of[0]));
        let need = of.iter().fold(Need::default(), |sum, database| sum.plus(Need::of(config, *database))).times(nodes);
        let names = of.iter().map(|database| database.name()).collect::<Vec<_>>().join(", ");
        if need.at_least > allowed {
            let nodes = if nodes == 1 { "this node needs" } else { "these nodes need" };
            return Err(ConnectionsError::TooFew { nodes, databases: names, place, need, allowed });
        }
        if let Some(database) = of.iter().copied().find(|database| pool_max(config, *database) >= allowed) {
            return Err(ConnectionsError::Pool { database, place, pool_max: pool_max(config, database), allowed });
        }
        if need.at_most > allowed {
            let pools: Vec<u32> = of.iter().map(|database| pool_max(config, *database)).collect();
            let cap = cap(&pools, (allowed - need.apart) / nodes);
            tracing::warn!(
                databases = names,
                connections_wanted = need.at_most,
                connections_allowed = allowed,
                "the Postgres of {names} ({place}) allows {allowed} connections, {} are configured: no pool is larger than {cap}",
                need.at_most
            );
            for database in of {
                let pool = smaller.entry(database).or_insert(pool_max(config, database));
                *pool = cap.min(*pool);
            }
        }
    }
    Ok(smaller.into_iter().collect())
}

/// The largest size that pools of these sizes may have, if all of them together have so much room.
fn cap(pools: &[u32], room: u32) -> u32 {
    let largest = pools.iter().copied().max().unwrap_or(POOL_MIN);
    let fits = |cap: &u32| pools.iter().map(|pool| pool.min(cap)).sum::<u32>() <= room;
    (POOL_MIN..=largest).rev().find(fits).unwrap_or(POOL_MIN)
}

fn pool_max(config: &Config, database: Database) -> u32 {
    let services = &config.services;
    match database {
        Database::Users => services.users.pool_max,
        Database::Posts => services.posts.pool_max,
        Database::Comments => services.comments.pool_max,
        Database::Search => services.search.pool_max,
    }
}

async fn ask(databases: &Databases, database: Database) -> Result<Allowed, DirectoryError> {
    let size = PoolSize { connections_max: 1, ..PoolSize::default() };
    let database = runtime::Database::new(databases.config(database), "rookery-connections", size);
    let session = database.session("rookery-connections").await?;
    // Two databases are on one server if it was started at the same microsecond. -1: no limit, nor for a superuser.
    let row = session
        .query_one(
            "SELECT pg_postmaster_start_time()::text, current_setting('max_connections')::int4,
                    current_setting('superuser_reserved_connections')::int4
                        + COALESCE(current_setting('reserved_connections', true), '0')::int4,
                    d.datconnlimit, r.rolconnlimit, r.rolsuper
             FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user",
            &[],
        )
        .await?;
    let count = |n: usize| u32::try_from(row.get::<_, i32>(n)).ok();
    let (max, reserved) = (count(1).unwrap_or_default(), count(2).unwrap_or_default());
    Ok(match row.get(5) {
        true => Allowed { server: row.get(0), by_server: max, by_database: None },
        false => Allowed {
            server: row.get(0),
            by_server: max.saturating_sub(reserved).min(count(4).unwrap_or(u32::MAX)),
            by_database: count(3),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Roles;

    fn whole(config: &Config) -> Need {
        Database::ALL.into_iter().fold(Need::default(), |sum, database| sum.plus(Need::of(config, database)))
    }

    /// A Postgres as it comes allows 100, and keeps three of them for superusers.
    #[test]
    fn a_node_with_every_role_fits_on_one_postgres_as_it_comes() {
        assert_eq!(whole(&Config::default()), Need { apart: 30, at_least: 38, at_most: 94 });
    }

    #[test]
    fn small_pools_stay_as_they_are_when_large_ones_are_made_smaller() {
        assert_eq!(cap(&[16, 16, 16, 16], 20), 5);
        assert_eq!(cap(&[16, 3, 16, 16], 40), 12);
        assert_eq!(cap(&[2, 2, 2, 2], 8), 2);
    }

    #[test]
    fn a_gateway_needs_few() {
        let mut config = Config::default();
        config.node.roles = Roles::new([Role::Gateway]).unwrap();
        assert_eq!(whole(&config), Need { apart: 10, at_least: 18, at_most: 74 });
    }

    /// The private Postgres is for the nodes of one `rookery up`.
    #[test]
    fn nine_nodes_fit_on_the_private_postgres() {
        assert!(whole(&Config::default()).times(9).at_most <= crate::postgres::CONNECTIONS_MAX);
    }
}
