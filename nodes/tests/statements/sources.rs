//! The statements in the sources.

use std::{fs, path::Path};

use crate::plans::squeezed;

/// Each with its file, as far as its text is fixed.
pub(crate) fn statements() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
    let mut found = Vec::new();
    for folder in ["actors/src", "nodes/src"] {
        look(&root.join(folder), root, &mut found);
    }
    assert!(found.len() > 60, "there are more than {}", found.len());
    found
}

fn look(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A rebuild goes through all that there is: once, when events were missed for good.
        if ["chaos", "testing", "testing.rs", "rebuild.rs"].contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            look(&path, root, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            // Tests come last in a file.
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let file = path.strip_prefix(root).unwrap().display().to_string();
            found.extend(literals(text).filter_map(|text| Some((file.clone(), statement(&text)?))));
        }
    }
}

/// What stands between quotes, without the ends of lines that a backslash takes away.
fn literals(text: &str) -> impl Iterator<Item = String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect();
    let code = code.replace("\\\"", "'").replace("'\"'", "' '");
    let code: String = code.split("\\\n").enumerate().map(|(n, part)| if n == 0 { part } else { part.trim_start() }).collect();
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// A statement, up to what is put into it.
fn statement(text: &str) -> Option<String> {
    let text = squeezed(text);
    let is_one = ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "WITH "]
        .iter()
        .any(|begin| text.trim_start_matches('(').starts_with(begin));
    let fixed = text.split('{').next().unwrap_or_default().trim_end();
    (is_one && fixed.len() > "DELETE FROM ".len()).then(|| fixed.to_owned())
}

#[test]
fn a_statement_is_found_in_a_source() {
    let text = "// \"SELECT in a comment\"\nlet sql = \"SELECT a\n    FROM b WHERE {c}\"; let other = \"a text\";";
    let found: Vec<_> = literals(text).filter_map(|text| statement(&text)).collect();
    assert_eq!(found, ["SELECT a FROM b WHERE"]);
}
