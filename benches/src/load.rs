//! A closed-loop load generator: N connections, each sending its next request when the
//! answer to the last one is there.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    histogram::Histogram,
    http::{Connection, Request, Response},
};

/// How long an answer may take beyond the end of the window before it counts as an error.
const GRACE: Duration = Duration::from_secs(10);
/// Before a broken connection is opened again: a server that is gone is not to be hammered.
const RECONNECT_AFTER: Duration = Duration::from_millis(20);

/// How to load a server.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections, each with one request in flight.
    pub connections: usize,
    /// Threads of the generator; the connections are dealt out among them.
    pub threads: usize,
    /// What goes before the window and is not counted, except for its errors.
    pub warm_up: Duration,
    /// How long answers are counted.
    pub window: Duration,
}

/// What a load has shown.
#[derive(Clone, Debug)]
pub struct Outcome<S> {
    /// Successful answers within the window.
    pub completed: u64,
    /// Successful answers in all, warm-up and end included.
    pub acknowledged: u64,
    /// How long the window was in truth.
    pub window: Duration,
    /// Latencies of the successful answers within the window.
    pub latency: Histogram,
    /// Everything that was not a success, warm-up and end included.
    pub errors: Errors,
    /// The sample taken as the window opened.
    pub before: S,
    /// The sample taken as the window closed.
    pub after: S,
}

impl<S> Outcome<S> {
    /// Successful answers per second.
    pub fn per_second(&self) -> f64 {
        self.completed as f64 / self.window.as_secs_f64()
    }
}

/// What went wrong, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Answers outside 200–299, by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Connections refused or broken, answers missing or unreadable.
    pub broken: u64,
    /// The first of them in words.
    pub first: Option<String>,
}

impl Errors {
    /// How many there were.
    pub fn total(&self) -> u64 {
        self.broken + self.by_status.values().sum::<u64>()
    }

    fn add_answer(&mut self, response: &Response<'_>) {
        *self.by_status.entry(response.status).or_default() += 1;
        if self.first.is_none() {
            let body = String::from_utf8_lossy(response.body);
            let start: String = body.chars().take(300).collect();
            self.first = Some(format!("{}: {start}", response.status));
        }
    }

    fn add_broken(&mut self, error: &io::Error) {
        self.broken += 1;
        self.first.get_or_insert_with(|| error.to_string());
    }

    fn merge(&mut self, other: Self) {
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        self.broken += other.broken;
        self.first = self.first.take().or(other.first);
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (status, count) in &self.by_status {
            write!(f, "{count} × {status}, ")?;
        }
        write!(f, "{} broken", self.broken)?;
        match &self.first {
            Some(first) => write!(f, "; the first: {first}"),
            None => Ok(()),
        }
    }
}

impl Load {
    /// Runs the load to its end and blocks meanwhile.
    ///
    /// Connection `n` sends `requests` in turn from the `n`th on. `sample` is called as the
    /// window opens and as it closes, say to read CPU times.
    ///
    /// # Errors
    /// When the generator's own runtime cannot start. What the server does wrong is counted
    /// in the outcome.
    ///
    /// # Panics
    /// Without requests, connections or threads.
    pub fn run<S>(&self, requests: &Arc<[Request]>, mut sample: impl FnMut() -> S) -> io::Result<Outcome<S>> {
        assert!(!requests.is_empty(), "a load needs a request");
        assert!(self.connections > 0 && self.threads > 0, "a load needs connections and threads");
        let run = Arc::new(Run {
            load: *self,
            requests: Arc::clone(requests),
            stage: AtomicU8::new(WARMING_UP),
            serial: AtomicU64::new(first_serial()),
            give_up_at: Instant::now() + self.warm_up + self.window + GRACE,
        });
        let runtimes = (0..self.threads.min(self.connections))
            .map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build())
            .collect::<io::Result<Vec<_>>>()?;
        let threads = runtimes.len();
        let workers: Vec<_> = runtimes
            .into_iter()
            .enumerate()
            .map(|(index, runtime)| {
                let run = Arc::clone(&run);
                let connections = (index..self.connections).step_by(threads);
                thread::Builder::new().name("load".to_owned()).spawn(move || runtime.block_on(run.drive_all(connections)))
            })
            .collect::<io::Result<_>>()?;

        thread::sleep(self.warm_up);
        let before = sample();
        let opened = Instant::now();
        run.stage.store(MEASURING, Ordering::Relaxed);
        thread::sleep(self.window);
        run.stage.store(ENDING, Ordering::Relaxed);
        let window = opened.elapsed();
        let after = sample();

        let mut tally = Tally::default();
        for worker in workers {
            tally.merge(worker.join().expect("a worker of the load does not panic"));
        }
        Ok(Outcome {
            completed: tally.latency.len(),
            acknowledged: tally.acknowledged,
            window,
            latency: tally.latency,
            errors: tally.errors,
            before,
            after,
        })
    }
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const ENDING: u8 = 2;

/// Serials differ between runs too: microseconds since 1970, to be counted up from, and
/// never as fast as time passes.
pub(crate) fn first_serial() -> u64 {
    let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since_1970.as_micros()).unwrap_or_default()
}

/// What the threads of one load share.
struct Run {
    load: Load,
    requests: Arc<[Request]>,
    stage: AtomicU8,
    serial: AtomicU64,
    give_up_at: Instant,
}

impl Run {
    async fn drive_all(self: Arc<Self>, connections: impl Iterator<Item = usize>) -> Tally {
        let mut tasks = JoinSet::new();
        for index in connections {
            tasks.spawn(Arc::clone(&self).drive(index));
        }
        let mut tally = Tally::default();
        for part in tasks.join_all().await {
            tally.merge(part);
        }
        tally
    }

