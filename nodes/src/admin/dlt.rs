//! `GET /dlt`, `POST /dlt`: records that could not be applied, to look at and to apply after all.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use rookery_actors::{
    event::{Source, UnknownSource},
    runtime::ProjectError,
};
use serde::{Deserialize, Serialize};

use super::{Admin, Refusal, ndjson, services::Letter};

/// Letters in one answer at most.
const LIMIT_MAX: usize = 1_000;

/// Which letters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Those of one service; none: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Those from one log, `posts/17`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The one at this position of that log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
}

/// What became of a letter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replayed {
    /// The letter.
    #[serde(flatten)]
    pub letter: Letter,
    /// Why it stays; none: it was applied.
    pub error: Option<String>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Query(wanted): Query<Wanted>) -> Result<Json<Vec<Letter>>, Refusal> {
    letters(&admin, &wanted).await.map(Json)
}

pub(super) async fn replay(State(admin): State<Arc<Admin>>, Json(wanted): Json<Wanted>) -> Result<Response, Refusal> {
    // In the order of their logs: a letter may be what the next one stands on.
    let letters = letters(&admin, &wanted).await?;
    let (answers, response) = ndjson::respond();
    tokio::spawn(async move {
        for letter in letters {
            let answer = match one(&admin, &letter).await {
                Ok(true) => Replayed { letter, error: None },
                // Somebody else replayed it meanwhile.
                Ok(false) => continue,
                Err(error) => Replayed { letter, error: Some(error.to_string()) },
            };
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    });
    Ok(response)
}

async fn letters(admin: &Admin, wanted: &Wanted) -> Result<Vec<Letter>, Refusal> {
    if let Some(name) = &wanted.service
        && !admin.services.iter().any(|service| service.name() == name)
    {
        return Err(Refusal::unfit(format!("there is no service {name:?}: users, posts, comments and search are")));
    }
    let source: Option<Source> =
        wanted.source.as_deref().map(str::parse).transpose().map_err(|error: UnknownSource| Refusal::unfit(error.to_string()))?;
    if let Some(Source { topic, shard }) = source
        && shard.index() >= usize::from(admin.faces.users.runtime().shards())
    {
        return Err(Refusal::unfit(format!("{} has fewer shards than {shard}", topic.service())));
    }
    let mut found = Vec::new();
    let of_service = |name: &str| wanted.service.as_deref().is_none_or(|wanted| wanted == name);
    for service in admin.services.iter().filter(|service| of_service(service.name())) {
        found.extend(service.letters(LIMIT_MAX).await?);
    }
    found.retain(|letter| {
        source.is_none_or(|source| source.to_string() == letter.source) && wanted.seq.is_none_or(|seq| seq == letter.seq)
    });
    Ok(found)
}

async fn one(admin: &Admin, letter: &Letter) -> Result<bool, ProjectError> {
    let source: Source = letter.source.parse().expect("a listed letter names its source");
    let service =
        admin.services.iter().find(|service| service.name() == letter.service).expect("a listed letter has its service");
    service.replay(letter.shard, source, letter.seq).await
}
