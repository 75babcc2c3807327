//! The house rules that no compiler checks, and that a review would forget.
//!
//! Each rule is a function from a text to what is wrong with it, so that its own test can show that it is able to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use toml::{Table, Value};

/// A file whose first line begins with this knows no runtime, no SQL, no clock and no randomness.
const PURE: &str = "//! Pure.";

/// The names of files in a service's folder that hold its rules, and therefore are pure.
const RULES: [&str; 3] = ["entity.rs", "rules.rs", "tree.rs"];

/// What a pure file may not name, and why.
const IMPURE: [(&str, &str); 13] = [
    ("tokio", "rules run without a runtime"),
    ("ractor", "the actor around the rules is written once"),
    ("tokio_postgres", "rules know no SQL"),
    ("bb8", "rules know no SQL"),
    ("SystemTime", "time arrives inside the command"),
    ("Instant", "time arrives inside the command"),
    ("Timestamp::now", "time arrives inside the command"),
    ("Zoned::now", "time arrives inside the command"),
    ("rand", "chance arrives inside the command"),
    ("now_v7", "ids arrive inside the command"),
    ("new_v4", "ids arrive inside the command"),
    ("async", "rules wait for nothing"),
    ("metrics", "the actor around the rules counts"),
];

/// What a crate may not depend on, and why.
const FORBIDDEN: [(&str, &[&str], &str); 2] = [
    (
        "actors",
        &["axum", "hyper", "hyper-util", "reqwest", "tower", "tower-http", "rdkafka"],
        "the services know no HTTP and no Kafka client",
    ),
    (
        "gateway",
        &["tokio-postgres", "bb8", "bb8-postgres", "refinery", "rdkafka", "tantivy", "rookery"],
        "the gateway knows no SQL, no Kafka and no nodes",
    ),
];

#[test]
fn pure_files_stay_pure() {
    let pure = rust_files("").filter(|(_, text)| text.starts_with(PURE));
    assert_tidy(complaints(pure, impurities));
}

#[test]
fn the_rules_of_every_service_are_declared_pure() {
    let rules = rust_files("actors/src/").filter(|(path, _)| is_rules(path));
    assert_tidy(complaints(rules, |text| {
        let declared = text.starts_with(PURE);
        if declared { vec![] } else { vec![format!("its first line must begin with `{PURE}`")] }
    }));
}

#[test]
fn dependencies_point_inwards() {
    for (member, forbidden, reason) in FORBIDDEN {
        let manifest = manifest(&format!("{member}/Cargo.toml"));
        assert_tidy(forbidden_dependencies(&manifest, forbidden).map(|name| format!("{member} depends on {name}: {reason}")));
    }
}

#[test]
fn the_gateway_contains_no_sql() {
    assert_tidy(complaints(rust_files("gateway/"), sql));
}

#[test]
fn nothing_but_the_region_is_reached_from_other_nodes() {
    let others = rust_files("").filter(|(path, _)| path != "nodes/src/links/region.rs");
    assert_tidy(complaints(others, remotable));
}

#[test]
fn every_exception_has_its_reason() {
    assert_tidy(complaints(rust_files(""), unexplained));
}

#[test]
fn no_file_names_a_developers_machine() {
    assert_tidy(complaints(tracked(), machine_paths));
}

#[test]
fn every_variable_that_is_read_is_known_where_unknown_ones_are_named() {
    // They name what nobody knows on purpose.
    let apart = ["nodes/src/config/variables.rs", "nodes/tests/nodes/edges.rs"];
    let files = tracked().into_iter().filter(|(path, _)| !apart.contains(&&**path));
    assert_tidy(complaints(files, unknown_variables));
}