    /// Drives one connection until the load ends.
    async fn drive(self: Arc<Self>, index: usize) -> Tally {
        let mut tally = Tally::default();
        // One timer for the whole run: one per request would be paid by what we measure.
        let end = tokio::time::Instant::from_std(self.give_up_at);
        if tokio::time::timeout_at(end, self.reconnecting(index, &mut tally)).await.is_err() {
            tally.errors.add_broken(&io::ErrorKind::TimedOut.into());
        }
        tally
    }

    async fn reconnecting(&self, index: usize, tally: &mut Tally) {
        while let Err(error) = self.exchange_until_the_end(index, tally).await {
            tally.errors.add_broken(&error);
            if self.stage.load(Ordering::Relaxed) == ENDING {
                return;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    async fn exchange_until_the_end(&self, index: usize, tally: &mut Tally) -> io::Result<()> {
        let mut connection = Connection::open(self.load.address).await?;
        let mut buffer = Vec::new();
        let mut turn = index % self.requests.len();
        loop {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            self.requests[turn].write(serial, &mut buffer);
            turn = if turn + 1 == self.requests.len() { 0 } else { turn + 1 };

            let sent = Instant::now();
            let response = connection.exchange(&buffer).await?;
            let stage = self.stage.load(Ordering::Relaxed);
            if !response.is_success() {
                tally.errors.add_answer(&response);
            } else {
                tally.acknowledged += 1;
                if stage == MEASURING {
                    tally.latency.record(sent.elapsed());
                }
            }
            if stage == ENDING {
                return Ok(());
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    acknowledged: u64,
    latency: Histogram,
    errors: Errors,
}

impl Tally {
    fn merge(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.latency.merge(&other.latency);
        self.errors.merge(other.errors);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Mutex};

    use axum::{
        Router,
        http::StatusCode,
        routing::{get, post},
    };

    use super::*;
    use crate::http::SERIAL;
    use crate::testing::serve;

    fn short(address: SocketAddr) -> Load {
        Load { address, connections: 5, threads: 2, warm_up: Duration::from_millis(20), window: Duration::from_millis(100) }
    }

    fn load(load: Load, request: Request) -> Outcome<()> {
        load.run(&Arc::from([request]), || ()).unwrap()
    }

    #[test]
    fn every_success_is_counted_once_and_timed() {
        let served = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&served);
        let address = serve(Router::new().route(
            "/",
            get(async move || {
                counter.fetch_add(1, Ordering::Relaxed);
                "hello"
            }),
        ));

        let outcome = load(short(address), Request::get("/"));

        assert_eq!(outcome.errors, Errors::default());
        assert_eq!(outcome.acknowledged, served.load(Ordering::Relaxed));
        assert_eq!(outcome.completed, outcome.latency.len());
        assert!(0 < outcome.completed && outcome.completed < outcome.acknowledged);
        assert!(outcome.latency.quantile(0.5) > Duration::ZERO);
    }

    #[test]
    fn answers_larger_than_the_buffer_are_read_to_their_end() {
        let address = serve(Router::new().route("/", get(async || "x".repeat(300_000))));
        let outcome = load(short(address), Request::get("/"));
        assert_eq!(outcome.errors.total(), 0, "{}", outcome.errors);
        assert!(outcome.completed > 0);
    }

    #[test]
    fn a_refusal_is_an_error_and_no_success() {
        let address = serve(Router::new().route("/", get(async || (StatusCode::TOO_MANY_REQUESTS, "slow down"))));
        let outcome = load(short(address), Request::get("/"));
        assert_eq!((outcome.completed, outcome.acknowledged), (0, 0));
        assert!(outcome.errors.by_status[&429] > 0);
        assert_eq!(outcome.errors.first.as_deref(), Some("429: slow down"));
    }

    #[test]
    fn a_server_that_is_gone_is_an_error() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let outcome = load(short(address), Request::get("/"));
        assert!(outcome.errors.broken > 0);
    }

    #[test]
    fn no_two_requests_carry_the_same_serial() {
        let seen = Arc::new(Mutex::new(HashSet::new()));
        let log = Arc::clone(&seen);
        let address = serve(Router::new().route(
            "/",
            post(async move |body: String| match log.lock().unwrap().insert(body) {
                true => StatusCode::OK,
                false => StatusCode::CONFLICT,
            }),
        ));
        let outcome = load(short(address), Request::post("/", &[], SERIAL));
        assert_eq!(outcome.errors.total(), 0, "{}", outcome.errors);
        assert_eq!(seen.lock().unwrap().len() as u64, outcome.acknowledged);
    }

    #[test]
    fn every_request_of_the_list_has_its_turn() {
        let seen = Arc::new(Mutex::new(HashSet::new()));
        let log = Arc::clone(&seen);
        let address = serve(Router::new().fallback(async move |uri: axum::http::Uri| {
            log.lock().unwrap().insert(uri.path().to_owned());
        }));
        let requests: Arc<[Request]> = ["/a", "/b", "/c"].map(Request::get).into();
        short(address).run(&requests, || ()).unwrap();
        assert_eq!(seen.lock().unwrap().len(), 3);
    }

    #[test]
    fn samples_are_taken_at_both_edges_of_the_window() {
        let address = serve(Router::new().route("/", get(async || "")));
        let requests: Arc<[Request]> = Arc::from([Request::get("/")]);
        let outcome = short(address).run(&requests, Instant::now).unwrap();
        assert!(outcome.after - outcome.before >= outcome.window);
    }
}
