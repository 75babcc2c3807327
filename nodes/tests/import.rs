//! The command line and a node as real processes: an import, interrupted and repeated, loses nothing and doubles nothing.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rookery::testing::{Patience, Turn};
use serde_json::{Value, json};

const ROOKERY: &str = env!("CARGO_BIN_EXE_rookery");

/// A node with a data folder of its own; killed with the value.
struct Node {
    process: Child,
}

impl Node {
    fn start(data: &Path) -> Self {
        let mut command = Command::new(ROOKERY);
        command.args(["up", "--data-dir"]).arg(data).current_dir(data).stdout(Stdio::piped()).stderr(Stdio::null());
        for name in ["GATEWAY", "SERVICES__USERS", "SERVICES__POSTS", "SERVICES__COMMENTS", "SERVICES__SEARCH"] {
            command.env(format!("ROOKERY__{name}__LISTEN"), "127.0.0.1:0");
        }
        let mut process = command.spawn().expect("the binary is built");
        let mut greeting = String::new();
        let stdout = process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut greeting).expect("the node greets");
        assert!(greeting.starts_with("Rookery listens"), "{greeting:?}");
        Self { process }
    }

    /// Ends it as a power failure would.
    fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it was ours");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rookery(data: &Path, arguments: &[&str]) -> Output {
    Command::new(ROOKERY).args(arguments).arg("--data-dir").arg(data).current_dir(data).output().expect("the binary is built")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn post(n: usize) -> Value {
    json!({"source_id": format!("s{n}"), "tag": "science", "title": format!("Post {n}"), "body": "a &lt; b",
           "created_at": 1_300_000_000 + n, "score": 1, "num_comments": 0})
}

fn write(path: &Path, lines: impl IntoIterator<Item = String>) {
    let mut file = std::fs::File::create(path).expect("the folder is ours");
    for line in lines {
        writeln!(file, "{line}").expect("there is room");
    }
}

#[test]
fn an_import_whose_node_is_killed_goes_on_where_it_was() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = folder.path();
    let file = data.join("posts.jsonl");
    write(&file, (0..3_000).map(|n| post(n).to_string()));

    let node = Node::start(data);
    let mut importer = Command::new(ROOKERY);
    importer.arg("import").arg(&file).arg("--data-dir").arg(data).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut importer = importer.spawn().expect("the binary is built");
    // The first line of progress says that something is in.
    let stderr = importer.stderr.take().expect("it is piped");
    let mut progress = String::new();
    BufReader::new(stderr).read_line(&mut progress).expect("the importer reports");
    node.kill();
    importer.wait().expect("it was ours");

    let node = Node::start(data);
    let again = rookery(data, &["import", "posts.jsonl"]);
    assert!(again.status.success(), "{}", said(&again));
    let third = said(&rookery(data, &["import", "posts.jsonl"]));
    assert!(third.contains("already there  3,000") && third.contains("imported       0"), "{third}");
    drop(node);
}

#[test]
fn users_posts_and_comments_are_imported_and_bad_lines_are_reported() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = folder.path();
    let _node = Node::start(data);
    let good = [
        json!({"type": "user", "username": "grace", "bio": "compilers", "created_at": "2013-08-01T12:00:00Z"}),
        json!({"type": "post", "source_id": "p", "author": "grace", "title": "Nanoseconds", "created_at": 1_375_358_400}),
        json!({"type": "comment", "source_id": "c", "post": "p", "author": "grace", "body": "one", "created_at": 1_375_358_401}),
        json!({"type": "comment", "post": "p", "parent": "c", "author": "grace", "body": "two", "created_at": 1_375_358_402}),
    ];
    let bad = ["nonsense".to_owned(), json!({"type": "post", "author": "nobody", "title": "x", "created_at": 1}).to_string()];
    write(&data.join("mixed.jsonl"), good.map(|line| line.to_string()).into_iter().chain(bad));

    let lenient = rookery(data, &["import", "mixed.jsonl"]);
    assert!(lenient.status.success());
    assert!(
        said(&lenient).contains("imported       4") && said(&lenient).contains("line 5: not a JSON object"),
        "{}",
        said(&lenient)
    );

    let strict = rookery(data, &["import", "mixed.jsonl", "--strict"]);
    assert_eq!(strict.status.code(), Some(1));
    assert!(said(&strict).contains("already there  4"), "{}", said(&strict));

    let reindexed = rookery(data, &["reindex"]);
    assert!(said(&reindexed).contains("4 documents can be found"), "{}", said(&reindexed));
    assert!(rookery(data, &["admin", "grant", "grace", "admin"]).status.success());
    assert_eq!(rookery(data, &["admin", "grant", "nobody", "admin"]).status.code(), Some(1));
}

/// As in `rookery import x 2>&1 | true`.
#[test]
fn an_import_goes_on_when_nobody_reads_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = folder.path();
    let _node = Node::start(data);
    let bad = (0..30).map(|_| "nonsense".to_owned());
    write(&data.join("posts.jsonl"), bad.chain((0..50).map(|n| post(n).to_string())));

    let mut importer = Command::new(ROOKERY);
    importer.args(["import", "posts.jsonl", "--data-dir"]).arg(data).current_dir(data);
    let mut importer = importer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary is built");
    drop((importer.stdout.take(), importer.stderr.take()));
    assert!(importer.wait().expect("it was ours").success());

    let again = said(&rookery(data, &["import", "posts.jsonl"]));
    assert!(again.contains("already there  50") && again.contains("bad lines      30"), "{again}");
}