#[test]
fn every_dependency_has_one_version() {
    let workspace = manifest("Cargo.toml");
    let table = table(&workspace, &["workspace", "dependencies"]);
    assert_tidy(strangers(&table).into_iter());
    for member in members(&workspace) {
        let own = own_versions(&manifest(&format!("{member}/Cargo.toml")));
        assert_tidy(own.into_iter().map(|name| format!("{member}: {name} must be `{name}.workspace = true`")));
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for member in members(&manifest("Cargo.toml")) {
        let lints = table(&manifest(&format!("{member}/Cargo.toml")), &["lints"]);
        assert_eq!(lints.get("workspace"), Some(&Value::Boolean(true)), "{member}");
    }
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let documents = tracked().into_iter().filter(|(path, _)| path.ends_with(".md"));
    let broken = documents.flat_map(|(path, text)| {
        let folder = root().join(&path);
        let folder = folder.parent().expect("a file lies in a folder").to_owned();
        links(&text)
            .into_iter()
            .filter(move |link| !folder.join(link).exists())
            .map(move |link| format!("{path}: {link} does not exist"))
            .collect::<Vec<_>>()
    });
    assert_tidy(broken);
}

#[test]
fn every_decision_is_numbered_once() {
    let names: Vec<_> = tracked().into_iter().filter_map(|(path, _)| Some(path.strip_prefix("docs/adr/")?.to_owned())).collect();
    assert_tidy(misnumbered(&names).into_iter());
}

// The rules.

fn impurities(text: &str) -> Vec<String> {
    let rules = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    for (number, line) in code(rules) {
        for (word, reason) in IMPURE {
            if has_word(line, word) {
                found.push(format!("line {number} names {word}: {reason}"));
            }
        }
    }
    found
}

/// `actors/src/<service>/entity.rs` and its like.
fn is_rules(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    matches!(parts[..], ["actors", "src", _, file] if RULES.contains(&file))
}

fn forbidden_dependencies(manifest: &Table, forbidden: &[&'static str]) -> impl Iterator<Item = &'static str> {
    let names: BTreeSet<_> = table(manifest, &["dependencies"]).keys().cloned().collect();
    forbidden.iter().copied().filter(move |name| names.contains(*name))
}

fn sql(text: &str) -> Vec<String> {
    let statements = ["select ", "insert into ", "update ", "delete from ", "create table "];
    code(text)
        .filter(|(_, line)| {
            let lower = line.to_lowercase();
            let opens = statements.iter().any(|statement| lower.contains(&format!("\"{statement}")));
            let shouts = line.contains("INSERT INTO ")
                || line.contains("DELETE FROM ")
                || (line.contains("SELECT ") && line.contains(" FROM "))
                || (line.contains("UPDATE ") && line.contains(" SET "));
            opens || shouts
        })
        .map(|(number, line)| format!("line {number} looks like SQL: {}", line.trim()))
        .collect()
}

/// Messages that become bytes make their actor remotable: every link then advertises each of them.
fn remotable(text: &str) -> Vec<String> {
    // ractor converts these by itself.
    let numbers = ["u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128", "f32", "f64"];
    let bytes = |message: &str| {
        numbers.contains(&message) || ["()", "bool", "char", "String"].contains(&message) || message.starts_with("Vec<")
    };
    code(text)
        .filter(|(_, line)| {
            let message = line.trim().strip_prefix("type Msg = ").and_then(|rest| rest.strip_suffix(';'));
            has_word(line, "RactorClusterMessage") || has_word(line, "BytesConvertable") || message.is_some_and(bytes)
        })
        .map(|(number, line)| format!("line {number} makes an actor remotable: {}", line.trim()))
        .collect()
}

fn unexplained(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for opening in ["[allow(", "[expect("] {
        for (at, _) in text.match_indices(opening) {
            let attribute = text[at..].split(")]").next().unwrap_or_default();
            if !attribute.contains("reason") {
                found.push(format!("line {}: a lint is lifted without a reason", line_of(text, at)));
            }
        }
    }
    for (at, _) in text.match_indices("#[ignore]") {
        found.push(format!("line {}: a test is ignored without a reason", line_of(text, at)));
    }
    found
}

fn machine_paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["/root/", "/home/", "/work/"] {
        for (at, _) in text.match_indices(folder) {
            // Within a longer path or a URL it is nobody's machine.
            let within = text[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}*".contains(c));
            if !within {
                found.push(format!("line {}: {folder}", line_of(text, at)));
            }
        }
    }
    found
}

/// Dependencies of a member that do not come from the workspace table.
/// Variables of ours that are no knobs, and are not in the list of those.
fn unknown_variables(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let names = text.split(|c: char| !is_part(c)).filter(|name| name.starts_with("ROOKERY_") && !name.starts_with("ROOKERY__"));
    let unknown = names.filter(|name| !name.ends_with('_') && !rookery::config::is_known_variable(name));
    unknown.map(|name| format!("{name} is not among the variables in nodes/src/config/variables.rs")).collect()
}

fn own_versions(manifest: &Table) -> Vec<String> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .flat_map(|kind| table(manifest, &[kind]))
        .filter(|(_, spec)| spec.get("workspace").and_then(Value::as_bool) != Some(true))
        .map(|(name, _)| name)
        .collect()
}

/// Dependencies of the workspace that come from no registry and are no member either.
fn strangers(table: &Table) -> Vec<String> {
    let foreign = |spec: &Value| spec.get("git").is_some() || (spec.get("path").is_none() && version(spec).is_none());
    table.iter().filter(|(_, spec)| foreign(spec)).map(|(name, _)| format!("{name} has no version of a registry")).collect()
}

fn version(spec: &Value) -> Option<&str> {
    spec.as_str().or_else(|| spec.get("version")?.as_str())
}

/// The files that a Markdown text links to, without anchors; addresses of the web are none.
fn links(text: &str) -> Vec<String> {
    let mut inside_code = false;
    text.lines()
        .filter(|line| {
            inside_code ^= line.trim_start().starts_with("```");
            !inside_code
        })
        .flat_map(|line| line.match_indices("](").map(|(at, _)| &line[at + 2..]))
        .filter_map(|rest| rest.split([')', ' ', '#']).next())
        .filter(|link| !link.is_empty() && !link.contains("://") && !link.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

fn misnumbered(names: &[String]) -> Vec<String> {
    let mut numbers = BTreeMap::new();
    let mut found = Vec::new();
    for name in names {
        let number = name.split('-').next().unwrap_or_default();
        if number.len() != 4 || !number.chars().all(|c| c.is_ascii_digit()) {
            found.push(format!("{name}: its name must begin as 0001-"));
        } else if let Some(other) = numbers.insert(number, name) {
            found.push(format!("{name} has the number of {other}"));
        }
    }
    found
}

// The ground they stand on.

fn assert_tidy(complaints: impl Iterator<Item = String>) {
    let complaints: Vec<_> = complaints.collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn complaints(
    files: impl IntoIterator<Item = (String, String)>,
    rule: impl Fn(&str) -> Vec<String>,
) -> impl Iterator<Item = String> {
    files.into_iter().flat_map(move |(path, text)| {
        let found = rule(&text);
        found.into_iter().map(move |complaint| format!("{path}: {complaint}"))
    })
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("nodes lies in the workspace").to_owned()
}

fn manifest(path: &str) -> Table {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn members(workspace: &Table) -> Vec<String> {
    let members = &workspace["workspace"]["members"];
    members
        .as_array()
        .expect("members are a list")
        .iter()
        .map(|member| member.as_str().expect("a member is a path").to_owned())
        .collect()
}

/// The table at a path, empty if there is none.
fn table(manifest: &Table, path: &[&str]) -> Table {
    path.iter().fold(manifest.clone(), |table, key| match table.get(*key) {
        Some(Value::Table(inner)) => inner.clone(),
        _ => Table::new(),
    })
}

/// Paths and texts of the Rust files below a folder; not this one, whose samples break every rule.
fn rust_files(folder: &str) -> impl Iterator<Item = (String, String)> {
    tracked().into_iter().filter(move |(path, _)| path.starts_with(folder) && path.ends_with(".rs"))
}

/// Paths and texts of what git tracks or would track. Without git, as in an archive, what a walk finds.
fn tracked() -> Vec<(String, String)> {
    let listed =
        Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root()).output();
    let paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).split_terminator('\0').map(str::to_owned).collect()
        }
        _ => walk(&root()),
    };
    assert!(paths.iter().any(|path| path == "Cargo.toml"), "the workspace has files");
    paths
        .into_iter()
        .filter(|path| path != "nodes/tests/tidy.rs")
        // What is not text has no rules; what is listed and gone is about to be committed as deleted.
        .filter_map(|path| Some((path.clone(), fs::read_to_string(root().join(path)).ok()?)))
        .collect()
}

fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" && name != ".rookery" {
                found.extend(walk(&path));
            }
        } else if let Ok(path) = path.strip_prefix(root()) {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    found
}

