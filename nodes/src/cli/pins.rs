//! `rookery pins`: the settings on which all nodes agree, without a node.

use super::{Exit, PinsCommand};
use crate::{
    config::Config,
    databases::Databases,
    pins::{self, Pinned},
    postgres::DataDir,
    terminal::answer_line,
};

pub(super) async fn run(config: &Config, command: PinsCommand) -> anyhow::Result<Exit> {
    // As for migrations: a node that runs on a private database has taken what the configuration says.
    let data = if config.has_private_database() { Some(DataDir::lock(&config.data_dir)?) } else { None };
    let databases = match &data {
        Some(data) => Databases::open(config, data).await?,
        None => Databases::configured(config),
    };
    let done = carry_out(config, &databases, command).await;
    databases.stop().await;
    done
}

async fn carry_out(config: &Config, databases: &Databases, command: PinsCommand) -> anyhow::Result<Exit> {
    databases.ready().await?;
    match command {
        PinsCommand::List => {
            for Pinned { database, key, pinned, configured } in pins::list(config, databases).await? {
                let (note, pinned) = match pinned {
                    Some(pinned) if pinned == configured => (String::new(), pinned),
                    pinned => (format!("  (here: {configured})"), pinned.unwrap_or_else(|| "not pinned yet".to_owned())),
                };
                answer_line!("{:<9} {key:<26} {pinned}{note}", database.name());
            }
        }
        PinsCommand::Set { key } => {
            pins::set(config, databases, &key).await?;
            answer_line!("all nodes are to have what is configured here as {key}: start them anew, one after the other");
        }
    }
    Ok(Exit::Done)
}
