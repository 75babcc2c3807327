//! A node that hangs takes connections and answers nothing: SIGSTOP does that.

use std::{
    io::Write,
    process::{Child, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rookery::testing::{Patience, Turn};
use serde_json::json;

use crate::process::{Running, rookery, status};

/// Longer than any command waits.
const PATIENCE: Duration = Duration::from_secs(40);

async fn ended(command: &mut Child) -> ExitStatus {
    let mut patience = Patience::of(PATIENCE);
    loop {
        if let Some(status) = command.try_wait().unwrap() {
            return status;
        }
        if patience.is_over() {
            let _ = command.kill();
            panic!("it does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How a command ends that asks the node of a data folder, and what it says.
async fn asked(arguments: &[&str], data: &std::path::Path) -> (Option<i32>, String) {
    let mut command = rookery(arguments);
    let mut command = command.env("ROOKERY__DATA_DIR", data).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = ended(&mut command).await;
    let output = command.wait_with_output().unwrap();
    (status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_for_a_node_that_hangs_say_so_and_end() {
    let _turn = Turn::wait(2);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let node = Running::start(rookery(&["up"]), &data).await;
    let posts = format!("{}/api/v1/posts", node.greeted("listens on").unwrap());

    let mut import = rookery(&["import", "-"]);
    let import = import.env("ROOKERY__DATA_DIR", &data).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut import = import.spawn().unwrap();
    let line = json!({"source_id": "s", "tag": "science", "title": "Before it hung", "body": "", "created_at": 1});
    // Open until the end: whoever pipes it in has more to come.
    let mut lines = import.stdin.take().unwrap();
    writeln!(lines, "{line}").unwrap();
    lines.flush().unwrap();
    node.until("the post is there", async |node| node.get(&posts).await.1.contains("Before it hung")).await;
    node.signal(Signal::SIGSTOP);

    let (importing, (code, said)) = tokio::join!(ended(&mut import), asked(&["status"], &data));
    let report = import.wait_with_output().unwrap();
    node.signal(Signal::SIGCONT);
    let report = String::from_utf8(report.stderr).unwrap();
    assert!(importing.code() == Some(1) && report.contains("does not answer: it hangs"), "{report}");
    assert!(code == Some(1) && said.contains("did not answer in time: it hangs"), "{said}");
    drop(lines);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_of_several_that_hangs_keeps_no_command_from_the_others() {
    let _turn = Turn::wait(3);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let fleet = Running::start(rookery(&["up", "--nodes", "2"]), &data).await;
    let status = status(&data);
    let nodes = status["nodes"].as_array().unwrap();
    for node in nodes {
        let pid = Pid::from_raw(i32::try_from(node["pid"].as_i64().unwrap()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        for (command, expected) in [(&["status"][..], "users"), (&["keys", "list"], "signing")] {
            let (code, said) = asked(command, &data).await;
            assert!(matches!(code, Some(0 | 3)) && said.contains(expected), "{command:?} without {node}: {said}");
        }
        kill(pid, Signal::SIGCONT).unwrap();
    }
    fleet.stop().await;
}