/// The numbered lines that are no comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn has_word(line: &str, word: &str) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(letter) && !line[at + word.len()..].starts_with(letter))
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Each rule finds what it is there for.
mod the_rules_can_fail {
    use super::*;

    #[test]
    fn a_clock_in_a_pure_file() {
        assert_eq!(impurities("//! Pure.\nlet now = jiff::Timestamp::now();").len(), 1);
    }

    #[test]
    fn a_runtime_in_a_pure_file() {
        assert_eq!(impurities("use tokio::sync::mpsc;").len(), 1);
    }

    #[test]
    fn a_fresh_id_in_a_pure_file() {
        assert_eq!(impurities("let id = Uuid::now_v7();").len(), 1);
    }

    #[test]
    fn only_whole_words_outside_comments_and_tests_count() {
        assert!(impurities("// no tokio\nlet operand = 1;\n#[cfg(test)]\nuse rand;").is_empty());
    }

    #[test]
    fn the_rules_of_a_service_are_recognised() {
        assert!(is_rules("actors/src/posts/entity.rs"));
        assert!(!is_rules("actors/src/entity.rs"));
        assert!(!is_rules("actors/src/posts/store.rs"));
    }

    #[test]
    fn a_forbidden_dependency() {
        let manifest = "[dependencies]\naxum.workspace = true".parse().unwrap();
        assert_eq!(forbidden_dependencies(&manifest, &["axum", "tower"]).collect::<Vec<_>>(), ["axum"]);
    }

