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

/// `rookery-copy`, with a program of ours that says who it is and waits to be ended.
mod the_copies {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Stdio},
    };

    use super::*;

    struct Copy {
        child: Child,
        name: String,
        folder: String,
    }

    impl Copy {
        fn start(data: &Path, programs: &Path) -> Self {
            let path = std::env::var("PATH").unwrap();
            let mut child = Command::new(root().join("docker/copy.sh"))
                .args(["node", "--roles", "posts"])
                .env("PATH", format!("{}:{path}", programs.display()))
                .env("ROOKERY__NODE__NAME", "posts")
                .env("ROOKERY__DATA_DIR", data)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
            let [name, folder, "node", "--roles", "posts"] = said.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{said}");
            };
            let (name, folder) = (name.to_owned(), folder.to_owned());
            Self { child, name, folder }
        }

        fn end(mut self) {
            drop(self.child.stdin.take());
            self.child.wait().unwrap();
        }
    }

    /// A program in place of ours: says how it was started, and lives until its input ends.
    fn programs() -> TempDir {
        let folder = TempDir::new().unwrap();
        let program = folder.path().join("rookery");
        fs::write(&program, "#!/bin/sh\necho \"$ROOKERY__NODE__NAME $ROOKERY__DATA_DIR $*\"\nread -r line\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn of_a_node_have_names_and_folders_of_their_own_and_get_them_back() {
        let (data, programs) = (TempDir::new().unwrap(), programs());
        let start = || Copy::start(data.path(), programs.path());
        let (first, second, third) = (start(), start(), start());
        // The first has what a node without copies had before: its volume holds data already.
        assert_eq!((&*first.name, Path::new(&first.folder)), ("posts", data.path()));
        assert_eq!((&*second.name, Path::new(&second.folder)), ("posts-2", &*data.path().join("copies/2")));
        assert_eq!(third.name, "posts-3");
        let mode = fs::metadata(&second.folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "as the program wants it");
        second.end();
        let again = start();
        assert_eq!(again.name, "posts-2", "a container that is made again finds the data of the one before");
        for copy in [first, again, third] {
            copy.end();
        }
        assert_eq!(start().name, "posts");
    }

    /// Yesterday's container starts the program itself.
    #[test]
    fn leave_a_folder_alone_whose_node_was_started_without_the_script() {
        let (data, programs) = (TempDir::new().unwrap(), programs());
        let lock = fs::File::create(data.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        let copy = Copy::start(data.path(), programs.path());
        assert_eq!(copy.name, "posts-2");
        copy.end();
    }
}

mod the_check_of_the_broker {
    use super::*;

    /// Error 0, no keys.
    const ANSWER: &[u8] = &[0, 0, 0, 10, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0];

    #[test]
    fn asks_for_the_versions_of_its_api() {
        let (output, request) = asked(ANSWER);
        assert!(output.status.success(), "{output:?}");
        let length = usize::try_from(u32::from_be_bytes(request[..4].try_into().unwrap())).unwrap();
        assert_eq!(length, request.len() - 4);
        assert_eq!(request[4..8], [0, 18, 0, 0], "ApiVersions in version 0");
        assert_eq!(&request[14..], b"ready");
    }

    #[test]
    fn fails_when_the_broker_answers_something_else_or_nothing() {
        for wrong in [&[][..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0, 0, 0, 10, 0, 0, 0, 7, 0, 35, 0, 0, 0, 0]] {
            assert_eq!(asked(wrong).0.status.code(), Some(1), "{wrong:?}");
        }
    }

    fn asked(answer: &'static [u8]) -> (Output, Vec<u8>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 19];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            request
        });
        let script = root().join("docker/kafka-ready.sh");
        let output = Command::new("bash").arg(script).arg(port.to_string()).output().unwrap();
        (output, server.join().unwrap())
    }
}
