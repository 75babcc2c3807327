//! `docker/Dockerfile` builds this workspace and runs its program.

use std::collections::BTreeSet;

use rookery::config::Config;

use crate::{
    assert_understood,
    dockerfile::{exec_form, is_ignored},
    image, listening, read, read_configuration, root, running,
};

#[test]
fn copies_from_stages_and_paths_that_exist() {
    let ignored = read(".dockerignore");
    let mut known: Vec<String> = Vec::new();
    for stage in image() {
        for copy in stage.copies() {
            match copy.from {
                Some(from) => assert!(known.contains(&from), "there is no stage {from} before"),
                None => {
                    for source in copy.sources.iter().filter(|source| *source != ".") {
                        assert!(root().join(source).exists(), "{source} does not exist");
                        assert!(!is_ignored(&ignored, source), "{source} is ignored");
                    }
                }
            }
        }
        known.extend(stage.name);
    }
}

#[test]
fn sees_all_of_the_workspace() {
    let ignored = read(".dockerignore");
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let members = members.iter().map(|member| member.as_str().unwrap());
    for path in members.chain(["Cargo.lock", "migrations", "docker/skeleton.sh"]) {
        assert!(root().join(path).exists(), "{path}");
        assert!(!is_ignored(&ignored, path), "{path} is ignored");
    }
}

#[test]
fn compiles_with_the_rust_of_the_workspace_on_the_debian_that_runs_the_result() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    let image = image();
    let running = running(&image);
    let debian = running.base.strip_prefix("debian:").expect("it runs on Debian");
    assert_eq!(image[0].base, format!("rust:{rust}-slim-{}", debian.trim_end_matches("-slim")));
}

#[test]
fn begins_with_no_other_foreign_images() {
    let image = image();
    let stages: Vec<_> = image.iter().filter_map(|stage| stage.name.as_deref()).collect();
    let mut foreign: Vec<_> = image.iter().map(|stage| &*stage.base).filter(|base| !stages.contains(base)).collect();
    // `scratch` is no image: nothing.
    foreign.retain(|base| *base != "scratch");
    assert_eq!(foreign.len(), 2, "{foreign:?}");
}

#[test]
fn runs_our_program_as_nobody_special() {
    let manifest: toml::Table = read("nodes/Cargo.toml").parse().unwrap();
    let program = manifest["bin"][0]["name"].as_str().unwrap();
    let image = image();
    let stage = running(&image);
    assert_eq!(stage.exec("ENTRYPOINT"), [program]);
    assert_understood("CMD", &stage.exec("CMD"));
    let built = stage.copies().find(|copy| copy.from.is_some()).expect("it copies the program");
    assert_eq!(built.sources, [format!("/src/target/release/{program}")]);
    assert_eq!(built.target, format!("/usr/local/bin/{program}"));
    let (user, group) = stage.only("USER").split_once(':').expect("user and group");
    assert!(user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0);
}

#[test]
fn exposes_what_the_program_listens_on_by_default() {
    let image = image();
    let config = read_configuration(running(&image).variables());
    let exposed: BTreeSet<u16> = running(&image).only("EXPOSE").split(' ').map(|port| port.parse().unwrap()).collect();
    assert_eq!(exposed, listening(&config).collect());
    assert_eq!(exposed, listening(&Config::default()).collect());
    assert!(config.gateway.listen.ip().is_unspecified());
}

#[test]
fn keeps_its_data_in_its_volume() {
    let image = image();
    let stage = running(&image);
    let config = read_configuration(stage.variables());
    let folder = config.data_dir.to_str().unwrap();
    assert_eq!(stage.exec("VOLUME"), [folder]);
    assert_eq!(stage.only("WORKDIR"), folder);
}

#[test]
fn checks_the_health_of_the_gateway_with_what_it_copied() {
    let image = image();
    let stage = running(&image);
    let (_, command) = stage.only("HEALTHCHECK").split_once("CMD ").expect("it runs a command");
    let [program, port] = &exec_form(command).expect("exec form")[..] else {
        panic!("{command}");
    };
    let copied = stage.copies().find(|copy| copy.target == format!("/usr/local/bin/{program}"));
    assert_eq!(copied.expect("it was copied").sources, ["docker/ready.sh"]);
    let config = read_configuration(stage.variables());
    assert_eq!(port.parse(), Ok(config.gateway.listen.port()));
}

/// The line tables are large, and nothing needs them to run.
#[test]
fn ships_the_program_without_its_line_tables_and_keeps_them_apart() {
    let image = image();
    let stage = |name: &str| image.iter().find(|stage| stage.name.as_deref() == Some(name)).expect(name);
    let program = running(&image).copies().find_map(|copy| copy.from.and(copy.sources.into_iter().next())).expect("a program");
    let kept = stage("debug").copies().next().expect("it is kept").sources;
    assert_eq!(kept, [format!("{program}.debug")]);
    let mut builds = stage("builder").instructions.iter().filter(|instruction| instruction.name == "RUN");
    assert!(builds.next_back().unwrap().rest.ends_with("docker/split-debug.sh target/release/rookery"));
}

/// A vendored one costs minutes of every build and gets no security updates from Debian.
#[test]
fn uses_the_openssl_of_debian_in_the_image_and_in_ci() {
    let image = image();
    let toolchain = &image[0];
    assert!(toolchain.variables().any(|variable| variable == ("OPENSSL_NO_VENDOR".to_owned(), "1".to_owned())));
    assert!(toolchain.only("RUN").contains(" libssl-dev "));
    assert!(running(&image).instructions.iter().any(|instruction| instruction.rest.contains(" libssl3")));
    assert!(read(".ci/lib.sh").contains("export OPENSSL_NO_VENDOR=1"));
}
