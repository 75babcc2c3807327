//! The load bench, run as people run it.

use std::process::Command;

#[test]
fn a_run_reports_every_case_that_was_asked_for_without_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_load"))
        .args(["--only", "bare,argon2", "--connections", "3"])
        .args(["--rounds", "2", "--seconds", "0.3", "--json"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{output:?}");
    assert!(said.contains("bare@3") && said.contains("argon2"), "{said}");

    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for case in report["cases"].as_array().unwrap() {
        assert_eq!(case["verdict"], "none", "{case}");
        for round in case["rounds"].as_array().unwrap() {
            assert!(round["server_us"].as_f64().unwrap() > 0.0, "{round}");
            assert_eq!(round["errors"], 0, "{round}");
        }
    }
}

#[test]
fn a_program_that_is_not_rookery_is_an_error_that_says_so() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_load")).args(["--only", "get", "--quick", "--rookery", "/bin/false"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("rookery ended: exit status: 1"), "{said}");
}