    #[test]
    fn sql_in_the_gateway() {
        assert_eq!(sql("query(\"select 1\")\n\"INSERT INTO posts\"\n\"a SELECT b FROM c\"").len(), 3);
    }

    #[test]
    fn prose_is_no_sql() {
        assert!(sql("// SELECT a FROM b\n\"choose from the list and update it\"").is_empty());
    }

    #[test]
    fn a_second_actor_that_other_nodes_reach() {
        assert_eq!(remotable("#[derive(RactorClusterMessage)]\nimpl BytesConvertable for X {}\n    type Msg = ();").len(), 3);
        assert!(remotable("type Msg = Ask;\n// RactorClusterMessage").is_empty());
    }

    #[test]
    fn a_lint_lifted_without_a_reason() {
        assert_eq!(unexplained("#[allow(dead_code)]\nfn f() {}").len(), 1);
        assert_eq!(unexplained("#![expect(\n    dead_code,\n)]").len(), 1);
        assert!(unexplained("#[expect(\n    dead_code,\n    reason = \"the other half uses it\"\n)]").is_empty());
    }

    #[test]
    fn a_test_ignored_without_a_reason() {
        assert_eq!(unexplained("#[test]\n#[ignore]\nfn f() {}"), ["line 2: a test is ignored without a reason"]);
        assert!(unexplained("#[ignore = \"needs a week\"]").is_empty());
    }

    #[test]
    fn a_path_of_a_developers_machine() {
        assert_eq!(machine_paths("cd /home/ada/rookery\n\"/root/x\" (/work/y)").len(), 3);
    }

    #[test]
    fn a_path_of_the_web_is_nobodys_machine() {
        assert!(machine_paths("https://example.org/home/ and $HOME/work and /homework/").is_empty());
    }

    #[test]
    fn a_variable_that_is_not_listed() {
        assert_eq!(unknown_variables("env::var(\"ROOKERY_SPEED\")").len(), 1);
        assert_eq!(unknown_variables("ROOKERY_TOKEN, ROOKERY__DATA_DIR, ROOKERY_TEST_SEED"), [""; 0]);
    }

    #[test]
    fn a_version_of_ones_own() {
        let manifest = "[dev-dependencies]\nserde = \"1\"\nuuid.workspace = true".parse().unwrap();
        assert_eq!(own_versions(&manifest), ["serde"]);
    }

    #[test]
    fn a_dependency_from_git() {
        let table = "a = { git = \"https://example.org/a\" }\nb = \"1\"\nc = { path = \"c\" }".parse().unwrap();
        assert_eq!(strangers(&table), ["a has no version of a registry"]);
    }

    #[test]
    fn a_link_is_found() {
        assert_eq!(
            links("see [a](docs/a.md#top) and [b](https://example.org) and [c](#here)\n```\n[d](d.md)\n```"),
            ["docs/a.md"]
        );
    }

    #[test]
    fn a_decision_without_a_number_of_its_own() {
        let names = ["0001-a.md", "0001-b.md", "c.md"].map(str::to_owned);
        assert_eq!(misnumbered(&names).len(), 2);
    }
}
