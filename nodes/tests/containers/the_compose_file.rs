//! `docker-compose.yml` is consistent in itself, and with the configuration and the commands of the program.

use std::{collections::BTreeSet, path::Path};

use rookery::config::Role;
use tokio_postgres::config::Host;

use crate::{
    Secrets, assert_understood, compose,
    compose::{Condition, Restart, Service},
    configuration, listening, root,
};

#[test]
fn names_nothing_that_it_does_not_declare_and_declares_nothing_for_nobody() {
    let compose = compose();
    let used = |names: fn(&Service) -> Vec<&str>| -> BTreeSet<&str> { compose.services.values().flat_map(names).collect() };
    assert_eq!(
        used(|service| service.networks.iter().map(String::as_str).collect()),
        compose.networks.keys().map(String::as_str).collect()
    );
    assert_eq!(
        used(|service| service.volumes.iter().map(|mount| &*mount.volume).collect()),
        compose.volumes.keys().map(String::as_str).collect()
    );
    assert_eq!(
        used(|service| service.secrets.iter().map(String::as_str).collect()),
        compose.secrets.keys().map(String::as_str).collect()
    );
    let services: BTreeSet<_> = compose.services.keys().map(String::as_str).collect();
    let needed = used(|service| service.depends_on.keys().map(String::as_str).collect());
    assert!(needed.is_subset(&services), "{needed:?}");
}

#[test]
fn starts_the_node_last_and_everything_when_what_it_needs_is_healthy() {
    let compose = compose();
    for (name, service) in &compose.services {
        for (needed, dependency) in &service.depends_on {
            let needed_service = &compose.services[needed];
            let checked = needed_service.healthcheck.as_ref().is_some_and(|check| !check.disable && check.test.len() > 1);
            match dependency.condition {
                Condition::ServiceHealthy => {
                    assert!(checked, "{name} waits for {needed}, which has no check");
                }
                Condition::ServiceCompletedSuccessfully => {
                    assert_eq!(needed_service.restart, Restart::No, "{needed} would never end");
                }
            }
        }
    }
    let mut before = vec!["node"];
    let mut at = 0;
    while at < before.len() {
        for needed in compose.services[before[at]].depends_on.keys() {
            assert_ne!(needed, "node", "{} and the node wait for each other", before[at]);
            if !before.contains(&needed.as_str()) {
                before.push(needed);
            }
        }
        at += 1;
    }
    assert_eq!(before.len(), compose.services.len(), "{before:?}");
}

#[test]
fn restarts_what_fails_and_lets_nothing_gain_privileges() {
    for (name, service) in compose().services {
        let runs_once = service.command == ["migrate"];
        assert_eq!(service.restart == Restart::No, runs_once, "{name}");
        assert!(service.security_opt.contains(&"no-new-privileges:true".to_owned()), "{name}");
        if let Some(check) = &service.healthcheck {
            assert!(check.timeout <= check.interval, "{name}: checks pile up");
        }
    }
}

#[test]
fn publishes_only_what_the_node_listens_on_and_only_here() {
    let compose = compose();
    let secrets = Secrets::made();
    let config = configuration(&compose.services["node"], &secrets);
    let listened: BTreeSet<u16> = listening(&config).collect();
    for (name, service) in &compose.services {
        for port in &service.ports {
            assert_eq!(name, "node", "{name} is nobody's business");
            assert_eq!(port.address, "127.0.0.1");
            assert_eq!(port.host, port.container);
        }
    }
    let published: BTreeSet<u16> = compose.services["node"].ports.iter().map(|port| port.container).collect();
    assert_eq!(published, listened);
}

#[test]
fn keeps_databases_and_broker_off_the_host() {
    let compose = compose();
    for (name, service) in &compose.services {
        let open = service.networks.iter().any(|network| !compose.networks[network].internal);
        assert_eq!(open, name == "node", "{name}");
    }
}

