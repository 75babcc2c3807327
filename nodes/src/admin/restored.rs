//! `POST /restored`: a service's database was put back to an older state.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};

use super::{Admin, Refusal, reindex};
use crate::{migrate::Database, rebuild};

/// Whose.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// `users`, `posts`, `comments`, `search`.
    pub service: String,
}

pub(super) async fn restored(State(admin): State<Arc<Admin>>, Json(restored): Json<Restored>) -> Result<StatusCode, Refusal> {
    let service = restored.service;
    if !admin.services.iter().any(|known| known.name() == service) {
        return Err(Refusal::unfit(format!("there is no service {service:?}: users, posts, comments and search are")));
    }
    tracing::warn!(
        service.name = service,
        "an administrator says that its database was restored: what follows from it is built anew"
    );
    rebuild::restored(&admin.faces, &service).await?;
    if service == Database::Search.name() {
        // The indexes follow from it too, and lie in the nodes' folders: they are ahead of it now.
        tokio::spawn(async move {
            if let Err(failure) = reindex::unwatched(&admin).await {
                tracing::warn!(%failure, "the indexes are not built anew: say `rookery reindex`");
            }
        });
    }
    Ok(StatusCode::ACCEPTED)
}
