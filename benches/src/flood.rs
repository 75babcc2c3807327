//! An open-loop load generator: requests fall due at a fixed rate, whatever became of the last ones.
//!
//! A crowd does not slow down because a server does. Each connection carries one request at a time, as browsers do, so a
//! request that falls due while all are taken is not sent; how many that were is told.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet, time::MissedTickBehavior};

use crate::{
    histogram::Histogram,
    http::{Connection, Request, Response},
    load::first_serial,
};

/// Requests fall due in groups, so often.
const TICK: Duration = Duration::from_millis(5);
/// A client that has waited so long for an answer hangs up.
const PATIENCE: Duration = Duration::from_secs(15);
/// Before a broken connection is opened again.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);

/// How to flood a server.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests that fall due each second.
    pub per_second: f64,
    /// Connections, and thus requests under way, at most.
    pub connections: usize,
    /// How long.
    pub window: Duration,
}

/// What a flood has shown.
#[derive(Clone, Debug, Default)]
pub struct Aftermath {
    /// Requests sent.
    pub sent: u64,
    /// Requests that fell due while every connection was taken.
    pub unsent: u64,
    /// Answers 200–299.
    pub succeeded: u64,
    /// Their latencies.
    pub latency: Histogram,
    /// All other answers, by status.
    pub refused: BTreeMap<u16, u64>,
    /// Those that are not 429 or 503 with a `retry-after`.
    pub rude: u64,
    /// The first of them in words.
    pub first_rude: Option<String>,
    /// Connections refused or broken, answers missing or unreadable.
    pub broken: u64,
}

impl Aftermath {
    fn add(&mut self, response: &Response<'_>, took: Duration) {
        if response.is_success() {
            self.succeeded += 1;
            self.latency.record(took);
            return;
        }
        *self.refused.entry(response.status).or_default() += 1;
        if !(matches!(response.status, 429 | 503) && response.header("retry-after").is_some()) {
            self.rude += 1;
            let body = String::from_utf8_lossy(response.body);
            self.first_rude.get_or_insert_with(|| format!("{}: {:.300}", response.status, body));
        }
    }

    fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.unsent += other.unsent;
        self.succeeded += other.succeeded;
        self.latency.merge(&other.latency);
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
        self.rude += other.rude;
        self.first_rude = self.first_rude.take().or(other.first_rude);
        self.broken += other.broken;
    }
}

impl Flood {
    /// Runs the flood to its end and blocks meanwhile; `watch` is called about ten times a second.
    ///
    /// # Errors
    /// When the generator's own runtime cannot start.
    ///
    /// # Panics
    /// Without requests.
    pub fn run(&self, requests: &Arc<[Request]>, mut watch: impl FnMut()) -> io::Result<Aftermath> {
        assert!(!requests.is_empty(), "a flood needs a request");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (flood, requests) = (*self, Arc::clone(requests));
        let flooding = thread::Builder::new().name("flood".to_owned()).spawn(move || runtime.block_on(flood.drive(requests)))?;
        while !flooding.is_finished() {
            thread::sleep(Duration::from_millis(100));
            watch();
        }
        Ok(flooding.join().expect("the flood does not panic"))
    }

    async fn drive(self, requests: Arc<[Request]>) -> Aftermath {
        let crowd = Arc::new(Crowd {
            address: self.address,
            requests,
            due: Semaphore::new(0),
            over: AtomicBool::new(false),
            serial: AtomicU64::new(first_serial()),
        });
        let mut clients: JoinSet<Aftermath> = (0..self.connections).map(|index| Arc::clone(&crowd).client(index)).collect();
        let unsent = self.let_fall_due(&crowd.due).await;
        crowd.over.store(true, Ordering::Relaxed);
        crowd.due.close();
        let mut all = Aftermath { unsent, ..Aftermath::default() };
        while let Some(part) = clients.join_next().await {
            all.merge(part.expect("a client does not panic"));
        }
        all
    }

    /// Returns how many could not be sent.
    async fn let_fall_due(self, due: &Semaphore) -> u64 {
        let started = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut fallen, mut unsent) = (0, 0);
        while started.elapsed() < self.window {
            ticks.tick().await;
            unsent += due.forget_permits(usize::MAX >> 4) as u64;
            let until_now = (started.elapsed().as_secs_f64() * self.per_second) as usize;
            due.add_permits(until_now - fallen);
            fallen = until_now;
        }
        unsent + due.forget_permits(usize::MAX >> 4) as u64
    }
}

struct Crowd {
    address: SocketAddr,
    requests: Arc<[Request]>,
    due: Semaphore,
    over: AtomicBool,
    serial: AtomicU64,
}

impl Crowd {
    async fn client(self: Arc<Self>, index: usize) -> Aftermath {
        let mut seen = Aftermath::default();
        while let Err(_broken) = self.ask_until_the_end(index, &mut seen).await {
            seen.broken += 1;
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
        seen
    }

    async fn ask_until_the_end(&self, index: usize, seen: &mut Aftermath) -> io::Result<()> {
        let mut connection = None;
        let mut buffer = Vec::new();
        let mut turn = index % self.requests.len();
        // Closed when the flood is over.
        while let Ok(due) = self.due.acquire().await {
            due.forget();
            let open = match &mut connection {
                Some(open) => open,
                none => none.insert(Connection::open(self.address).await?),
            };
            self.requests[turn].write(self.serial.fetch_add(1, Ordering::Relaxed), &mut buffer);
            turn = (turn + 1) % self.requests.len();
            seen.sent += 1;
            let asked = Instant::now();
            let response = tokio::time::timeout(PATIENCE, open.exchange(&buffer)).await.map_err(io::Error::from)??;
            seen.add(&response, asked.elapsed());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};

    use super::*;
    use crate::testing::serve;

    fn flood(router: Router, per_second: f64, connections: usize) -> Aftermath {
        let flood = Flood { address: serve(router), per_second, connections, window: Duration::from_millis(400) };
        flood.run(&[Request::get("/")].into(), || ()).unwrap()
    }

    #[test]
    fn what_falls_due_is_sent_or_counted_as_unsent() {
        let slow = get(|| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            "done"
        });
        let after = flood(Router::new().route("/", slow), 1_000.0, 2);
        assert!(after.sent >= 2 && after.sent <= 12, "two connections, each ten times a second: {after:?}");
        assert!(after.unsent > after.sent, "{after:?}");
        assert_eq!((after.succeeded, after.broken), (after.sent, 0));
    }

    #[test]
    fn a_refusal_is_polite_if_it_says_when_to_come_back() {
        let polite = get(|| async { (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")]) });
        let after = flood(Router::new().route("/", polite), 100.0, 4);
        assert_eq!((after.refused.get(&503), after.rude), (Some(&after.sent), 0));
    }

    #[test]
    fn every_other_failure_is_rude() {
        for answer in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR] {
            let after = flood(Router::new().route("/", get(move || async move { (answer, "so it is") })), 100.0, 4);
            assert_eq!((after.rude, after.succeeded), (after.sent, 0));
            assert_eq!(after.first_rude, Some(format!("{}: so it is", answer.as_u16())));
        }
    }
}
