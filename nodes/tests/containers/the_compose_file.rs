//! `docker-compose.yml` and its smaller sisters are consistent in themselves, and with the configuration and the commands of
//! the program.

use std::{collections::BTreeSet, path::Path};

use rookery::config::Role;
use tokio_postgres::config::Host;

use crate::{
    ALL_NODES, NODES, Secrets, assert_understood, compose,
    compose::{Condition, MountedFrom, Restart, Service},
    compose_file, configuration, listening, read, root,
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
        used(|service| service.volumes.iter().filter_map(|mount| mount.volume()).collect()),
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
fn starts_the_gateway_last_and_everything_when_what_it_needs_is_healthy() {
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
    let mut before = vec!["gateway"];
    let mut at = 0;
    while at < before.len() {
        for needed in compose.services[before[at]].depends_on.keys() {
            assert_ne!(needed, "gateway", "{} and the gateway wait for each other", before[at]);
            if !before.contains(&needed.as_str()) {
                before.push(needed);
            }
        }
        at += 1;
    }
    let unless_asked = compose.services.values().filter(|service| service.profiles.is_empty()).count();
    assert_eq!(before.len(), unless_asked, "{before:?}");
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
fn publishes_only_what_the_nodes_listen_on_for_people_and_only_here() {
    let compose = compose();
    let secrets = Secrets::made();
    for (name, service) in &compose.services {
        for port in &service.ports {
            assert!(ALL_NODES.contains(&name.as_str()), "{name} is nobody's business");
            assert_eq!(port.address, "127.0.0.1");
        }
    }
    let mut all = BTreeSet::new();
    for name in ALL_NODES {
        let node = &compose.services[name];
        let published: BTreeSet<u16> = node.ports.iter().map(|port| port.container).collect();
        assert_eq!(published, listening(&configuration(node, &secrets)).collect(), "{name}");
        all.extend(published);
    }
    assert_eq!(all, [3001, 3002, 3003, 3004, 8080].into());
    let gateways = ["gateway", "gateway-2"].map(|name| compose.services[name].ports[0].host);
    assert_eq!(gateways, [Some(8080), Some(8081)], "a balancer knows where each of them is");
}

/// A second copy of a container cannot have the first one's name, port or data folder.
#[test]
fn fixes_nothing_that_keeps_a_service_from_having_copies() {
    let compose = compose();
    for name in ["users", "posts", "comments", "search"] {
        let node = &compose.services[name];
        assert!(node.hostname.is_none(), "{name}");
        assert!(node.ports.iter().all(|port| port.host.is_none()), "{name}");
    }
    for name in ALL_NODES {
        // The script gives each copy a name and a folder of its own: `the_scripts`.
        assert_eq!(compose.services[name].entrypoint, ["rookery-copy"], "{name}");
    }
}

#[test]
fn asks_every_node_for_its_health_where_it_answers() {
    let compose = compose();
    let secrets = Secrets::made();
    for name in ALL_NODES {
        let node = &compose.services[name];
        let port = listening(&configuration(node, &secrets)).next().unwrap().to_string();
        let check = node.healthcheck.as_ref().unwrap_or_else(|| panic!("{name} is not checked as the image alone would be"));
        assert_eq!(check.test, ["CMD", "rookery-ready", &port], "{name}");
    }
}

#[test]
fn keeps_databases_and_broker_off_the_host() {
    let compose = compose();
    for (name, service) in &compose.services {
        let open = service.networks.iter().any(|network| !compose.networks[network].internal);
        assert_eq!(open, ALL_NODES.contains(&name.as_str()), "{name}");
    }
}

#[test]
fn is_a_cluster_in_which_every_role_is_somebodys() {
    let compose = compose();
    let secrets = Secrets::made();
    let mut roles = Vec::new();
    for name in NODES {
        let node = &compose.services[name];
        let config = configuration(node, &secrets);
        config.check_member().unwrap_or_else(|errors| panic!("{name}: {errors}"));
        assert!(!config.is_alone(), "{name}");
        assert_eq!(config.node.name.as_str(), name);
        let link = config.cluster.listen.expect("it listens for the others");
        // A name would resolve on every network that two nodes share, and a copy made by scaling has the same one. So each
        // advertises its own address where the databases are: `.ci/nightly` looks at the links.
        assert_eq!(config.cluster.advertised(link), None, "{name}");
        for database in compose.services.iter().filter(|(of, _)| of.ends_with("-db")).map(|(_, database)| database) {
            let shared: Vec<_> = node.networks.intersection(&database.networks).collect();
            assert!(matches!(shared[..], [network] if compose.networks[network].internal), "{name}: {shared:?}");
        }
        roles.extend(config.node.roles.iter());
    }
    roles.sort_unstable();
    assert_eq!(roles, Role::ALL);
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
    assert!(configuration(&compose.services["gateway"], &secrets).gateway.cors_origins.is_empty());
}

/// What is commented out is a configuration too, for whoever puts something in front.
#[test]
fn shows_how_to_name_the_proxy_in_front_of_the_gateway() {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let commented = text.lines().filter_map(|line| line.trim().strip_prefix("# ROOKERY__")?.split_once(": "));
    let mut gateway = compose().services.remove("gateway").expect("there is a gateway");
    let before = gateway.environment.len();
    gateway.environment.extend(commented.map(|(name, value)| (format!("ROOKERY__{name}"), value.to_owned())));
    assert!(gateway.environment.len() > before);
    assert!(!configuration(&gateway, &Secrets::made()).gateway.trusted_proxies.is_empty());
}

#[test]
fn gives_every_service_a_database_of_its_own() {
    let compose = compose();
    let secrets = Secrets::made();
    for name in NODES {
        let config = configuration(&compose.services[name], &secrets);
        assert!(!config.has_private_database(), "{name}: all nodes know all databases");
    }
    let config = configuration(&compose.services["gateway"], &secrets);
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
    let config = configuration(&compose.services["posts"], &Secrets::made());
    let [broker] = &config.kafka.brokers[..] else {
        panic!("{:?}", config.kafka.brokers);
    };
    let (host, port) = broker.as_str().split_once(':').expect("host:port");
    let environment = &compose.services[host].environment;
    assert_eq!(compose.services[host].hostname.as_deref(), Some(host));
    assert!(environment["KAFKA_LISTENERS"].split(',').any(|listener| listener == format!("PLAINTEXT://:{port}")));
    assert_eq!(environment["KAFKA_ADVERTISED_LISTENERS"], format!("PLAINTEXT://{broker}"));
    assert_eq!(environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"], "false");
    let mounts = &compose.services[host].volumes;
    assert!(mounts.iter().any(|mount| mount.path == environment["KAFKA_LOG_DIRS"]));
    // A JVM each time is a tenth of a core for ever.
    let check = &compose.services[host].healthcheck.as_ref().expect("it is checked").test;
    let [_, _, script, asked] = &check[..] else { panic!("{check:?}") };
    assert_eq!(asked, port);
    let mount = mounts.iter().find(|mount| mount.path == *script).expect("it is mounted");
    assert_eq!(mount.from, MountedFrom::Checkout("./docker/kafka-ready.sh".to_owned()));
}

#[test]
fn keeps_the_data_of_each_node_in_a_volume_of_its_own_and_writes_nowhere_else() {
    let compose = compose();
    let mut volumes = BTreeSet::new();
    for name in ALL_NODES {
        let node = &compose.services[name];
        let config = configuration(node, &Secrets::made());
        let [mount] = &node.volumes[..] else {
            panic!("{name}: {:?}", node.volumes);
        };
        assert_eq!(Path::new(&mount.path), config.data_dir, "{name}");
        assert!(node.read_only && node.init, "{name}");
        volumes.insert(mount.volume());
    }
    assert_eq!(volumes.len(), ALL_NODES.len(), "a data folder belongs to one node");
}

#[test]
fn runs_commands_that_exist() {
    for (name, service) in compose().services.into_iter().chain(laptop().services) {
        if service.build.is_some() {
            assert_understood(&name, &service.command);
        }
    }
}

#[test]
fn builds_the_dockerfile_and_pins_every_other_image() {
    for (name, service) in compose().services.into_iter().chain(laptop().services) {
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

fn laptop() -> crate::Compose {
    compose_file("docker-compose.laptop.yml")
}

#[test]
fn for_a_laptop_is_one_node_in_all_roles_and_one_postgres_with_four_databases() {
    let laptop = laptop();
    let node = &laptop.services["rookery"];
    let config = configuration(node, &Secrets::made());
    config.check_whole().unwrap_or_else(|errors| panic!("{errors}"));
    assert!(config.is_alone() && !config.has_private_database());
    let urls: Vec<_> = Role::ALL.iter().filter_map(|role| config.services.of(*role)?.database_url.as_ref()).collect();
    let postgres = &laptop.services["postgres"].environment;
    let made = laptop.services["databases"].command.join(" ");
    for url in &urls {
        let url = url.postgres();
        assert_eq!(url.get_hosts(), [Host::Tcp("postgres".to_owned())]);
        assert_eq!(url.get_user(), Some(&*postgres["POSTGRES_USER"]));
        assert_eq!(url.get_password(), Some(postgres["POSTGRES_PASSWORD"].as_bytes()));
        assert!(made.contains(url.get_dbname().unwrap()), "{made}");
    }
    let databases: BTreeSet<_> = urls.iter().map(|url| url.postgres().get_dbname().unwrap().to_owned()).collect();
    assert_eq!(databases.len(), 4);
    let [port] = &node.ports[..] else { panic!("{:?}", node.ports) };
    assert_eq!((&*port.address, port.host, port.container), ("127.0.0.1", Some(8080), config.gateway.listen.port()));
    assert!(!laptop.services["postgres"].networks.contains("edge"));
    assert_ne!(laptop.name, compose().name, "two deployments, and neither takes the other's volumes");
    // Its sessions, all nodes' and those of `rookery migrate`, are fewer than a Postgres has.
    let sessions: u32 = Role::ALL.iter().filter_map(|role| config.services.of(*role)).map(|of| of.pool_max).sum();
    assert!(sessions < 80, "{sessions}");
}

/// The override says of every node how it runs what was built, and where its health is.
#[test]
fn for_development_lets_every_node_run_what_was_built_last() {
    let text = read("docker-compose.dev.yml");
    let secrets = Secrets::made();
    let compose = compose();
    for name in ALL_NODES {
        let config = configuration(&compose.services[name], &secrets);
        let (port, role) = (listening(&config).next().unwrap(), config.node.roles.iter().next().unwrap());
        let node = format!(
            "\n  {name}:\n    <<: *dev-node\n    entrypoint: [/src/dev/node, /target/dev, \"{port}\", {role}, rookery-copy]\n"
        );
        assert!(text.contains(&node), "{node}");
    }
    assert!(text.contains("command: [/src/dev/watch, /target/dev]"));
}
