//! Writers that go on while something happens, and what they were promised.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use rookery_actors::posts::Posts;

use crate::support::*;

/// Writers that go on until they are told to stop, through these nodes; what they were promised.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    pub(crate) fn start(who: &'static str, faces: &[&Posts]) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let tasks = (0..8)
            .map(|n| {
                let (posts, stop) = (faces[n % faces.len()].clone(), Arc::clone(&stop));
                let acknowledged = Arc::clone(&acknowledged);
                tokio::spawn(async move {
                    let mut round = 0;
                    while !stop.load(Ordering::SeqCst) {
                        let title = format!("{who} {n}/{round}");
                        let answer = posts.publish(draft(&title), soon()).await;
                        let post = answer.unwrap_or_else(|error| panic!("{title} was refused: {error}")).reply.post.unwrap();
                        let title = format!("{title}, again");
                        let answer = retitle(&posts, post.id, &title).await;
                        answer.unwrap_or_else(|error| panic!("{title} was refused: {error}"));
                        acknowledged.lock().unwrap().push(title);
                        round += 1;
                    }
                })
            })
            .collect();
        Self { stop, acknowledged, tasks }
    }

    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    pub(crate) async fn more(&self) {
        let before = self.count();
        eventually("more is written", async || self.count() > before + 20).await;
    }

    /// What they wrote, sorted; panics if anything was refused.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        let mut titles = Arc::try_unwrap(self.acknowledged).unwrap().into_inner().unwrap();
        titles.sort_unstable();
        titles
    }
}

/// What was acknowledged is in the table and nothing else, and the log tells the same.
pub(crate) async fn assert_exactly(written: &[String], client: &tokio_postgres::Client) {
    let mut there = titles(client).await;
    there.sort_unstable();
    assert_eq!(there, written);
    let twice =
        "SELECT count(*) FROM (SELECT payload::json ->> 'title' FROM outbox WHERE type IN ('post.created', 'post.updated')
                 GROUP BY 1 HAVING count(*) > 1) t";
    assert_eq!(client.query_one(twice, &[]).await.unwrap().get::<_, i64>(0), 0, "no effect twice");
    assert_gap_free(client).await;
}
