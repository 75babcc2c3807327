//! `GET /dlt`, `POST /dlt`: records that could not be applied, to look at and to apply after all.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use futures_util::future::try_join_all;
use rookery_actors::{
    episodes,
    event::{Source, UnknownSource},
    runtime::LetterFilter,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Admin, Refusal, ndjson,
    services::{Administered, Letter},
};

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
    let (services, filter) = filter(&admin, &wanted)?;
    // Together: a database that does not answer takes its time, and not once for each service.
    let found = try_join_all(services.into_iter().map(|service| service.letters(filter, LIMIT_MAX))).await?;
    Ok(Json(found.into_iter().flatten().collect()))
}

pub(super) async fn replay(State(admin): State<Arc<Admin>>, Json(wanted): Json<Wanted>) -> Result<Response, Refusal> {
    // Asked before the answer begins: what cannot be is refused, and a database that is away is said to be.
    let (services, filter) = self::filter(&admin, &wanted)?;
    let mut first = Vec::new();
    for service in services {
        first.push((service.name(), service.letters(filter, LIMIT_MAX).await?));
    }
    let (answers, response) = ndjson::respond();
    tokio::spawn(async move {
        for (name, letters) in first {
            let service = admin.services.iter().find(|service| service.name() == name).expect("a listed service stays");
            if replay_all(&**service, filter, letters, &answers).await.is_none() {
                return;
            }
        }
    });
    Ok(response)
}

/// Replays letters of a service, and those that follow them; none: nobody watches any more.
async fn replay_all(
    service: &dyn Administered,
    mut filter: LetterFilter,
    mut letters: Vec<Letter>,
    answers: &mpsc::Sender<Replayed>,
) -> Option<()> {
    // In the order of their logs: a letter may be what the next one stands on.
    while let Some(last) = letters.last() {
        filter.after = Some((source(last), last.seq, last.shard));
        for letter in letters {
            let error = match service.replay(letter.shard, source(&letter), letter.seq).await {
                Ok(true) => None,
                // Somebody else replayed it meanwhile.
                Ok(false) => continue,
                Err(error) => Some(error.to_string()),
            };
            answers.send(Replayed { letter, error }).await.ok()?;
        }
        letters = service.letters(filter, LIMIT_MAX).await.unwrap_or_else(|failure| {
            episodes::warn("dead letters cannot be listed, the rest stays", service.name(), &failure);
            Vec::new()
        });
    }
    Some(())
}

fn source(letter: &Letter) -> Source {
    letter.source.parse().expect("a listed letter names its source")
}

/// The services that are asked, and for what.
fn filter<'a>(admin: &'a Admin, wanted: &'a Wanted) -> Result<(Vec<&'a dyn Administered>, LetterFilter), Refusal> {
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
    let of_service = |name: &str| wanted.service.as_deref().is_none_or(|wanted| wanted == name);
    let services = admin.services.iter().map(|service| &**service).filter(|service| of_service(service.name()));
    Ok((services.collect(), LetterFilter { source, seq: wanted.seq, after: None }))
}
