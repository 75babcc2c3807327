//! The container files against the code, as far as it goes without an engine: what they name exists, what they set is
//! understood, and their scripts are run.

mod compose;
mod dockerfile;
mod the_compose_file;
mod the_dockerfile;
mod the_scripts;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use compose::{Compose, Service};
use dockerfile::{Stage, stages};
use rookery::config::{Config, Role};
use tempfile::TempDir;

/// Where compose mounts secrets.
const SECRETS: &str = "/run/secrets/";

fn root() -> PathBuf {
    let nodes = Path::new(env!("CARGO_MANIFEST_DIR"));
    nodes.parent().expect("nodes lies in the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn compose() -> Compose {
    compose_file("docker-compose.yml")
}

fn compose_file(path: &str) -> Compose {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn image() -> Vec<Stage> {
    stages(&read("docker/Dockerfile"))
}

/// The stage that becomes the image, with what it inherits from the stages before it.
fn running(image: &[Stage]) -> Stage {
    image.last().expect("there are stages").with_inherited(image)
}

/// The nodes: a gateway, and one for each service.
const NODES: [&str; 5] = ["gateway", "users", "posts", "comments", "search"];

/// All that is a node, the second gateway of the profile included.
const ALL_NODES: [&str; 6] = ["gateway", "gateway-2", "users", "posts", "comments", "search"];

/// What a container of ours reads: the image's variables, the service's over them, secrets from where they would be mounted,
/// and what its command says.
fn configuration(service: &Service, secrets: &Secrets) -> Config {
    let mut variables: BTreeMap<String, String> = running(&image()).variables().collect();
    variables.extend(service.environment.clone());
    for option in service.command.windows(2) {
        match &*option[0] {
            "--name" => variables.insert("ROOKERY__NODE__NAME".to_owned(), option[1].clone()),
            "--roles" => variables.insert("ROOKERY__NODE__ROLES".to_owned(), option[1].clone()),
            _ => None,
        };
    }
    read_configuration(variables.into_iter().map(|(name, value)| (name, secrets.resolve(&value))))
}

fn read_configuration(variables: impl Iterator<Item = (String, String)>) -> Config {
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::read(None, variables).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The ports of a node that are for people, in its roles.
fn listening(config: &Config) -> impl Iterator<Item = u16> {
    let health = config.node.roles.iter().filter_map(|role| config.services.of(role)).map(|service| service.listen);
    let gateway = config.node.roles.has(Role::Gateway).then_some(config.gateway.listen);
    health.chain(gateway).map(|address| address.port())
}

/// The program itself says whether it has a command: it explains one that it has, and refuses any other.
fn assert_understood(whose: &str, command: &[String]) {
    let output = Command::new(env!("CARGO_BIN_EXE_rookery")).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{whose}: rookery {command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A folder of secrets as `docker/secrets.sh` makes it.
struct Secrets(TempDir);

impl Secrets {
    fn made() -> Self {
        let secrets = Self(TempDir::new().unwrap());
        secrets.make();
        secrets
    }

    fn make(&self) {
        run(Command::new(root().join("docker/secrets.sh")).arg(self.folder()));
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("secrets")
    }

    fn names(&self) -> BTreeSet<String> {
        let files = fs::read_dir(self.folder()).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A secret by its name or by where it is mounted.
    fn read(&self, name: &str) -> String {
        let name = name.strip_prefix(SECRETS).unwrap_or(name);
        fs::read_to_string(self.folder().join(name)).unwrap()
    }

    fn resolve(&self, value: &str) -> String {
        match value.strip_prefix(SECRETS) {
            Some(name) => self.folder().join(name).to_str().unwrap().to_owned(),
            None => value.to_owned(),
        }
    }
}
