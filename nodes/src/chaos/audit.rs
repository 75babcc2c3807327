//! What must be true when everything has calmed down: of what clients were told, of the logs, and of every copy of a fact.

mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio_postgres::Client;
use uuid::Uuid;

use self::rows::Rows;
use super::{
    client::Gateways,
    history::History,
    inspector::{Found, Inspector, Listed},
};
use crate::{migrate::Database, postgres, testing::Patience};

/// How long projections and the index may need to catch up with what was broken.
const CATCH_UP: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Findings of a check that are told.
const TOLD_MAX: usize = 20;

/// One promise, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The promise.
    pub promise: &'static str,
    /// What breaks it; nothing: it is kept.
    pub wrong: Vec<String>,
}

impl Check {
    /// A promise with what was found against it.
    pub fn new(promise: &'static str, wrong: impl IntoIterator<Item = String>) -> Self {
        Self { promise, wrong: wrong.into_iter().take(TOLD_MAX).collect() }
    }

    /// Whether it is kept.
    pub fn is_kept(&self) -> bool {
        self.wrong.is_empty()
    }
}

/// Looks at everything, and again as long as something may be catching up.
///
/// # Errors
/// When gateways or databases do not answer, although nothing is broken.
pub async fn audit(
    history: &History,
    gateways: &Arc<Gateways>,
    databases: &[(Database, tokio_postgres::Config)],
) -> anyhow::Result<Vec<Check>> {
    let inspector = Inspector::new(gateways);
    let mut clients = BTreeMap::new();
    for (database, config) in databases {
        clients.insert(database.name(), postgres::connect(config).await?);
    }
    let violations = history.check();
    let mut checks = vec![
        Check::new("what clients saw can be put into one order", violations.iter().map(ToString::to_string)),
        acknowledged(history, &inspector.posts().await?),
        logs(&clients).await?,
    ];
    let mut patience = Patience::of(CATCH_UP);
    loop {
        let copies = copies(&inspector, &clients).await?;
        if copies.iter().all(Check::is_kept) || patience.is_over() {
            checks.extend(copies);
            return Ok(checks);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What clients were told is there is there, once, and nothing else.
fn acknowledged(history: &History, listed: &[Listed]) -> Check {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    let mut count: BTreeMap<Uuid, usize> = BTreeMap::new();
    for post in listed {
        *count.entry(post.id).or_default() += 1;
    }
    for (id, there) in history.acknowledged_posts() {
        known.insert(id);
        match (count.get(&id).copied().unwrap_or(0), there) {
            (0, Some(true)) => wrong.push(format!("post {id} was acknowledged and is not listed")),
            (1.., Some(false)) => wrong.push(format!("post {id} was deleted and is listed")),
            (2.., _) => wrong.push(format!("post {id} is listed twice")),
            _ => {}
        }
    }
    let mut unplaced = history.unplaced_texts().clone();
    for post in listed.iter().filter(|post| !known.contains(&post.id)) {
        // Of a creation whose outcome is open there may be one, whose title nobody has changed: nobody knew of it.
        if !unplaced.remove(post.title.as_str()) {
            wrong.push(format!("post {} ({:?}) was made by nobody, or for the second time", post.id, post.title));
        }
    }
    Check::new("every acknowledged write is there, once", wrong)
}

/// The logs have no gaps and their epochs only grow, each with its record.
async fn logs(clients: &BTreeMap<&'static str, Client>) -> anyhow::Result<Check> {
    let mut wrong = Vec::new();
    for (service, client) in clients {
        let gaps = client
            .query(
                "SELECT o.shard, s.floor, max(o.seq), count(*) FILTER (WHERE o.seq > s.floor)
                 FROM outbox o JOIN shard s ON s.id = o.shard GROUP BY o.shard, s.floor
                 HAVING count(*) FILTER (WHERE o.seq > s.floor) <> max(o.seq) - s.floor",
                &[],
            )
            .await?;
        wrong.extend(gaps.iter().map(|row| {
            let (shard, floor, head, rows): (i16, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
            format!("the log of {service}/{shard} has {rows} records between {floor} and {head}")
        }));
        let epochs = client
            .query(
                "SELECT shard, seq, before, epoch, type FROM (
                     SELECT shard, seq, epoch, type, lag(epoch) OVER (PARTITION BY shard ORDER BY seq) AS before FROM outbox) o
                 WHERE epoch < before OR (epoch > before) <> (type = 'epoch')",
                &[],
            )
            .await?;
        wrong.extend(epochs.iter().map(|row| {
            let (shard, seq, before, epoch): (i16, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
            let kind: &str = row.get(4);
            format!("record {seq} ({kind}) of {service}/{shard} has epoch {epoch} after {before}")
        }));
        let behind = client
            .query(
                "SELECT s.id, s.epoch, max(o.epoch) FROM shard s LEFT JOIN outbox o ON o.shard = s.id GROUP BY s.id, s.epoch
                 HAVING s.epoch <> COALESCE(max(o.epoch), 0)",
                &[],
            )
            .await?;
        wrong.extend(behind.iter().map(|row| {
            let (shard, epoch, logged): (i16, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
            format!("{service}/{shard} has epoch {epoch} in the directory and {logged:?} in its log")
        }));
    }
    Ok(Check::new("the logs have no gaps, and epochs only grow", wrong))
}

/// Every copy of a fact says the same: counters, tags, follows, documents, the index, and what memory answers.
async fn copies(inspector: &Inspector, clients: &BTreeMap<&'static str, Client>) -> anyhow::Result<Vec<Check>> {
    let rows = Rows::read(clients).await?;
    let listed = inspector.posts().await?;
    let users = inspector.users(rows.users.values().map(|user| user.name.clone())).await?;
    let mut found = Vec::new();
    for (kind, plural) in [("post", "posts"), ("comment", "comments")] {
        found.extend(misindexed(kind, &rows.findable(kind), &inspector.found(plural).await?));
    }
    Ok(vec![
        Check::new("counters equal a recount", rows.miscounted(&listed, &users)),
        Check::new("tags, likes and follows are the same everywhere", rows.mismatched.iter().cloned()),
        Check::new("search documents equal the rows", rows.misdocumented()),
        Check::new("the search index equals its documents", found),
        Check::new("no record is left in the dead letters", rows.dead.iter().cloned()),
    ])
}

/// What a search finds too often, or not at all.
fn misindexed(kind: &str, documents: &BTreeSet<Uuid>, found: &Found) -> Vec<String> {
    let mut wrong = Vec::new();
    if !found.whole {
        wrong.push(format!("a part of the index does not answer when {kind}s are searched for"));
    }
    if found.total != found.ids.len() as u64 {
        wrong.push(format!("a search counts {} {kind}s and shows {}", found.total, found.ids.len()));
    }
    let mut times: BTreeMap<Uuid, usize> = documents.iter().map(|id| (*id, 0)).collect();
    for id in &found.ids {
        *times.entry(*id).or_default() += 1;
    }
    wrong.extend(times.iter().filter_map(|(id, times)| match (documents.contains(id), times) {
        (true, 1) => None,
        (true, 0) => Some(format!("a search does not find {kind} {id}, which has a document")),
        (true, _) => Some(format!("a search finds {kind} {id} {times} times")),
        (false, _) => Some(format!("a search finds {kind} {id}, which has no document")),
    }));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    #[test]
    fn what_the_index_has_too_much_and_too_little_is_named() {
        let found = |ids: &[Uuid]| Found { whole: true, total: ids.len() as u64, ids: ids.to_vec() };
        let wrong = |documents: &[Uuid], ids: &[Uuid]| misindexed("post", &documents.iter().copied().collect(), &found(ids));
        assert_eq!(wrong(&[A, B], &[B, A]), [""; 0]);
        assert_eq!(wrong(&[A, B], &[A]), [format!("a search does not find post {B}, which has a document")]);
        assert_eq!(wrong(&[A], &[A, A]), [format!("a search finds post {A} 2 times")]);
        assert_eq!(wrong(&[A], &[A, B]), [format!("a search finds post {B}, which has no document")]);
    }
}
