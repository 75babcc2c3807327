//! Pure. What the parent tells each node over its environment: what is its own, and what all of them share.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, variable},
    migrate::Database,
};

/// Where the first node listens for the others, unless it is configured.
const LINK_PORT: u16 = 7400;

/// Ports of a node above those of the one before it.
const STRIDE: u16 = 10;

/// What the nodes have in common and could not read from the configuration.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// The parent's data folder.
    pub(super) data: PathBuf,
    /// The databases that only the private Postgres has.
    pub(super) databases: Vec<(Database, String)>,
    /// The file of the secret, unless one is configured.
    pub(super) secret: Option<PathBuf>,
    /// How many connections each may open, where all of them together may open fewer than is configured.
    pub(super) pools: Vec<(Database, u32)>,
}

/// The name of the node with this number; the first is 1.
pub(crate) fn name(number: impl fmt::Display) -> String {
    format!("n{number}")
}

/// Where a node keeps its files.
pub(super) fn folder(data: &Path, number: u16) -> PathBuf {
    data.join("nodes").join(name(number))
}

/// The variables that make a node of this configuration the one with this number.
pub(super) fn variables(config: &Config, shared: &Shared, number: u16) -> Vec<(String, String)> {
    let mut variables = vec![("data_dir".to_owned(), folder(&shared.data, number).to_string_lossy().into_owned())];
    let mut listen = |path: String, address| variables.push((path, shifted(address, number).to_string()));
    listen("gateway.listen".to_owned(), config.gateway.listen);
    for (role, address) in config.services.listening() {
        listen(format!("services.{role}.listen"), address);
    }
    // The others are on this machine too, each at an address of its own.
    let link = config.cluster.listen.map_or(LINK_PORT, |listen| listen.port());
    listen("cluster.listen".to_owned(), SocketAddr::from((Ipv4Addr::LOCALHOST, link)));
    variables.push(("cluster.advertise".to_owned(), String::new()));
    for (database, url) in &shared.databases {
        variables.push((format!("services.{database}.database_url"), url.clone()));
    }
    for (database, pool_max) in &shared.pools {
        variables.push((format!("services.{database}.pool_max"), pool_max.to_string()));
    }
    if let Some(file) = &shared.secret {
        variables.push(("secret_file".to_owned(), file.to_string_lossy().into_owned()));
    }
    variables.into_iter().map(|(path, value)| (variable(&path), value)).collect()
}

/// Port 0 stays: the system chooses one for each.
fn shifted(mut address: SocketAddr, number: u16) -> SocketAddr {
    if address.port() != 0 {
        address.set_port(address.port().saturating_add(STRIDE * (number - 1)));
    }
    address
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn shared() -> Shared {
        Shared {
            data: PathBuf::from("/var/lib/rookery"),
            databases: Database::ALL.iter().map(|of| (*of, format!("postgresql:///{of}?host=/tmp/x&user=rookery"))).collect(),
            secret: None,
            pools: Vec::new(),
        }
    }

    fn read(config: &Config, shared: &Shared, number: u16) -> Config {
        let variables = variables(config, shared, number);
        Config::read(None, variables.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value)))).unwrap()
    }

    #[test]
    fn the_first_node_has_the_configured_ports_and_each_further_one_ten_more() {
        let config = Config::default();
        let ports = |number| {
            let node = read(&config, &shared(), number);
            [node.gateway.listen.port(), node.services.users.listen.port(), node.services.search.listen.port()]
        };
        assert_eq!(ports(1), [8080, 3001, 3004]);
        assert_eq!(ports(3), [8100, 3021, 3024]);
        assert_eq!(ports(9), [8160, 3081, 3084]);
        assert_eq!(read(&config, &shared(), 2).cluster.listen, Some("127.0.0.1:7410".parse().unwrap()));
    }

    #[test]
    fn a_port_that_the_system_chooses_is_left_to_it() {
        let mut config = Config::default();
        config.gateway.listen.set_port(0);
        assert_eq!(read(&config, &shared(), 4).gateway.listen.port(), 0);
    }

    #[test]
    fn a_node_reaches_the_databases_that_its_parent_started() {
        let node = read(&Config::default(), &shared(), 2);
        assert!(!node.is_alone());
        let posts = node.services.posts.database_url.unwrap().postgres();
        assert_eq!((posts.get_dbname(), posts.get_user()), (Some("posts"), Some("rookery")));
        assert_eq!(node.data_dir, Path::new("/var/lib/rookery/nodes/n2"));
    }
}
