//! The command line: what can be asked for, and how it ends.

mod chaos;
mod client;
mod import;
mod lines;
mod migrate;
mod scale;
mod show;
mod up;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::{
    client::{Client, Target},
    import::Import,
};
use crate::{
    admin::{dlt::Wanted, keys::Grant, reindex::Progress, services::Letter, status::Status},
    config::{Config, ConfigErrors, NodeName, Roles},
    fleet::NODES_MAX,
};

const EXAMPLES: &str = "\
Examples:
  rookery                                   start everything on this machine
  rookery up --nodes 3                      the same as three nodes that share the work
  rookery status                            how the running node is
  rookery import posts.jsonl.gz             import posts into it
  rookery admin grant ada admin             make ada an administrator
  rookery config check --config node.toml   what is in effect, and what is wrong
  rookery status --node https://rookery.example --token TOKEN
                                            how a node elsewhere is

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.";

/// A social platform's back end in which every user, post and comment thread is a supervised actor.
#[derive(Debug, Parser)]
#[command(name = "rookery", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command understands.
#[derive(Debug, Args)]
struct Global {
    /// The configuration file [default: cluster.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder of the node, instead of the configured one.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Talk to the node behind this gateway, instead of the one that runs with the data folder: status, import, reindex, keys,
    /// dlt, admin.
    #[arg(long, global = true, value_name = "URL")]
    node: Option<String>,
    /// An access token with the role admin, for --node: `access_token` in the answer to a login; good for 15 minutes.
    #[arg(long, global = true, requires = "node", env = "ROOKERY_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything on this machine: all services, the gateway, a private Postgres (the default).
    ///
    /// With --nodes, as several processes that share the work: a node that dies is started again, and node k's ports are
    /// the configured ones + 10 for each node before it.
    #[command(after_help = "Examples:\n  rookery up\n  rookery up --nodes 3")]
    Up(Up),
    /// Start one node of a cluster.
    ///
    /// It needs what the nodes share: the databases of all services and the secret. It serves the shards of the services
    /// whose roles it has, and a gateway if it has that role.
    #[command(after_help = "Example:\n  rookery node --config cluster.toml --name n1 --roles users,posts")]
    Node(Node),
    /// Bring the configured databases to this version's schema; needs no running node.
    Migrate,
    Import(Import),
    /// Build the search documents and indexes anew from what is stored; the old ones serve meanwhile.
    Reindex,
    /// How the cluster is: nodes, services, shards, what is behind.
    Status(Json),
    /// Add or remove nodes of a running `rookery up --nodes`, until there are so many; their shards move.
    Scale(Scale),
    /// Look at the configuration; needs no running node.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The keys that sign access tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Dead letters: events that a service could not apply.
    #[command(subcommand)]
    Dlt(DltCommand),
    /// Who may do what.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Break something on purpose, in a cluster that is made for it and thrown away, and prove that every promise is kept.
    #[command(subcommand)]
    Chaos(chaos::Chaos),
}

#[derive(Debug, Default, Args)]
struct Up {
    /// How many nodes, each a process of its own; one is this process.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
}

#[derive(Debug, Args)]
struct Scale {
    /// How many nodes there shall be.
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
}

#[derive(Debug, Args)]
struct Node {
    /// Its name, unique in the cluster, instead of the configured one.
    #[arg(long)]
    name: Option<NodeName>,
    /// What it does, separated by commas: gateway, users, posts, comments, search.
    #[arg(long)]
    roles: Option<Roles>,
}

#[derive(Debug, Args)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration in effect, or everything that is wrong with it.
    Check,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// The keys that are published now.
    List(Json),
    /// Make a new key. It signs after ten minutes, when every gateway knows it; the old one is known until its last token
    /// has expired.
    Rotate(Json),
}

#[derive(Debug, Subcommand)]
enum DltCommand {
    /// What could not be applied, with the reason.
    List {
        #[command(flatten)]
        letters: Letters,
        #[command(flatten)]
        json: Json,
    },
    /// Apply them after all; each goes from the dead letters in the transaction that applies it.
    #[command(after_help = "Examples:\n  rookery dlt replay\n  rookery dlt replay --service search --source posts/17 --seq 1203")]
    Replay(Letters),
}

