//! Which running node a command is for: only the commands that one carries out take it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::client::Target;
use crate::config::{ConfigErrors, TOKEN};

/// Which running node a command is for.
#[derive(Debug, Default, Args)]
pub(super) struct Reach {
    /// Talk to the node behind this gateway, instead of the one that runs with the data folder.
    #[arg(long, global = true, value_name = "URL", value_parser = gateway_url)]
    node: Option<String>,
    /// An access token with the role admin, for --node: `access_token` in the answer to a login; good for 15 minutes
    /// [env: ROOKERY_TOKEN].
    // Not by clap's `env`: with the variable set, it would ask for --node of every command.
    #[arg(long, global = true, requires = "node")]
    token: Option<String>,
}

/// Where a gateway can be.
fn gateway_url(text: &str) -> Result<String, &'static str> {
    let host = ["http://", "https://"].into_iter().find_map(|scheme| text.strip_prefix(scheme));
    match host {
        Some(host) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("a URL that begins with http:// or https:// is wanted"),
    }
}

/// A command, and which running node it is for.
#[derive(Debug, Args)]
pub(super) struct Reached<T: Args> {
    #[command(flatten)]
    pub(super) what: T,
    #[command(flatten)]
    pub(super) reach: Reach,
}

/// A group of commands, and which running node they are for.
#[derive(Debug, Args)]
pub(super) struct Commanded<T: Subcommand> {
    #[command(subcommand)]
    pub(super) command: T,
    #[command(flatten)]
    pub(super) reach: Reach,
}

impl Reach {
    /// Which node that is. The configuration of this machine is asked for only if the node is on it: an operator's own
    /// machine has none.
    pub(super) fn target(self, data_dir: impl FnOnce() -> Result<PathBuf, ConfigErrors>) -> Result<Target, ConfigErrors> {
        let token = || std::env::var(TOKEN).ok();
        match self.node {
            Some(url) => Ok(Target::Remote { url, token: self.token.or_else(token) }),
            None => data_dir().map(Target::Local),
        }
    }
}
