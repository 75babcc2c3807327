//! `rookery migrate`: the schema, without a node.

use anyhow::Context;

use super::Exit;
use crate::{
    config::{Config, Role},
    migrate::{self, Database},
    postgres::{self, DataDir, EmbeddedPostgres},
};

const ROLES: [(Database, Role); 4] = [
    (Database::Users, Role::Users),
    (Database::Posts, Role::Posts),
    (Database::Comments, Role::Comments),
    (Database::Search, Role::Search),
];

pub(super) async fn run(config: &Config) -> anyhow::Result<Exit> {
    let url = |role| config.services.of(role).and_then(|service| service.database_url.as_ref());
    let private: Vec<&str> = ROLES.iter().filter(|(_, role)| url(*role).is_none()).map(|(database, _)| database.name()).collect();
    // The lock, so that no node starts on half a migration; and a node that runs has migrated already.
    let embedded = if private.is_empty() {
        None
    } else {
        let data = DataDir::lock(&config.data_dir)?;
        let postgres = EmbeddedPostgres::start(&data, &private).await?;
        Some((postgres, data))
    };
    let mut outcome = Ok(Exit::Done);
    for (database, role) in ROLES {
        let connection = match (url(role), &embedded) {
            (Some(url), _) => url.postgres(),
            (None, Some((postgres, _))) => postgres.config(database.name()),
            (None, None) => unreachable!("a database without a URL has the private Postgres"),
        };
        if let Err(error) = one(database, &connection).await {
            outcome = Err(error);
            break;
        }
    }
    if let Some((postgres, data)) = embedded {
        postgres.stop().await;
        drop(data);
    }
    outcome
}

async fn one(database: Database, connection: &tokio_postgres::Config) -> anyhow::Result<()> {
    let mut client = postgres::connect(connection).await.with_context(|| format!("cannot reach the {database} database"))?;
    let applied = migrate::run(&mut client, database).await?;
    match applied.as_slice() {
        [] => println!("{database:<9} is up to date"),
        applied => {
            for migration in applied {
                println!("{database:<9} V{} {}", migration.version, migration.name);
            }
        }
    }
    Ok(())
}
