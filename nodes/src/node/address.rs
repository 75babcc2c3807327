//! Where a node is reached, when it listens on every interface: an address that somebody else can dial.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use tokio_postgres::config::Host;

/// A name server that takes longer does not know the name.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// The address of this machine on the network on which the databases are. All nodes reach the databases, so this is a
/// network that they share. None: the databases are on this machine itself, and say nothing about other machines.
pub(super) async fn towards(databases: &[tokio_postgres::Config]) -> Option<IpAddr> {
    for (host, port) in databases.iter().flat_map(tcp_hosts) {
        let resolved = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host((host.as_str(), port))).await;
        let Ok(Ok(addresses)) = resolved else { continue };
        let mut sources = addresses.filter_map(|address| source(address).ok());
        if let Some(source) = sources.find(|source| !source.is_loopback()) {
            return Some(source);
        }
    }
    None
}

/// The hosts of a database that are reached by TCP, with their ports.
fn tcp_hosts(database: &tokio_postgres::Config) -> Vec<(String, u16)> {
    // As in libpq: one port for each host, or one for all of them.
    let ports = database.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let hosts = database.get_hosts().iter().enumerate().filter_map(|(at, host)| match host {
        Host::Tcp(name) => Some((name.clone(), port(at))),
        Host::Unix(_) => None,
    });
    hosts.chain(database.get_hostaddrs().iter().enumerate().map(|(at, address)| (address.to_string(), port(at)))).collect()
}

/// The address from which this machine reaches another one, as its routes say. Sends nothing.
fn source(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// Where a gateway that is bound to `bound` is reached: behind every interface, on the host of the node's links, `link`, or
/// for a node that has none, from this machine.
pub(super) fn of_gateway(bound: SocketAddr, link: Option<&str>) -> String {
    match link.and_then(|link| link.rsplit_once(':')) {
        Some((host, _)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
        _ => on_this_machine(bound).to_string(),
    }
}

/// An address that a client on this machine can use.
pub(crate) fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let mut address = listen;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> tokio_postgres::Config {
        url.parse().unwrap()
    }

    #[tokio::test]
    async fn databases_on_this_machine_say_nothing_about_other_machines() {
        for url in ["postgres://u@127.0.0.1:5432/users", "postgres://u@localhost/users", "host=/tmp user=u dbname=users"] {
            assert_eq!(towards(&[at(url)]).await, None, "{url}");
        }
    }

    /// A database on another network than the default route's: the address must be the one on its network.
    #[tokio::test]
    async fn the_address_is_the_one_on_the_network_of_the_databases() {
        // No packet is sent, so nobody has to listen there. Without any network there is no such address.
        let Ok(own) = source("192.0.2.1:9".parse().unwrap()) else { return };
        let databases = [at("postgres://u@127.0.0.1/users"), at(&format!("postgres://u@{own}:5432,127.0.0.1:5432/posts"))];
        // The route to one's own address begins there.
        assert_eq!(towards(&databases).await, Some(own));
    }

    #[test]
    fn every_host_of_a_database_has_its_port() {
        let two = at("postgres://u@db1:5433,db2:5434/users");
        assert_eq!(tcp_hosts(&two), [("db1".to_owned(), 5433), ("db2".to_owned(), 5434)]);
        assert_eq!(tcp_hosts(&at("postgres://u@db/users")), [("db".to_owned(), 5432)]);
    }

    #[test]
    fn a_gateway_behind_every_interface_is_reached_where_the_links_are() {
        let everywhere = "0.0.0.0:8080".parse().unwrap();
        assert_eq!(of_gateway(everywhere, Some("172.20.0.5:7400")), "172.20.0.5:8080");
        assert_eq!(of_gateway("[::]:8080".parse().unwrap(), Some("[fd00::5]:7400")), "[fd00::5]:8080");
        assert_eq!(of_gateway(everywhere, Some("n1.example.org:7400")), "n1.example.org:8080");
        assert_eq!(of_gateway(everywhere, None), "127.0.0.1:8080");
        assert_eq!(of_gateway("10.0.0.1:80".parse().unwrap(), Some("172.20.0.5:7400")), "10.0.0.1:80");
    }

    #[test]
    fn an_address_for_all_interfaces_is_reached_by_the_local_one() {
        assert_eq!(on_this_machine("0.0.0.0:8080".parse().unwrap()), "127.0.0.1:8080".parse().unwrap());
        assert_eq!(on_this_machine("10.0.0.1:80".parse().unwrap()), "10.0.0.1:80".parse().unwrap());
    }
}
