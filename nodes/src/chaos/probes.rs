//! How long a shard gives no answer: posts all over the shards, asked again and again through every gateway.
//!
//! A shard is there as long as some gateway gets a write through to it, so what a client waits for because its own gateway is
//! gone is not its pause. The gateway of a node that is cut off does not count: it may serve what nobody else can ask for.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use jiff::Timestamp;
use reqwest::Method;
use rookery_actors::ids::{ShardId, shard_of};
use serde_json::json;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use uuid::Uuid;

use super::{
    client::{Answer, Client, Counters, Gateways, Request, User},
    workload::WORD,
};
use crate::testing::Patience;

/// Of each service but search, as long as nothing else is configured.
const SHARDS: u16 = 256;
/// Posts that are asked; as many shards or nearly so.
const POSTS: usize = 12;
/// Between two questions to a post through one gateway: asked through three, a pause is known to 20 ms (83 in a debug build,
/// which would be busy with the questions).
const ASK_EVERY: Duration = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 60 });
/// Questions of one probe that wait for their answers: as many as are asked in 4 s, longer than a takeover takes. Whoever
/// waits for all of them to come back from the former owner does not see that the next one answers.
const WAITING_MAX: usize = 4_000 / ASK_EVERY.as_millis() as usize;
/// The fastest of so many answers tells how busy the machine is: after a pause the ones that were held back come first, and
/// late.
const LATEST: usize = 4;
/// As long as a patient client waits.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What takes longer than a start does on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The probes of a run; they go on until [`Probes::stop`].
pub struct Probes {
    asked: Vec<Asked>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

/// A post, and when writes to it were acknowledged by which gateway.
struct Asked {
    shard: ShardId,
    answers: Answers,
}

type Answers = Arc<Mutex<Vec<(usize, Instant)>>>;

/// The longest time in which a shard acknowledged nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pause {
    /// How long.
    pub time: Duration,
    /// Which shard of posts.
    pub shard: u16,
    /// When it ended: where to look in the logs.
    pub until: Timestamp,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms (posts/{}, until {:.3})", self.time.as_millis(), self.shard, self.until)
    }
}

impl Probes {
    /// Publishes posts of a user of their own, and begins to like them and not to, in turn.
    ///
    /// # Errors
    /// When they cannot be published, although nothing is broken yet.
    pub async fn start(gateways: &Arc<Gateways>) -> anyhow::Result<Self> {
        let (user, counters) = (User::new("chaos_probe"), Arc::<Counters>::default());
        let author = Client::new(gateways, 0, user.clone(), &counters, ANSWER_MAX);
        author.enter(PATIENCE).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let (mut asked, mut tasks) = (Vec::new(), Vec::new());
        for n in 0..POSTS {
            let post = publish(&author, n).await?;
            let answers = Answers::default();
            let each = gateways.each();
            let apart = ASK_EVERY.div_f64(each.len() as f64);
            for (at, gateway) in each.into_iter().enumerate() {
                let client = Client::new(&gateway, 0, user.clone(), &counters, ANSWER_MAX);
                let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
                tasks.push(tokio::spawn(async move {
                    // In turn: together they would know no more than one of them.
                    tokio::time::sleep(apart.mul_f64(at as f64)).await;
                    ask(client, at, post, answers, stop).await;
                }));
            }
            asked.push(Asked { shard: shard_of(post, SHARDS), answers });
        }
        Ok(Self { asked, stop, tasks })
    }

    /// The worst pause since a moment, whatever the gateway of this number has told.
    pub fn worst_since(&self, began: Instant, without: Option<usize>) -> Pause {
        let pauses = self.asked.iter().map(|asked| {
            let answers = asked.answers.lock().expect("no panic under this lock");
            let counted = answers.iter().filter(|(at, moment)| Some(*at) != without && *moment > began);
            let mut moments: Vec<Instant> = counted.map(|(_, moment)| *moment).collect();
            moments.extend([began, Instant::now()]);
            moments.sort_unstable();
            let pauses = moments.windows(2).map(|pair| (pair[1] - pair[0], pair[1]));
            let (time, ended) = pauses.max().expect("there are two moments at least");
            Pause { time, shard: asked.shard.0, until: Timestamp::now() - ended.elapsed() }
        });
        pauses.max().expect("some posts are asked")
    }

    /// Ends the questions.
    ///
    /// # Errors
    /// When one of them has panicked.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}

async fn publish(author: &Client, n: usize) -> anyhow::Result<Uuid> {
    let body = json!({"title": format!("probe {n}"), "body": WORD, "tags": ["probe"]});
    let request = Request::new(Method::POST, "/api/v1/posts").json(body).header("idempotency-key", format!("probe-{n}"));
    let mut patience = Patience::of(PATIENCE);
    loop {
        match author.send(&request).await {
            Answer::Done(post) => {
                if let Some(id) = post["id"].as_str().and_then(|id| id.parse().ok()) {
                    return Ok(id);
                }
            }
            answer if patience.is_over() => bail!("the posts that are to be asked cannot be published: {answer:?}"),
            _ => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

/// Asks whether or not the answers before have come: a shard that is back answers a new question, and what was sent to whoever
/// had it before may wait for ever. Where all answers are slow it asks less often: the machine has more to do than it can,
/// and would be busy with the questions.
async fn ask(client: Client, at: usize, post: Uuid, answers: Answers, stop: Arc<AtomicBool>) {
    let client = Arc::new(client);
    let mut waiting = JoinSet::new();
    let mut took = VecDeque::from([Duration::ZERO; LATEST]);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let method = if n % 2 == 0 { Method::PUT } else { Method::DELETE };
        let (client, answers) = (Arc::clone(&client), Arc::clone(&answers));
        waiting.spawn(async move {
            let asked = Instant::now();
            if let Answer::Done(_) = client.send(&Request::new(method, format!("/api/v1/posts/{post}/like"))).await {
                answers.lock().expect("no panic under this lock").push((at, Instant::now()));
            }
            asked.elapsed()
        });
        tokio::time::sleep(took.iter().copied().min().unwrap_or_default().max(ASK_EVERY)).await;
        while let Some(done) = waiting.try_join_next() {
            latest(&mut took, done);
        }
        if waiting.len() >= WAITING_MAX
            && let Some(done) = waiting.join_next().await
        {
            latest(&mut took, done);
        }
    }
    waiting.join_all().await;
}

fn latest(took: &mut VecDeque<Duration>, done: Result<Duration, JoinError>) {
    took.pop_front();
    took.push_back(done.expect("a question does not panic"));
}
