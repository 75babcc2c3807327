//! Who looks at a cluster through the REST API when nobody works on it any more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::bail;
use serde_json::Value;
use uuid::Uuid;

use super::{
    client::{Answer, Client, Counters, Gateways, Request, User},
    workload::{TAG, WORD},
};
use crate::testing::Patience;

/// How long everything is asked for again when there is no answer.
const PATIENCE: Duration = Duration::from_secs(45);
const RETRY_EVERY: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A reader without an account.
pub struct Inspector {
    client: Client,
}

/// A post as a list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: Uuid,
    /// Its title.
    pub title: String,
    /// As the answer counts them.
    pub likes: i64,
    /// As the answer counts them.
    pub comments: i64,
}

/// What a user's page counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counts {
    /// Posts.
    pub posts: i64,
    /// Comments that are not deleted.
    pub comments: i64,
    /// Who follows them.
    pub followers: i64,
    /// Whom they follow.
    pub following: i64,
}

/// What a search finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether all parts of the index have answered: what one cannot tell is not there yet.
    pub whole: bool,
    /// How many there are, as the answer counts them.
    pub total: u64,
    /// Their ids, each as often as it comes.
    pub ids: Vec<Uuid>,
}

impl Inspector {
    /// One that asks these gateways.
    pub fn new(gateways: &Arc<Gateways>) -> Self {
        Self { client: Client::new(gateways, 0, User::new(""), &Arc::<Counters>::default(), ANSWER_MAX) }
    }

    /// Asks until there is an answer.
    async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        let mut patience = Patience::of(PATIENCE);
        loop {
            match self.client.send(&Request::get(path)).await {
                Answer::Done(body) => return Ok(body),
                answer if patience.is_over() => bail!("{path}: {answer:?}, although nothing is broken any more"),
                _ => tokio::time::sleep(RETRY_EVERY).await,
            }
        }
    }

    /// All posts of the workload, page by page.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn posts(&self) -> anyhow::Result<Vec<Listed>> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.ask(&format!("/api/v1/posts?tag={TAG}&limit=100{cursor}")).await?;
            all.extend(page["items"].as_array().into_iter().flatten().filter_map(listed));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(all),
            }
        }
    }

    /// What the pages of users count.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn users(&self, names: impl IntoIterator<Item = String>) -> anyhow::Result<BTreeMap<String, Counts>> {
        let mut all = BTreeMap::new();
        for name in names {
            let user = self.ask(&format!("/api/v1/users/{name}")).await?;
            let count = |field: &str| user[field].as_i64().unwrap_or(-1);
            let counts = Counts {
                posts: count("post_count"),
                comments: count("comment_count"),
                followers: count("follower_count"),
                following: count("following_count"),
            };
            all.insert(name, counts);
        }
        Ok(all)
    }

    /// The `posts` or `comments` of the workload that a search finds, page by page.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn found(&self, kind: &str) -> anyhow::Result<Found> {
        let mut found = Found { whole: true, ..Found::default() };
        let mut cursor = String::new();
        loop {
            // By time: what is relevant depends on who answers.
            let page = self.ask(&format!("/api/v1/search?q={WORD}&type={kind}&sort=new&limit=100{cursor}")).await?;
            found.whole &= page["partial"] == Value::Bool(false);
            found.total = page["total"].as_u64().unwrap_or(0);
            let ids = page["items"].as_array().into_iter().flatten().filter_map(|hit| hit["id"].as_str()?.parse().ok());
            found.ids.extend::<Vec<Uuid>>(ids.collect());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(found),
            }
        }
    }
}

fn listed(item: &Value) -> Option<Listed> {
    Some(Listed {
        id: item["id"].as_str()?.parse().ok()?,
        title: item["title"].as_str()?.to_owned(),
        likes: item["like_count"].as_i64()?,
        comments: item["comment_count"].as_i64()?,
    })
}
