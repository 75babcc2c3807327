//! Places in which a test makes a running node fail: a crash exactly there, where no signal from outside would hit it.
//!
//! A point is armed by a file in the folder that `ROOKERY_FAIL_POINTS` names; whoever takes the file away acts. So one
//! folder serves a whole cluster, whoever owns the shard by then, and exactly one process crashes once. The crate `fail`
//! would be configured within the process, for which every node would need a port. Without the variable a point costs a
//! comparison; a release build has none, unless it is built with the feature `fail-points`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use uuid::Uuid;

/// Whether this build has any.
pub const COMPILED_IN: bool = cfg!(any(debug_assertions, feature = "fail-points"));

/// Names the folder.
pub const VARIABLE: &str = "ROOKERY_FAIL_POINTS";

/// Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// An entity has decided, and nothing of it is on its way yet.
    BeforeCommit,
    /// An entity's write is committed; neither memory nor the caller knows.
    AfterCommit,
    /// A batch is committed; nothing of it is in memory, and none of its callers knows.
    BeforeFold,
    /// A shard is about to apply a foreign record.
    Projection,
}

impl Point {
    /// Its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeCommit => "before-commit",
            Self::AfterCommit => "after-commit",
            Self::BeforeFold => "before-fold",
            Self::Projection => "projection",
        }
    }
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A panic.
    Panic,
    /// The process ends at once, without a word.
    Exit,
    /// It takes this much longer.
    Sleep(Duration),
    /// What is about to be done is refused, where that is possible.
    Refuse,
}

/// A point that was armed so that it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fail point refuses it")]
pub struct Refused;

/// Passes a point; `about` is the entity that it concerns. Sleeps, panics or ends the process if the point is armed so.
///
/// # Errors
/// When it is armed to refuse.
///
/// # Panics
/// When it is armed to panic.
pub(crate) async fn pass(point: Point, about: Uuid) -> Result<(), Refused> {
    match armed(point, about) {
        None => Ok(()),
        Some(Action::Panic) => panic!("the fail point {} panics", point.name()),
        Some(Action::Exit) => std::process::abort(),
        Some(Action::Refuse) => Err(Refused),
        Some(Action::Sleep(time)) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
    }
}

fn armed(point: Point, about: Uuid) -> Option<Action> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    if !COMPILED_IN {
        return None;
    }
    let folder = FOLDER.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_deref()?;
    taken(folder, point).or_else(|| standing(folder, point, about))
}

/// The action of a point that is armed for one time, for whoever comes first.
fn taken(folder: &Path, point: Point) -> Option<Action> {
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let (process, number) = (std::process::id(), TAKEN.fetch_add(1, Ordering::Relaxed));
    let mine = folder.join(format!(".{}.{process}.{number}", point.name()));
    // Renaming is the claim: it works for one.
    fs::rename(folder.join(point.name()), &mine).ok()?;
    let text = fs::read_to_string(&mine).ok();
    let _ = fs::remove_file(mine);
    Armed::parse(&text?).map(|armed| armed.action)
}

/// The action of a point that is armed until it is disarmed.
fn standing(folder: &Path, point: Point, about: Uuid) -> Option<Action> {
    let armed = Armed::parse(&fs::read_to_string(folder.join(always(point))).ok()?)?;
    armed.about.is_none_or(|wanted| wanted == about).then_some(armed.action)
}

fn always(point: Point) -> String {
    format!("{}.always", point.name())
}

/// What a file says.
struct Armed {
    action: Action,
    about: Option<Uuid>,
}

impl Armed {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let action = match words.next()? {
            "panic" => Action::Panic,
            "exit" => Action::Exit,
            "refuse" => Action::Refuse,
            word => Action::Sleep(Duration::from_millis(word.strip_prefix("sleep:")?.parse().ok()?)),
        };
        Some(Self { action, about: words.next().and_then(|id| id.parse().ok()) })
    }
}

/// The folder from the side of who arms points.
#[derive(Clone, Debug)]
pub struct FailPoints(PathBuf);

impl FailPoints {
    /// Points of the nodes that were started with this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder, for [`VARIABLE`].
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Arms a point for whoever passes it next.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn once(&self, point: Point, action: Action) -> io::Result<()> {
        self.write(point.name(), action, None)
    }

    /// Whether a point that was armed [`FailPoints::once`] has been passed.
    pub fn is_passed(&self, point: Point) -> bool {
        !self.0.join(point.name()).exists()
    }

    /// Arms a point for everybody, or for what concerns one entity, until [`FailPoints::disarm`].
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn always(&self, point: Point, action: Action, about: Option<Uuid>) -> io::Result<()> {
        self.write(&always(point), action, about)
    }

    /// Disarms a point.
    pub fn disarm(&self, point: Point) {
        for name in [point.name().to_owned(), always(point)] {
            let _ = fs::remove_file(self.0.join(name));
        }
    }

    /// A file appears with all that it says: who passes must not read half of it.
    fn write(&self, name: &str, action: Action, about: Option<Uuid>) -> io::Result<()> {
        let action = match action {
            Action::Panic => "panic".to_owned(),
            Action::Exit => "exit".to_owned(),
            Action::Refuse => "refuse".to_owned(),
            Action::Sleep(time) => format!("sleep:{}", time.as_millis()),
        };
        let new = self.0.join(format!(".new.{name}"));
        fs::write(&new, format!("{action} {}", about.map(|id| id.to_string()).unwrap_or_default()))?;
        fs::rename(new, self.0.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn points() -> (tempfile::TempDir, FailPoints) {
        let folder = tempfile::tempdir().unwrap();
        let points = FailPoints::new(folder.path());
        (folder, points)
    }

    #[test]
    fn one_who_passes_takes_it_and_the_next_passes_freely() {
        let (folder, points) = points();
        points.once(Point::AfterCommit, Action::Exit).unwrap();
        assert_eq!(taken(folder.path(), Point::BeforeCommit), None);
        assert_eq!(taken(folder.path(), Point::AfterCommit), Some(Action::Exit));
        assert_eq!(taken(folder.path(), Point::AfterCommit), None);
        assert!(points.is_passed(Point::AfterCommit));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_standing_one_meets_whom_it_is_about() {
        let (folder, points) = points();
        let sleep = Action::Sleep(Duration::from_millis(20));
        points.always(Point::Projection, sleep, Some(A)).unwrap();
        assert_eq!(standing(folder.path(), Point::Projection, A), Some(sleep));
        assert_eq!(standing(folder.path(), Point::Projection, B), None);
        points.always(Point::Projection, Action::Refuse, None).unwrap();
        assert_eq!(standing(folder.path(), Point::Projection, B), Some(Action::Refuse));
        points.disarm(Point::Projection);
        assert_eq!(standing(folder.path(), Point::Projection, B), None);
    }

    #[tokio::test]
    async fn without_the_variable_every_point_is_passed() {
        assert_eq!(pass(Point::BeforeCommit, A).await, Ok(()));
    }
}
