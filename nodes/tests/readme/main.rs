//! The README from top to bottom, on one data folder, each command as it is printed.

use std::{fmt::Write as _, fs::Permissions, net::TcpListener, os::unix::fs::PermissionsExt, path::Path, process::Command};

use rookery::{migrate::Database, testing::TestPostgres};

/// What becomes of a block of commands, as the mark before it says.
#[derive(Debug, PartialEq)]
enum Use {
    /// Starts what serves until the next block that does.
    Serve,
    /// Runs to its end.
    Run,
    /// Starts nodes over databases of one's own, and waits for them.
    Nodes,
    /// Is left out, for a reason that stands there.
    NotRun,
}

/// The blocks in their order.
fn blocks(readme: &str) -> Vec<(Use, String)> {
    let mut blocks = Vec::new();
    let mut mark = None;
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("<!-- ") {
            mark = Some(rest.trim_end_matches(" -->").to_owned());
        } else if line == "```bash" {
            let code: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            let mark = mark.take().unwrap_or_else(|| panic!("a block without a mark says nothing of its use: {code:?}"));
            let of = match mark.as_str() {
                "readme: serve" => Use::Serve,
                "readme: nodes" => Use::Nodes,
                "readme: run" => Use::Run,
                tour if tour.starts_with("tour: ") => Use::Run,
                reason if reason.starts_with("readme: not run, ") => Use::NotRun,
                other => panic!("{other} is no use of a block"),
            };
            blocks.push((of, code.join("\n")));
        }
    }
    blocks
}

/// A shell that has the README's commands, and waits for what serves.
const PRELUDE: &str = r#"
set -euo pipefail
stopped() { # everything that was started stops in order
  for job in $(jobs -p); do
    kill -TERM "$job"
    wait "$job" || { echo "it did not stop in order"; cat serve.err; return 1; }
  done
}
greeted() { # greeted HOW_OFTEN: until so many have said where they answer
  for _ in $(seq 1800); do
    [ "$(grep -c '^health' serve.out)" -lt "$1" ] || return 0
    sleep 0.1
  done
  cat serve.out serve.err
  return 1
}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"#;

/// What `rookery` and `cargo` are in that shell: this build's program.
const ROOKERY: &str = "#!/bin/sh\nexec \"$PROGRAM_UNDER_TEST\" \"$@\"\n";
const CARGO: &str = r#"#!/bin/sh
[ "$1 $2" = "run --release" ] || { echo "not a command of the README's: cargo $*"; exit 1; }
shift 2
[ "$1" != "--" ] || shift
exec rookery "$@"
"#;

fn script(blocks: &[(Use, String)]) -> String {
    let mut script = PRELUDE.to_owned();
    for (of, code) in blocks {
        match of {
            Use::NotRun => {}
            Use::Run => writeln!(script, "echo '-- run'\n{code}").unwrap(),
            // The shell becomes the program, so that a signal reaches that.
            Use::Serve => {
                let code = code.replace("cargo run", "exec cargo run");
                writeln!(script, "echo '-- serve'\nstopped\n: >serve.out\n({code}\n) >>serve.out 2>>serve.err &\ngreeted 1")
                    .unwrap();
            }
            Use::Nodes => {
                let code = code.replace("\nwait", "\ngreeted 2 >&3");
                writeln!(script, "echo '-- nodes'\nstopped\n: >serve.out\n{{\n{code}\n}} 3>&1 >>serve.out 2>>serve.err\nstopped")
                    .unwrap();
            }
        }
    }
    script
}

/// A port such that the gateways of five nodes have theirs, too.
fn free_port() -> u16 {
    for _ in 0..100 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let free = |offset: u16| TcpListener::bind(("127.0.0.1", port + offset)).is_ok();
        if port < 60_000 && (0..5).all(|node| free(node * 10)) {
            return port;
        }
    }
    panic!("no free ports")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_works_from_top_to_bottom_on_one_data_folder() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(blocks.iter().filter(|(of, _)| *of == Use::Run).count() >= 7, "the README has a tour");
    let mut script = script(&blocks);
    let postgres = TestPostgres::shared();
    for database in Database::ALL {
        let made = postgres.fresh_database(database).await;
        let url = postgres.server().url(made.get_dbname().unwrap());
        script = script.replace(&format!("postgres://rookery:password@db.example/{database}\n"), &format!("'{url}'\n"));
    }
    assert!(!script.contains("db.example"));

    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    for (name, text) in [("rookery", ROOKERY), ("cargo", CARGO)] {
        std::fs::write(programs.join(name), text).unwrap();
        std::fs::set_permissions(programs.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::join_paths([programs].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    let port = free_port();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", "400", "bash", "-c", &script]).current_dir(folder.path());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ROOKERY")) {
        command.env_remove(name);
    }
    command.env("PATH", path.unwrap()).env("PROGRAM_UNDER_TEST", env!("CARGO_BIN_EXE_rookery"));
    command.env("ROOKERY", format!("http://127.0.0.1:{port}")).env("ROOKERY__GATEWAY__LISTEN", format!("127.0.0.1:{port}"));
    for service in ["USERS", "POSTS", "COMMENTS", "SEARCH"] {
        command.env(format!("ROOKERY__SERVICES__{service}__LISTEN"), "127.0.0.1:0");
    }
    posts(&folder.path().join("posts.jsonl.gz"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(said.matches("-- serve").count() >= 2 && said.contains("-- nodes"), "{said}");
}

/// A few posts as the import takes them.
fn posts(file: &Path) {
    let line = |n: u32| {
        format!(
            r#"{{"source_id":"p{n}","tag":"history","title":"Post {n}","body":"Text {n}.","created_at":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let plain = file.with_extension("");
    std::fs::write(&plain, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    assert!(Command::new("gzip").arg(plain).status().unwrap().success());
}
