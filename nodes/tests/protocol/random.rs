//! Random commands under random faults; what was acknowledged is there, once.

use std::time::Duration;

use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rookery_actors::{
    ids::{PostId, ShardId, UserId},
    posts::{Changes, rules::Title},
    runtime::Context,
};
use uuid::Uuid;

use crate::{
    proxy::{BATCH, Fate, Proxy},
    support::*,
};

/// `ROOKERY_TEST_SEED` replays a run.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_are_there_once_whatever_connections_and_owners_do() {
    let seed = std::env::var("ROOKERY_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("ROOKERY_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let config = database().await;
    let proxy = Proxy::start(&config);
    let (service, posts) = node(&proxy.config(), "n1", SHORT_LEASE).await;
    let client = sql(&config).await;
    let patience = || Context::within(Duration::from_secs(3));

    let mut ids: Vec<PostId> = Vec::new();
    let mut acknowledged: Vec<(PostId, String)> = Vec::new();
    for round in 0..15 {
        match random.random_range(0..6) {
            0 | 1 => proxy.once(BATCH, Fate::NeverArrives),
            2 | 3 => proxy.once(BATCH, Fate::AnswerLost),
            // A second owner comes and, being silent, goes. A new one each time: dead is final.
            4 => {
                let rival = Rival::join(&config).await;
                rival.take(ShardId(random.random_range(0..SHARDS))).await;
            }
            _ => {}
        }
        let mut writes = Vec::new();
        for n in 0..12 {
            let title = format!("{round}/{n}");
            let known = (!ids.is_empty()).then(|| ids[random.random_range(0..ids.len())]);
            let user = UserId(Uuid::from_u128(random.random_range(10..14)));
            let on = random.random();
            let what = random.random_range(0..3);
            let posts = &posts;
            let context = patience();
            writes.push(async move {
                match (what, known) {
                    (0, Some(id)) => {
                        let changes = Changes { title: Some(Title::parse(&title).unwrap()), ..Changes::default() };
                        (title, posts.edit(id, ADA, changes, Timestamp::now(), context).await)
                    }
                    (1, Some(id)) => (String::new(), posts.like(id, user, on, context).await),
                    _ => (title.clone(), posts.publish(draft(&title), context).await),
                }
            });
        }
        for (title, answer) in futures_util::future::join_all(writes).await {
            let Ok(accepted) = answer else { continue };
            let post = accepted.reply.post.unwrap();
            if !ids.contains(&post.id) {
                ids.push(post.id);
            }
            if !title.is_empty() {
                acknowledged.push((post.id, title));
            }
        }
    }
    proxy.heal();
    eventually("everything is served here again", async || service.runtime.owned().len() == usize::from(SHARDS)).await;

    assert!(!acknowledged.is_empty());
    for (id, title) in &acknowledged {
        let times = "SELECT count(*) FROM outbox WHERE key = $1 AND type IN ('post.created', 'post.updated') AND payload::json ->> 'title' = $2";
        let times: i64 = client.query_one(times, &[&id.0, title]).await.unwrap().get(0);
        assert_eq!(times, 1, "{title} was acknowledged, seed {seed}");
    }
    let recount = "SELECT count(*) FROM post p WHERE like_count <> (SELECT count(*) FROM post_like l WHERE l.post = p.id)
                   OR version <> (SELECT count(*) FROM outbox o WHERE o.key = p.id AND o.type IN ('post.created', 'post.updated'))";
    assert_eq!(client.query_one(recount, &[]).await.unwrap().get::<_, i64>(0), 0, "a recount, seed {seed}");
    assert_gap_free(&client).await;
    assert_memory_is_sql(&posts, &client).await;
    service.stop().await;
}