/// A bad line never ends an import, nor does a file of bad lines that nobody asked for.
#[test]
fn bad_lines_that_cannot_be_written_anywhere_are_counted_and_nothing_is_lost_by_it() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = folder.path();
    let _node = Node::start(data);
    let bad = (0..30).map(|_| "nonsense".to_owned());
    write(&data.join("posts.jsonl"), bad.chain((0..50).map(|n| post(n).to_string())));
    let errors = data.join("posts.jsonl.errors");

    std::fs::create_dir(&errors).expect("the folder is ours");
    let imported = rookery(data, &["import", "posts.jsonl"]);
    let told = said(&imported);
    assert!(imported.status.success() && told.contains("imported       50") && told.contains("bad lines      30"), "{told}");
    assert!(told.contains("written nowhere") && told.contains("--errors"), "{told}");
    std::fs::remove_dir(&errors).expect("it is empty");

    // In a folder of everybody's, anybody may have put it there.
    let victim = data.join("victim");
    std::fs::write(&victim, "precious").expect("the folder is ours");
    std::os::unix::fs::symlink(&victim, &errors).expect("the folder is ours");
    let again = rookery(data, &["import", "posts.jsonl"]);
    assert!(again.status.success() && said(&again).contains("already there  50"), "{}", said(&again));
    assert_eq!(std::fs::read_to_string(&victim).expect("it is there"), "precious");
    std::fs::remove_file(&errors).expect("the folder is ours");

    let once_more = said(&rookery(data, &["import", "posts.jsonl"]));
    assert!(once_more.contains("all bad lines and their reasons: posts.jsonl.errors"), "{once_more}");
    assert_eq!(std::fs::read_to_string(&errors).expect("it is there").lines().count(), 30);
}

#[test]
fn a_file_for_bad_lines_that_cannot_be_written_is_said_before_anything_is_imported() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = folder.path();
    let _node = Node::start(data);
    write(&data.join("posts.jsonl"), (0..3).map(|n| post(n).to_string()));
    let refused = rookery(data, &["import", "posts.jsonl", "--errors", "no/such/folder.jsonl"]);
    assert!(refused.status.code() == Some(1) && said(&refused).contains("no/such/folder.jsonl"), "{}", said(&refused));
    let full = rookery(data, &["import", "posts.jsonl", "--errors", "/dev/full"]);
    assert!(full.status.success() && said(&full).contains("imported       3"), "there was no bad line: {}", said(&full));
    write(&data.join("posts.jsonl"), (0..3).map(|n| post(n).to_string()).chain(["nonsense".to_owned()]));
    let full = rookery(data, &["import", "posts.jsonl", "--errors", "/dev/full"]);
    assert!(full.status.code() == Some(1) && said(&full).contains("No space left"), "{}", said(&full));
    assert!(said(&full).contains("already there  3"), "{}", said(&full));
}

/// As in `slow | rookery import -`: what is wrong is said when it is known, and not when standard input ends.
#[test]
fn an_import_from_a_pipe_says_at_once_that_no_node_runs() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().expect("a folder can be made");
    for begin in [None, Some(post(0).to_string())] {
        let mut importer = Command::new(ROOKERY);
        importer.args(["import", "-", "--data-dir"]).arg(folder.path()).current_dir(folder.path());
        importer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut importer = importer.spawn().expect("the binary is built");
        let mut stdin = importer.stdin.take().expect("it is piped");
        if let Some(line) = begin {
            writeln!(stdin, "{line}").expect("it reads");
        }
        let mut patience = Patience::of(Duration::from_secs(30));
        while importer.try_wait().expect("it is ours").is_none() {
            if patience.is_over() {
                let _ = importer.kill();
                panic!("it waits for the end of its input");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(stdin);
        let output = importer.wait_with_output().expect("it was ours");
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("start one with `rookery up`"), "{}", said(&output));
    }
}

/// A disk that is full must not look like an answer that was given.
#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let output = Command::new(ROOKERY).args(["config", "check"]).stdout(full).output().expect("the binary is built");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("the answer cannot be written: No space left on device"), "{}", said(&output));
}

#[test]
fn a_byte_order_mark_costs_no_record() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = folder.path();
    let _node = Node::start(data);
    let lines = [
        json!({"type": "user", "username": "grace", "created_at": 1}).to_string(),
        json!({"type": "post", "source_id": "p", "author": "grace", "title": "Nanoseconds", "created_at": 2}).to_string(),
        json!({"type": "comment", "post": "p", "author": "grace", "body": "one", "created_at": 3}).to_string(),
    ];
    write(&data.join("marked.jsonl"), [format!("\u{FEFF}{}", lines[0]), lines[1].clone(), format!("\u{FEFF}{}", lines[2])]);
    let imported = rookery(data, &["import", "marked.jsonl", "--strict"]);
    assert!(imported.status.success() && said(&imported).contains("imported       3"), "{}", said(&imported));
}

#[test]
fn without_a_node_a_command_says_how_to_get_one() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let output = rookery(folder.path(), &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("start one with `rookery up`"), "{}", said(&output));
}
