//! The command line: what can be asked for, and how it ends.

mod administer;
mod chaos;
mod client;
mod import;
mod lines;
mod migrate;
mod password;
mod pins;
mod reach;
mod scale;
mod show;
mod up;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use rookery_actors::event::Source;

use self::{
    client::Client,
    import::Import,
    reach::{Commanded, Reach, Reached},
};
use crate::{
    admin::dlt::Wanted,
    config::{self, Config, ConfigErrors, NodeName, Roles, UnknownVariable},
    fleet::NODES_MAX,
    terminal::{self, note_line},
};

const EXAMPLES: &str = "\
Examples:
  rookery                                   start everything on this machine
  rookery up --nodes 3                      the same as three nodes that share the work
  rookery status                            how the running node is
  rookery import posts.jsonl.gz             import posts into it
  rookery admin grant ada admin             make ada an administrator
  rookery admin password ada                give ada a password; it is asked for
  rookery config check --config node.toml   what is in effect, and what is wrong
  rookery status --node https://rookery.example --token TOKEN
                                            how a node elsewhere is

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 (status) some shard is served by nobody.";

/// A social platform's back end in which every user, post and comment thread is a supervised actor.
#[derive(Debug, Parser)]
#[command(name = "rookery", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", config::variables_help()))]
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
    /// The settings on which all nodes agree, as the databases have them; needs no running node.
    #[command(subcommand, after_help = "Examples:\n  rookery pins list\n  rookery pins set lease.ttl_ms")]
    Pins(PinsCommand),
    /// Import users, posts and comments from JSON Lines.
    ///
    /// Importing the same file again changes nothing, so an import that was interrupted, however, is simply run again. A bad
    /// line is reported with its number and counted; it never ends the import.
    #[command(after_long_help = lines::HELP)]
    Import(Reached<Import>),
    /// Build the search documents and indexes anew from what is stored; the old ones serve meanwhile.
    Reindex(Reach),
    /// Say that a service's database was put back to an older state: what follows from it in the other services, and in it from
    /// theirs, is built anew.
    ///
    /// Bridges find out by themselves when a log went back to before what they have read; this is for whoever knows it sooner.
    #[command(after_help = "Example:\n  rookery restored posts")]
    Restored(Reached<Restored>),
    /// How the cluster is: nodes, services, shards, what is behind. Exit code 3: some shard is served by nobody.
    Status(Reached<Json>),
    /// Add or remove nodes of a running `rookery up --nodes`, until there are so many; their shards move.
    Scale(Scale),
    /// Look at the configuration; needs no running node.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The keys that sign access tokens.
    Keys(Commanded<KeysCommand>),
    /// Dead letters: events that a service could not apply.
    Dlt(Commanded<DltCommand>),
    /// Who may do what, and how they prove who they are.
    Admin(Commanded<AdminCommand>),
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
struct Restored {
    /// The service: users, posts, comments or search.
    service: String,
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
enum PinsCommand {
    /// What each database says, and where this configuration says otherwise.
    List,
    /// Make what this configuration says of a setting what all nodes have. A node that differs no longer starts.
    Set {
        /// The setting, such as lease.ttl_ms.
        key: String,
    },
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
    source: Option<Source>,
    /// The one at this position of the log.
    #[arg(long, requires = "source")]
    seq: Option<i64>,
}

impl From<Letters> for Wanted {
    fn from(Letters { service, source, seq }: Letters) -> Self {
        Self { service, source: source.map(|source| source.to_string()), seq }
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
    /// Give a user a password, without knowing the one they have: it ends their sessions. An imported author has none.
    ///
    /// It is asked for, or read as the first line of what is piped in; never from the command line, which others can see.
    #[command(after_help = "Examples:\n  rookery admin password ada\n  pass show rookery/ada | rookery admin password ada")]
    Password {
        /// The user's name.
        user: String,
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
    /// There is an answer, and it says that some shard is served by nobody.
    Unserved,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::FAILURE,
            Exit::Unserved => Self::from(UNSERVED),
        }
    }
}

/// Wrong usage or configuration, as clap says it.
const USAGE: u8 = 2;
/// `status` has found a shard that nobody serves; another code than that of a node which does not answer at all.
const UNSERVED: u8 = 3;

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> ExitCode {
        let Self { global, command } = self;
        let command = command.unwrap_or(Command::Up(Up { nodes: 1 }));
        if !matches!(command, Command::Up(_) | Command::Node(_)) {
            // A node says it in its log.
            warn_of(&config::unknown_variables());
        }
        match command {
            Command::Config(ConfigCommand::Check) => configured(&global, |config| {
                terminal::answer(config.render());
                told(Ok(Exit::Done))
            }),
            Command::Up(Up { nodes: 1 }) => started(&global, |config| checked(config, Config::check_whole, up::run)),
            Command::Up(Up { nodes }) => started(&global, |config| {
                checked(config, Config::check_whole, |config| up::run_several(config, global.config.clone(), nodes))
            }),
            Command::Node(Node { name, roles }) => started(&global, |config| {
                // A parent starts us through a link in /proc, by whose name we would be listed.
                let _ = nix::sys::prctl::set_name(c"rookery");
                let node = config::Node { name: name.unwrap_or(config.node.name), roles: roles.unwrap_or(config.node.roles) };
                checked(Config { node, ..config }, Config::check_member, up::run)
            }),
            Command::Migrate => configured(&global, |config| told(in_runtime(migrate::run(&config)))),
            Command::Pins(command) => configured(&global, |config| told(in_runtime(pins::run(&config, command)))),
            Command::Chaos(chaos) => told(in_runtime(chaos.run())),
            Command::Import(Reached { what, reach }) => ask(&global, reach, async |node| what.run(&node).await),
            Command::Reindex(reach) => ask(&global, reach, async |node| administer::reindex(&node).await),
            Command::Restored(Reached { what, reach }) => {
                ask(&global, reach, async |node| administer::restored(&node, what.service).await)
            }
            Command::Status(Reached { what, reach }) => ask(&global, reach, async |node| administer::status(&node, what).await),
            Command::Scale(Scale { nodes }) => ask(&global, Reach::default(), async |node| scale::run(&node, nodes).await),
            Command::Keys(Commanded { command, reach }) => {
                ask(&global, reach, async |node| administer::keys(&node, command).await)
            }
            Command::Dlt(Commanded { command, reach }) => {
                ask(&global, reach, async |node| administer::dead_letters(&node, command).await)
            }
            Command::Admin(Commanded { command, reach }) => {
                ask(&global, reach, async |node| administer::admin(&node, command).await)
            }
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

    /// Where the node of this machine keeps its files; nothing else of the configuration is looked at if it is given.
    fn data_dir(&self) -> Result<PathBuf, ConfigErrors> {
        match &self.data_dir {
            Some(given) => Ok(given.clone()),
            None => Ok(self.config()?.data_dir),
        }
    }
}

/// Has a running node carry out a command.
fn ask(global: &Global, reach: Reach, command: impl AsyncFnOnce(Client) -> anyhow::Result<Exit>) -> ExitCode {
    match reach.target(|| global.data_dir()) {
        Ok(target) => told(Client::new(target).and_then(|client| in_runtime(command(client)))),
        Err(errors) => wrong(&errors),
    }
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    terminal::answer(format_args!("{}\n", serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Runs what needs the configuration.
fn configured(global: &Global, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match global.config() {
        Ok(config) => run(config),
        Err(errors) => wrong(&errors),
    }
}

/// The same for what is a node. If it cannot start, a variable that nobody knows may be why.
fn started(global: &Global, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    let code = configured(global, run);
    if code == ExitCode::from(USAGE) {
        warn_of(&config::unknown_variables());
    }
    code
}

fn warn_of(unknown: &[UnknownVariable]) {
    unknown.iter().for_each(|variable| note_line!("warning: {variable}"));
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
    note_line!("error: {errors}");
    ExitCode::from(USAGE)
}

fn in_runtime(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    // Not dropped, which would wait for threads that block: a read of standard input ends with the process, not before it.
    runtime.shutdown_background();
    outcome
}

/// How a command ends that answers: not well, if the answer is lost.
fn told(result: anyhow::Result<Exit>) -> ExitCode {
    ended(result.and_then(|exit| {
        terminal::delivered().context("the answer cannot be written")?;
        Ok(exit)
    }))
}

fn ended(result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            note_line!("error: {error:#}");
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
    fn every_command_says_what_it_does() {
        let cli = Cli::command();
        let mut said: Vec<String> = cli.get_subcommands().map(|command| command.get_about().unwrap().to_string()).collect();
        assert!(!said.iter().any(|about| about.contains("running node a command")), "{said:?}");
        said.sort_unstable();
        said.dedup();
        assert_eq!(said.len(), cli.get_subcommands().count());
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
            "rookery pins list",
            "rookery pins set lease.ttl_ms --config cluster.toml",
            "rookery import posts.jsonl.gz --strict --errors bad.jsonl",
            "rookery import - --data-dir /tmp/x",
            "rookery reindex --node http://127.0.0.1:8080 --token t",
            "rookery restored posts",
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
            "rookery admin password ada",
            "rookery admin password ada --node https://rookery.example --token t",
            "rookery keys list --node http://127.0.0.1:8080",
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
    fn a_node_is_named_only_to_commands_that_ask_one() {
        for command in ["up", "node", "migrate", "pins list", "scale 3", "config check", "chaos list", ""] {
            assert!(parse(&format!("rookery {command} --node http://127.0.0.1:8080")).is_err(), "{command}");
        }
    }

    #[test]
    fn a_node_is_named_by_the_url_of_a_gateway() {
        for wrong in ["ftp://x", "127.0.0.1:8080", "http://", "x"] {
            let refused = parse(&format!("rookery status --node {wrong}")).unwrap_err().to_string();
            assert!(refused.contains("begins with http:// or https://"), "{refused}");
        }
    }

    #[test]
    fn a_log_that_cannot_be_is_wrong_usage() {
        for wrong in ["nonsense/1", "posts/xx", "posts", "search/1"] {
            let refused = parse(&format!("rookery dlt list --source {wrong}")).unwrap_err().to_string();
            assert!(refused.contains("posts/17"), "{refused}");
        }
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
