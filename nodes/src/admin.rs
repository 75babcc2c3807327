//! The admin port of a running node: a small HTTP service behind a unix socket that only the node's own user may open.
//!
//! | | |
//! |---|---|
//! | `GET /status` | [`status::Status`] |
//! | `GET /node` | [`Report`] of this node |
//! | `POST /import` | [`item::Numbered`] in, [`item::Answer`] out, a line each |
//! | `POST /reindex` | [`reindex::Progress`] out, a line each |
//! | `POST /restored` | [`restored::Restored`] in |
//! | `GET /dlt` `POST /dlt` | [`services::Letter`]; replay: [`dlt::Wanted`] in, [`dlt::Replayed`] out, a line each |
//! | `GET /keys` `POST /keys/rotate` | [`keys::Key`] |
//! | `POST /grant` | [`keys::Grant`] in |
//! | `POST /password` | [`keys::NewPassword`] in |
//!
//! [`router`] knows nothing of the socket: the gateway mounts it too, for tokens with the role `admin`.

mod directory;
pub mod dlt;
mod import;
pub mod item;
pub mod keys;
pub mod ndjson;
pub mod reindex;
pub mod restored;
pub mod services;
pub(crate) mod silence;
pub mod socket;
pub mod status;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use rookery_actors::{
    entity::Failure,
    secret::KeyRing,
    users::keys::{KeyError, Overlap, SigningKeys},
};
use rookery_gateway::{Problem, problem};
use tokio::task::JoinHandle;

use self::services::Administered;
use crate::{
    node::{Faces, NamedBridge},
    report::{self, Report, Said},
};

/// What is administered.
pub struct Admin {
    node: About,
    faces: Faces,
    services: Vec<Box<dyn Administered>>,
    bridges: Arc<Vec<NamedBridge>>,
    secrets: KeyRing,
    keys_changed: KeysChanged,
    overlap: Overlap,
    reindexing: tokio::sync::Mutex<()>,
}

/// Tells the gateway of this node to sign and verify with other keys.
pub type KeysChanged = Box<dyn Fn(&SigningKeys) + Send + Sync>;

/// Who the node is.
#[derive(Clone)]
pub struct About {
    /// Its name.
    pub name: String,
    /// What it says of itself now.
    pub look: Arc<dyn Fn() -> Report + Send + Sync>,
}

impl About {
    fn said(&self) -> Said {
        Said { name: self.name.clone(), state: report::State::Live, age: Duration::ZERO, report: (self.look)() }
    }
}

impl Admin {
    /// What a node has to show and to do. Signing keys follow one another with this overlap.
    pub fn new(
        node: About,
        faces: Faces,
        bridges: Arc<Vec<NamedBridge>>,
        secrets: KeyRing,
        keys_changed: KeysChanged,
        overlap: Overlap,
    ) -> Self {
        let services: Vec<Box<dyn Administered>> = vec![
            Box::new(faces.users.runtime().clone()),
            Box::new(faces.posts.runtime().clone()),
            Box::new(faces.comments.runtime().clone()),
            Box::new(faces.search.runtime().clone()),
        ];
        Self { node, faces, services, bridges, secrets, keys_changed, overlap, reindexing: tokio::sync::Mutex::default() }
    }
}

/// The routes, to be mounted behind whatever proves that the caller is an administrator.
pub fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/status", get(status::status))
        .route("/node", get(node))
        .route("/nodes", any(by_itself))
        .route("/import", post(import::import))
        .route("/reindex", post(reindex::reindex))
        .route("/restored", post(restored::restored))
        .route("/dlt", get(dlt::list).post(dlt::replay))
        .route("/keys", get(keys::list))
        .route("/keys/rotate", post(keys::rotate))
        .route("/grant", post(keys::grant))
        .route("/password", post(keys::password))
        .with_state(admin)
}

async fn node(State(admin): State<Arc<Admin>>) -> Json<Report> {
    Json((admin.node.look)())
}

/// Asked for what only the parent of several nodes does.
async fn by_itself() -> Refusal {
    Refusal::absent("this node keeps no others: start several with `rookery up --nodes N`".to_owned())
}

/// The port at work.
pub struct AdminPort {
    task: JoinHandle<()>,
    data: PathBuf,
    socket: PathBuf,
}

impl AdminPort {
    /// Opens the port in the data folder, whose lock the caller holds.
    ///
    /// # Errors
    /// When there can be no socket.
    pub fn open(router: Router, data: &Path) -> io::Result<Self> {
        let (listener, socket) = socket::listen(data)?;
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the admin port ended");
            }
        });
        Ok(Self { task, data: data.to_owned(), socket })
    }

    /// Where it is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Takes no more connections; those that are open end with their services.
    pub fn close(self) {
        self.task.abort();
        socket::remove(&self.data, &self.socket);
    }
}

/// Why something was not done: a problem like those of the gateway.
pub(crate) struct Refusal(Problem);

impl Refusal {
    pub(crate) fn unfit(detail: String) -> Self {
        Self(Problem::new(&problem::INVALID, detail))
    }

    fn absent(detail: String) -> Self {
        Self(Problem::new(&problem::NOT_FOUND, detail))
    }

    pub(crate) fn unavailable(detail: String) -> Self {
        Self(Problem::new(&problem::UNAVAILABLE, detail))
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::unavailable(failure.to_string())
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        let kind = match error {
            KeyError::Failed(_) => &problem::UNAVAILABLE,
            KeyError::Sealed { .. } | KeyError::NotMade => &problem::INTERNAL,
        };
        Self(Problem::new(kind, error.to_string()))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