/// Which letters; all of them unless told.
#[derive(Debug, Args)]
struct Letters {
    /// Of the service that could not apply them.
    #[arg(long)]
    service: Option<String>,
    /// From this log, such as posts/17.
    #[arg(long)]
    source: Option<String>,
    /// The one at this position of the log.
    #[arg(long, requires = "source")]
    seq: Option<i64>,
}

impl From<Letters> for Wanted {
    fn from(Letters { service, source, seq }: Letters) -> Self {
        Self { service, source, seq }
    }
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Give a user a role, or take it back.
    #[command(after_help = "Examples:\n  rookery admin grant ada admin\n  rookery admin grant bob moderator --revoke")]
    Grant {
        /// The user's name.
        user: String,
        /// The role.
        role: GrantableRole,
        /// Take it back; ends the user's sessions.
        #[arg(long)]
        revoke: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GrantableRole {
    /// May see the cluster and change it.
    Admin,
    /// May delete what others wrote.
    Moderator,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done,
    Failed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
        }
    }
}

/// Wrong usage or configuration, as clap says it.
const USAGE: u8 = 2;

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        let config = match self.global.config() {
            Ok(config) => config,
            Err(errors) => return wrong(&errors),
        };
        match self.command.unwrap_or(Command::Up(Up { nodes: 1 })) {
            Command::Config(ConfigCommand::Check) => {
                print(&config.render());
                ExitCode::SUCCESS
            }
            Command::Up(Up { nodes: 1 }) => checked(config, Config::check_whole, up::run),
            Command::Up(Up { nodes }) => {
                checked(config, Config::check_whole, |config| up::run_several(config, self.global.config, nodes))
            }
            Command::Node(Node { name, roles }) => {
                let node =
                    crate::config::Node { name: name.unwrap_or(config.node.name), roles: roles.unwrap_or(config.node.roles) };
                checked(Config { node, ..config }, Config::check_member, up::run)
            }
            Command::Migrate => ended(in_runtime(migrate::run(&config))),
            Command::Chaos(chaos) => ended(in_runtime(chaos.run())),
            command => ended(in_runtime(administer(self.global.target(&config), command))),
        }
    }
}

impl Global {
    fn config(&self) -> Result<Config, ConfigErrors> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }

    fn target(self, config: &Config) -> Target {
        match self.node {
            Some(url) => Target::Remote { url, token: self.token },
            None => Target::Local(config.data_dir.clone()),
        }
    }
}

/// The commands that a running node carries out.
async fn administer(target: Target, command: Command) -> anyhow::Result<Exit> {
    let client = Client::new(target)?;
    match command {
        Command::Import(import) => return import.run(&client).await,
        Command::Reindex => return reindex(&client).await,
        Command::Status(Json { json }) => {
            let status: Status = client.get("/status", &()).await?;
            if json { print_json(&status)? } else { print(&show::status(&status)) }
        }
        Command::Scale(Scale { nodes }) => return scale::run(&client, nodes).await,
        Command::Keys(KeysCommand::List(Json { json })) => show_keys(&client.get::<Vec<_>>("/keys", &()).await?, json)?,
        Command::Keys(KeysCommand::Rotate(Json { json })) => show_keys(&client.post::<Vec<_>>("/keys/rotate").await?, json)?,
        Command::Dlt(DltCommand::List { letters, json: Json { json } }) => {
            let letters: Vec<Letter> = client.get("/dlt", &Wanted::from(letters)).await?;
            if json {
                print_json(&letters)?;
            } else if letters.is_empty() {
                println!("there are no dead letters");
            } else {
                print(&show::letters(&letters));
            }
        }
        Command::Dlt(DltCommand::Replay(letters)) => return replay(&client, letters.into()).await,
        Command::Admin(AdminCommand::Grant { user, role, revoke }) => {
            let role = match role {
                GrantableRole::Admin => "admin",
                GrantableRole::Moderator => "moderator",
            };
            client.tell("/grant", &Grant { username: user.clone(), role: role.to_owned(), revoke }).await?;
            if revoke {
                println!("{user} has the role {role} no longer; their sessions have ended");
            } else {
                println!("{user} has the role {role}; it is in their next access token (log in or refresh)");
            }
        }
        Command::Up(_) | Command::Node(_) | Command::Migrate | Command::Config(_) | Command::Chaos(_) => {
            unreachable!("these need no running node and were done before")
        }
    }
    Ok(Exit::Done)
}

