//! `rookery migrate`: the schema, without a node.

use super::Exit;
use crate::{config::Config, databases::Databases, postgres::DataDir, terminal::answer_line};

pub(super) async fn run(config: &Config) -> anyhow::Result<Exit> {
    // The lock, so that no node starts on half a migration; and a node that runs has migrated already.
    let data = if config.has_private_database() { Some(DataDir::lock(&config.data_dir)?) } else { None };
    let databases = match &data {
        Some(data) => Databases::open(config, data).await?,
        None => Databases::configured(config),
    };
    let migrated = databases.migrate().await;
    databases.stop().await;
    let mut failed = None;
    for (database, outcome) in migrated {
        match outcome {
            Ok(applied) if applied.is_empty() => answer_line!("{database:<9} is up to date"),
            Ok(applied) => {
                for migration in applied {
                    answer_line!("{database:<9} V{} {}", migration.version, migration.name);
                }
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(Exit::Done), Err)
}
