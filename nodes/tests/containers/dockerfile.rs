//! Dockerfiles and `.dockerignore`, as far as we use them.

/// One instruction: `COPY`, and the rest of it on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) name: String,
    pub(crate) rest: String,
}

/// What begins with a `FROM`.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// The image or stage that it begins with.
    pub(crate) base: String,
    pub(crate) name: Option<String>,
    pub(crate) instructions: Vec<Instruction>,
}

pub(crate) fn stages(text: &str) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for instruction in instructions(text) {
        if instruction.name == "FROM" {
            let words: Vec<&str> = instruction.rest.split_whitespace().collect();
            let name = match words[..] {
                [_] => None,
                [_, "AS", name] => Some(name.to_owned()),
                _ => panic!("FROM {}", instruction.rest),
            };
            stages.push(Stage { base: words[0].to_owned(), name, instructions: Vec::new() });
        } else {
            let stage = stages.last_mut().expect("a Dockerfile begins with FROM");
            stage.instructions.push(instruction);
        }
    }
    stages
}

fn instructions(text: &str) -> Vec<Instruction> {
    let mut found = Vec::new();
    let mut open = String::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(begun) = line.strip_suffix('\\') {
            open.push_str(begun);
            continue;
        }
        open.push_str(line);
        let (name, rest) = open.split_once(' ').unwrap_or((&open, ""));
        found.push(Instruction { name: name.to_owned(), rest: rest.trim().to_owned() });
        open.clear();
    }
    assert!(open.is_empty(), "the last line ends with a backslash");
    found
}

impl Stage {
    /// The stage as an image: begun with the stage that it names, down to a foreign image.
    pub(crate) fn with_inherited(&self, all: &[Self]) -> Self {
        match all.iter().find(|stage| stage.name.as_ref() == Some(&self.base)) {
            Some(base) => {
                let base = base.with_inherited(all);
                let instructions = base.instructions.into_iter().chain(self.instructions.iter().cloned()).collect();
                Self { base: base.base, name: self.name.clone(), instructions }
            }
            None => self.clone(),
        }
    }

    /// What follows the only instruction of this name.
    pub(crate) fn only(&self, name: &str) -> &str {
        let mut rests = self.instructions.iter().filter(|instruction| instruction.name == name);
        match (rests.next(), rests.next()) {
            (Some(instruction), None) => &instruction.rest,
            _ => panic!("not one {name}"),
        }
    }

    /// The only instruction of this name, which must have the exec form: `["a", "b"]`.
    pub(crate) fn exec(&self, name: &str) -> Vec<String> {
        exec_form(self.only(name)).unwrap_or_else(|| panic!("{name} is not in exec form"))
    }

    /// The variables of its `ENV`s.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let env = self.instructions.iter().filter(|instruction| instruction.name == "ENV");
        env.flat_map(|instruction| instruction.rest.split_whitespace()).map(|pair| {
            let (name, value) = pair.split_once('=').expect("ENV is written NAME=value");
            (name.to_owned(), value.to_owned())
        })
    }

    pub(crate) fn copies(&self) -> impl Iterator<Item = Copy> {
        let copies = self.instructions.iter().filter(|instruction| instruction.name == "COPY");
        copies.map(|instruction| {
            let (options, paths): (Vec<&str>, Vec<&str>) =
                instruction.rest.split_whitespace().partition(|word| word.starts_with("--"));
            let from = options.iter().find_map(|option| option.strip_prefix("--from="));
            let (target, sources) = paths.split_last().expect("COPY has a target");
            Copy {
                from: from.map(str::to_owned),
                sources: sources.iter().map(|&source| source.to_owned()).collect(),
                target: (*target).to_owned(),
            }
        })
    }
}

/// A `COPY`.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) from: Option<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) target: String,
}

pub(crate) fn exec_form(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// Whether a path stays out of the build's context. The last pattern that matches it or a folder above it decides.
pub(crate) fn is_ignored(dockerignore: &str, path: &str) -> bool {
    let path: Vec<&str> = path.split('/').collect();
    let patterns = dockerignore.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    patterns.fold(false, |ignored, pattern| {
        let (keeps, pattern) = match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, pattern),
        };
        let pattern: Vec<&str> = pattern.split('/').collect();
        if covers(&pattern, &path) { !keeps } else { ignored }
    })
}

fn covers(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        // What is left of the path lies below what the pattern names.
        ([], _) => true,
        (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| covers(rest, &path[skipped..])),
        (["*", rest @ ..], [_, below @ ..]) => covers(rest, below),
        ([name, rest @ ..], [part, below @ ..]) if name == part => covers(rest, below),
        _ => false,
    }
}

#[test]
fn a_line_may_go_on_and_comments_are_skipped() {
    let text = "# one\nFROM a AS b\nRUN x \\\n # two\n && y\n";
    let stages = stages(text);
    assert_eq!((&*stages[0].base, stages[0].name.as_deref()), ("a", Some("b")));
    assert_eq!(stages[0].only("RUN"), "x && y");
}

#[test]
fn the_last_pattern_that_matches_decides() {
    let text = "*\n!actors\n!docker/ready.sh\n**/target";
    for kept in ["actors/src/lib.rs", "docker/ready.sh"] {
        assert!(!is_ignored(text, kept), "{kept}");
    }
    for ignored in [".git/config", "docker/secrets/x", "actors/target/debug", "target"] {
        assert!(is_ignored(text, ignored), "{ignored}");
    }
}
