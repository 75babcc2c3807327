//! The scripts in `docker/`, run for real.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    thread,
};

use tempfile::TempDir;

use crate::{SECRETS, Secrets, compose, dockerfile::is_ignored, read, root, run};

/// Where `docker-compose.yml` expects the secrets.
const SECRETS_FOLDER: &str = "docker/secrets";

mod the_secrets {
    use super::*;

    #[test]
    fn that_compose_asks_for_are_those_that_the_script_makes() {
        let asked: BTreeSet<_> = compose()
            .secrets
            .into_iter()
            .map(|(name, secret)| {
                assert_eq!(secret.file, format!("{SECRETS_FOLDER}/{name}"));
                name
            })
            .collect();
        assert_eq!(asked, Secrets::made().names());
    }

    #[test]
    fn are_given_to_those_alone_who_read_them() {
        for (name, service) in compose().services {
            let read: BTreeSet<_> =
                service.environment.values().filter_map(|value| value.strip_prefix(SECRETS).map(str::to_owned)).collect();
            assert_eq!(service.secrets, read, "{name}");
        }
    }

    #[test]
    fn stay_as_they_are_when_they_are_made_again() {
        let secrets = Secrets::made();
        let before: Vec<_> = secrets.names().iter().map(|name| secrets.read(name)).collect();
        secrets.make();
        let after: Vec<_> = secrets.names().iter().map(|name| secrets.read(name)).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn are_nobody_elses_and_each_another() {
        let secrets = Secrets::made();
        let mode = fs::metadata(secrets.folder()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let different: BTreeSet<_> = secrets.names().iter().map(|name| secrets.read(name)).collect();
        assert_eq!(different.len(), secrets.names().len());
    }

    #[test]
    fn go_neither_into_git_nor_into_the_image() {
        assert!(read(".gitignore").lines().any(|line| line == format!("/{SECRETS_FOLDER}")));
        assert!(is_ignored(&read(".dockerignore"), &format!("{SECRETS_FOLDER}/rookery-secret")));
    }
}

mod the_skeleton {
    use super::*;

    /// What makes the layer of dependencies survive a change of code: nothing of the code is in it.
    #[test]
    fn holds_manifests_and_empty_sources_alone() {
        let skeleton = skeleton();
        for path in files(skeleton.path()) {
            let text = fs::read_to_string(skeleton.path().join(&path)).unwrap();
            if path.ends_with("Cargo.toml") || path == "Cargo.lock" {
                assert_eq!(text, read(&path), "{path}");
            } else {
                assert!(["", "fn main() {}\n"].contains(&&*text), "{path}: {text}");
            }
        }
    }

    #[test]
    fn is_a_workspace_to_cargo() {
        let skeleton = skeleton();
        let output = run(Command::new(env!("CARGO"))
            .args(["tree", "--locked", "--offline", "--package", "rookery", "--depth", "1"])
            .current_dir(skeleton.path()));
        assert!(String::from_utf8_lossy(&output.stdout).contains("rookery-actors"));
    }

    fn skeleton() -> TempDir {
        let folder = TempDir::new().unwrap();
        run(Command::new(root().join("docker/skeleton.sh")).arg(root()).arg(folder.path()));
        folder
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found
    }
}

mod the_health_check {
    use super::*;

    #[test]
    fn passes_when_the_node_is_ready() {
        let (output, request) = asked("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert!(output.status.success());
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
    }

    #[test]
    fn fails_and_says_why_when_it_is_not() {
        let (output, _) = asked("HTTP/1.1 503 Service Unavailable\r\n\r\nposts.database");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stdout).contains("posts.database"));
    }

    #[test]
    fn fails_when_nobody_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(check(port).status.code(), Some(1));
    }

    fn asked(answer: &'static str) -> (Output, String) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (check(port), server.join().unwrap())
    }

    fn check(port: u16) -> Output {
        let script = root().join("docker/ready.sh");
        Command::new(script).arg(port.to_string()).output().unwrap()
    }
}