async fn reindex(client: &Client) -> anyhow::Result<Exit> {
    let mut answers = client.ask("/reindex", &()).await?;
    while let Some(progress) = answers.next::<Progress>().await? {
        match progress {
            Progress::Exported { service, documents } => {
                eprintln!("{service}: {} documents", import::grouped(documents))
            }
            Progress::Checked { documents, removed } => {
                eprintln!("checked {} documents, {removed} of things that are gone", import::grouped(documents));
            }
            Progress::Indexing => eprintln!("building the indexes; the old ones serve meanwhile"),
            Progress::Done { documents, removed } => {
                println!(
                    "{} documents can be found; {removed} of things that were gone are not any more",
                    import::grouped(documents)
                );
                return Ok(Exit::Done);
            }
            Progress::Failed { reason } => {
                anyhow::bail!("the rebuild ended early: {reason}; run it again")
            }
        }
    }
    anyhow::bail!("the node went away: start it and run `rookery reindex` again")
}

async fn replay(client: &Client, wanted: Wanted) -> anyhow::Result<Exit> {
    let mut answers = client.ask("/dlt", &wanted).await?;
    let (mut applied, mut stayed) = (0_u64, 0_u64);
    while let Some(crate::admin::dlt::Replayed { letter, error }) = answers.next().await? {
        match error {
            None => applied += 1,
            Some(reason) => {
                stayed += 1;
                eprint!("{}", show::letters(&[Letter { reason, ..letter }]));
            }
        }
    }
    println!("applied {applied}, still dead {stayed}");
    Ok(if stayed == 0 { Exit::Done } else { Exit::Failed })
}

fn show_keys(keys: &[crate::admin::keys::Key], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&keys);
    }
    print(&show::keys(keys));
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Prints, unless nobody reads any more: `rookery status | head` is no failure.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Runs what a configuration is for, if it is fit for that.
fn checked(
    config: Config,
    check: impl FnOnce(&Config) -> Result<(), ConfigErrors>,
    run: impl FnOnce(Config) -> anyhow::Result<Exit>,
) -> ExitCode {
    match check(&config) {
        Ok(()) => ended(run(config)),
        Err(errors) => wrong(&errors),
    }
}

fn wrong(errors: &ConfigErrors) -> ExitCode {
    eprintln!("error: {errors}");
    ExitCode::from(USAGE)
}

fn in_runtime(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

fn ended(result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_everything_starts() {
        assert!(parse("rookery").unwrap().command.is_none());
    }

    #[test]
    fn every_documented_command_is_understood() {
        for line in [
            "rookery up --nodes 1",
            "rookery node --config cluster.toml --name n1 --roles users,posts",
            "rookery migrate",
            "rookery import posts.jsonl.gz --strict --errors bad.jsonl",
            "rookery import - --data-dir /tmp/x",
            "rookery reindex --node http://127.0.0.1:8080 --token t",
            "rookery status --json",
            "rookery up --nodes 9",
            "rookery scale 5",
            "rookery config check --config node.toml",
            "rookery keys list",
            "rookery keys rotate --json",
            "rookery dlt list --service search",
            "rookery dlt replay --source posts/17 --seq 3",
            "rookery admin grant ada admin",
            "rookery admin grant ada moderator --revoke",
            "rookery chaos list",
            "rookery chaos run kill --seed 7 --nodes 3 --duration 60",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn a_token_alone_names_no_node() {
        assert!(parse("rookery status --token t").is_err());
    }

    #[test]
    fn a_machine_has_one_to_nine_nodes() {
        for line in ["rookery up --nodes 0", "rookery up --nodes 10", "rookery scale 0", "rookery scale 10"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_unknown_role_is_wrong_usage() {
        assert!(parse("rookery admin grant ada king").is_err());
        assert!(parse("rookery node --roles users,kitchen").is_err());
    }
}