#[test]
fn sets_variables_that_are_a_configuration() {
    let compose = compose();
    let secrets = Secrets::made();
    let ours = compose.services.iter().filter(|(_, service)| service.build.is_some());
    for (name, service) in ours {
        let config = configuration(service, &secrets);
        assert!(config.secret.is_some(), "{name} has no secret");
        let foreign: Vec<_> = service.environment.keys().filter(|variable| !variable.starts_with("ROOKERY__")).collect();
        assert!(foreign.is_empty(), "{name} takes no {foreign:?}");
    }
    let config = configuration(&compose.services["node"], &secrets);
    assert!(config.gateway.cors_origins.is_empty());
    assert_eq!(config.node.roles.iter().count(), Role::ALL.len());
    assert_eq!(Some(config.node.name.as_str()), compose.services["node"].hostname.as_deref());
}

#[test]
fn gives_every_service_a_database_of_its_own() {
    let compose = compose();
    let secrets = Secrets::made();
    let config = configuration(&compose.services["node"], &secrets);
    let services = Role::ALL.iter().filter_map(|role| Some((role.as_str(), config.services.of(*role)?)));
    let mut hosts = BTreeSet::new();
    for (name, service) in services {
        let url = service.database_url.as_ref().expect("a database is named").postgres();
        let [Host::Tcp(host)] = url.get_hosts() else {
            panic!("{name}: {:?}", url.get_hosts());
        };
        let postgres = &compose.services[host];
        let environment = &postgres.environment;
        assert_eq!(postgres.image, "postgres:17", "{name}");
        assert_eq!(url.get_ports(), [5432], "{name}");
        assert_eq!(url.get_dbname(), Some(name));
        assert_eq!(url.get_dbname(), Some(&*environment["POSTGRES_DB"]));
        assert_eq!(url.get_user(), Some(&*environment["POSTGRES_USER"]));
        let password = secrets.read(&environment["POSTGRES_PASSWORD_FILE"]);
        assert_eq!(url.get_password(), Some(password.as_bytes()), "{name}");
        let check = &postgres.healthcheck.as_ref().expect("it is checked").test;
        assert_eq!(check.last(), Some(&environment["POSTGRES_DB"]), "{name}");
        hosts.insert(host.clone());
    }
    assert_eq!(hosts.len(), 4);
}

#[test]
fn runs_a_broker_where_the_node_looks_for_it() {
    let compose = compose();
    let config = configuration(&compose.services["node"], &Secrets::made());
    let [broker] = &config.kafka.brokers[..] else {
        panic!("{:?}", config.kafka.brokers);
    };
    let (host, port) = broker.as_str().split_once(':').expect("host:port");
    let environment = &compose.services[host].environment;
    assert_eq!(compose.services[host].hostname.as_deref(), Some(host));
    assert!(environment["KAFKA_LISTENERS"].split(',').any(|listener| listener == format!("PLAINTEXT://:{port}")));
    assert_eq!(environment["KAFKA_ADVERTISED_LISTENERS"], format!("PLAINTEXT://{broker}"));
    assert_eq!(environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"], "false");
    assert!(compose.services[host].volumes.iter().any(|mount| mount.path == environment["KAFKA_LOG_DIRS"]));
}

#[test]
fn keeps_the_data_of_the_node_in_a_volume_and_writes_nowhere_else() {
    let compose = compose();
    let node = &compose.services["node"];
    let config = configuration(node, &Secrets::made());
    let [mount] = &node.volumes[..] else {
        panic!("{:?}", node.volumes);
    };
    assert_eq!(Path::new(&mount.path), config.data_dir);
    assert!(node.read_only && node.init);
}

#[test]
fn runs_commands_that_exist() {
    for (name, service) in compose().services {
        if service.build.is_some() {
            assert_understood(&name, &service.command);
        }
    }
}

#[test]
fn builds_the_dockerfile_and_pins_every_other_image() {
    for (name, service) in compose().services {
        match service.build {
            Some(build) => {
                let dockerfile = root().join(build.context).join(build.dockerfile);
                assert!(dockerfile.is_file(), "{name}");
            }
            None => {
                let (_, tag) = service.image.split_once(':').expect("an image has a tag");
                assert!(tag.starts_with(|c: char| c.is_ascii_digit()), "{name}");
            }
        }
    }
}
