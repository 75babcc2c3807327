//! The threads that search.
//!
//! A search is work for a processor and nothing else. On the threads of the runtime it would keep leases and commits from
//! theirs, on its blocking pool there would be as many at once as clients like. So there are as many threads as processors,
//! with a queue in front of bounded length, in which clients take turns: whoever asks a lot waits behind himself.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, OnceLock},
    thread,
    time::Instant,
};

use tokio::sync::oneshot;

use super::index::SearchError;

/// Searches that may wait, of all clients together.
const WAITING_MAX: usize = 128;
/// Of one client, while more than half of the places are taken.
const OF_ONE_MAX: usize = 8;

/// The threads of a node. They begin with the first search, and end with the process.
#[derive(Default)]
pub(crate) struct Pool {
    queue: OnceLock<Arc<Queue>>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    news: Condvar,
}

/// What waits, by client.
#[derive(Default)]
struct Waiting {
    count: usize,
    of: HashMap<u64, VecDeque<Job>>,
    /// Whose turn it is.
    turns: VecDeque<u64>,
}

struct Job {
    deadline: Instant,
    work: Box<dyn FnOnce() + Send>,
}

impl Pool {
    /// Does this for a client when it is its turn.
    ///
    /// # Errors
    /// [`SearchError::Busy`] when too many wait, at once; [`SearchError::Late`] when its turn came after the deadline, or it
    /// panicked, which is logged with its place.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        client: u64,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SearchError> {
        let (answer, answered) = oneshot::channel();
        let work = Box::new(move || {
            // Nobody waits any more: a client is gone, or another node gave up.
            if !answer.is_closed() {
                let _ = answer.send(work());
            }
        });
        let queue = self.queue.get_or_init(start);
        if !queue.waiting.lock().expect("no panic under this lock").add(client, Job { deadline, work }) {
            metrics::counter!("rookery_search_refused_total").increment(1);
            return Err(SearchError::Busy);
        }
        queue.news.notify_one();
        answered.await.map_err(|_| SearchError::Late)
    }
}

impl Waiting {
    /// Whether there was a place.
    fn add(&mut self, client: u64, job: Job) -> bool {
        let mine = self.of.get(&client).map_or(0, VecDeque::len);
        if self.count >= WAITING_MAX || (self.count >= WAITING_MAX / 2 && mine >= OF_ONE_MAX) {
            return false;
        }
        if mine == 0 {
            self.turns.push_back(client);
        }
        self.of.entry(client).or_default().push_back(job);
        self.count += 1;
        true
    }

    fn next(&mut self) -> Option<Job> {
        let client = self.turns.pop_front()?;
        let jobs = self.of.get_mut(&client)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.of.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        self.count -= usize::from(job.is_some());
        job
    }
}

fn start() -> Arc<Queue> {
    let queue = Arc::new(Queue::default());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    for number in 0..threads {
        let queue = Arc::clone(&queue);
        let spawned = thread::Builder::new().name(format!("search-{number}")).spawn(move || work(&queue));
        // With one thread less it goes slower; with none, searches are late.
        if let Err(error) = spawned {
            tracing::error!(%error, "a thread that searches cannot be started");
        }
    }
    queue
}

fn work(queue: &Queue) {
    loop {
        let job = {
            let mut waiting = queue.waiting.lock().expect("no panic under this lock");
            loop {
                match waiting.next() {
                    Some(job) => break job,
                    None => waiting = queue.news.wait(waiting).expect("no panic under this lock"),
                }
            }
        };
        // Its answer would be too late: the sender goes, which says so.
        if Instant::now() < job.deadline {
            let _ = catch_unwind(AssertUnwindSafe(job.work));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    fn job() -> Job {
        Job { deadline: Instant::now(), work: Box::new(|| ()) }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn one_client_does_not_take_all_places_and_clients_take_turns() {
        let mut waiting = Waiting::default();
        let crowd = (0..WAITING_MAX).filter(|_| waiting.add(1, job())).count();
        assert_eq!(crowd, WAITING_MAX / 2, "half of the places, and no more than its share of the others");
        assert!(waiting.add(2, job()) && waiting.add(3, job()), "others find a place");
        for _ in 0..3 {
            waiting.next().unwrap();
        }
        assert!(!waiting.of.contains_key(&2) && !waiting.of.contains_key(&3), "they were among the first three");
    }

    #[test]
    fn there_is_a_last_place() {
        let mut waiting = Waiting::default();
        assert!((0..WAITING_MAX as u64).all(|client| waiting.add(client, job())));
        assert!(!waiting.add(999, job()));
    }

    #[tokio::test]
    async fn a_search_whose_time_is_over_when_its_turn_comes_is_not_begun() {
        let pool = Pool::default();
        let (began, begun) = mpsc::channel();
        let late = pool.run(1, Instant::now(), move || began.send(()).unwrap()).await;
        assert!(matches!(late, Err(SearchError::Late)), "{late:?}");
        assert!(begun.recv().is_err(), "it was dropped without having been begun");
        assert_eq!(pool.run(1, soon(), || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_costs_its_search_and_no_thread() {
        let pool = Pool::default();
        for _ in 0..2 * thread::available_parallelism().map_or(1, usize::from) {
            assert!(pool.run(1, soon(), || panic!("a search panics")).await.is_err());
        }
        assert_eq!(pool.run(1, soon(), || 7).await.unwrap(), 7);
    }
}
