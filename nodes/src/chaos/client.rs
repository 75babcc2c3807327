//! A client of the REST API that knows what it does not know: every answer is done, refused, or open.

use std::{
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::testing::Patience;

/// Longest time to wait for a connection: a gateway that is there takes it at once.
const CONNECT_MAX: Duration = Duration::from_secs(1);
const RETRY_EVERY: Duration = Duration::from_millis(100);
const PASSWORD: &str = "a long pass phrase";
/// More failures than this are counted only.
const TOLD_MAX: usize = 10;

/// What a request came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// 2xx, with what it says.
    Done(Value),
    /// 4xx: nothing happened.
    Refused(StatusCode),
    /// Nobody knows: no answer in time, a connection that broke, 5xx.
    Open(String),
    /// No gateway took the connection: nothing was sent.
    Unsent,
}

/// What the clients of a run met, counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answers that say yes.
    pub done: AtomicU64,
    /// Answers that say no.
    pub refused: AtomicU64,
    /// Requests of which nobody knows what they came to.
    pub open: AtomicU64,
    /// Requests that no gateway took.
    pub unsent: AtomicU64,
    /// Changes to another gateway because one did not take the connection, or did not answer, or could not do it.
    pub failovers: AtomicU64,
    /// Writes that were acknowledged.
    pub writes: AtomicU64,
    told: Mutex<Vec<String>>,
}

impl Counters {
    /// Requests that were not answered with yes or no.
    pub fn failed(&self) -> u64 {
        self.open.load(Ordering::Relaxed) + self.unsent.load(Ordering::Relaxed)
    }

    /// What the first of them were, and what came of them.
    pub fn failures(&self) -> Vec<String> {
        self.told.lock().expect("no panic under this lock").clone()
    }

    fn note_failure(&self, request: &Request, gateway: usize, took: Duration, why: &str) {
        let mut told = self.told.lock().expect("no panic under this lock");
        if told.len() < TOLD_MAX {
            let (at, took) = (jiff::Timestamp::now(), took.as_millis());
            told.push(format!("{at:.3} {} {} at gateway {gateway}, after {took} ms: {why}", request.method, request.path));
        }
    }
}

/// The gateways of a cluster, as clients share them.
#[derive(Debug)]
pub struct Gateways(RwLock<Vec<String>>);

impl Gateways {
    /// Gateways at these addresses, `127.0.0.1:8080`.
    pub fn new(addresses: Vec<String>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(addresses)))
    }

    /// Nodes came or went.
    pub fn replace(&self, addresses: Vec<String>) {
        *self.0.write().expect("no panic under this lock") = addresses;
    }

    fn count(&self) -> usize {
        self.0.read().expect("no panic under this lock").len()
    }

    /// Each of them by itself.
    pub fn each(&self) -> Vec<Arc<Self>> {
        let addresses = self.0.read().expect("no panic under this lock");
        addresses.iter().map(|address| Self::new(vec![address.clone()])).collect()
    }

    /// A path at the gateway of this number; behind the last one they begin anew.
    ///
    /// # Panics
    /// Without any gateway.
    pub fn url(&self, at: usize, path: &str) -> String {
        let addresses = self.0.read().expect("no panic under this lock");
        format!("http://{}{path}", addresses[at % addresses.len()])
    }
}

/// One client: it keeps to a gateway as long as that does what it is asked.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    gateways: Arc<Gateways>,
    at: AtomicUsize,
    user: User,
    counters: Arc<Counters>,
}

/// A user of the platform and the token with which clients act for them.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: Arc<str>,
    token: Arc<RwLock<Arc<str>>>,
}

impl User {
    /// A user of this name who is not logged in.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), token: Arc::new(RwLock::new("".into())) }
    }

    fn token(&self) -> Arc<str> {
        self.token.read().expect("no panic under this lock").clone()
    }
}

/// A request that can be repeated.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: String,
    body: Option<Value>,
    headers: Vec<(&'static str, String)>,
}

impl Request {
    /// Without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, headers: Vec::new() }
    }

    /// A GET.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// With a body.
    #[must_use]
    pub fn json(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn is_read(&self) -> bool {
        self.method == Method::GET
    }
}

impl Client {
    /// A client that acts for a user and begins at the gateway of this number.
    ///
    /// # Panics
    /// If this machine has no working TLS provider.
    pub fn new(gateways: &Arc<Gateways>, at: usize, user: User, counters: &Arc<Counters>, answer_max: Duration) -> Self {
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_MAX).timeout(answer_max);
        let http = http.build().expect("a client without files can be made");
        Self { http, gateways: Arc::clone(gateways), at: AtomicUsize::new(at), user, counters: Arc::clone(counters) }
    }

    /// Sends a request once, to the first gateway that takes the connection.
    pub async fn send(&self, request: &Request) -> Answer {
        let (began, gateway) = (Instant::now(), self.at.load(Ordering::Relaxed) % self.gateways.count().max(1));
        let answer = match self.deliver(request).await {
            // The token is too old, or from after a clock went back.
            Answer::Refused(StatusCode::UNAUTHORIZED) if self.log_in().await => self.deliver(request).await,
            answer => answer,
        };
        let count = match &answer {
            Answer::Done(_) => &self.counters.done,
            Answer::Refused(_) => &self.counters.refused,
            Answer::Open(_) => &self.counters.open,
            Answer::Unsent => &self.counters.unsent,
        };
        count.fetch_add(1, Ordering::Relaxed);
        match &answer {
            Answer::Open(why) => self.counters.note_failure(request, gateway, began.elapsed(), why),
            Answer::Unsent => self.counters.note_failure(request, gateway, began.elapsed(), "no gateway took it"),
            Answer::Done(_) | Answer::Refused(_) => {}
        }
        if matches!(answer, Answer::Done(_)) && !request.is_read() {
            self.counters.writes.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    async fn deliver(&self, request: &Request) -> Answer {
        for _ in 0..self.gateways.count() {
            let at = self.at.load(Ordering::Relaxed);
            let mut sent = self.http.request(request.method.clone(), self.gateways.url(at, &request.path));
            let token = self.user.token();
            if !token.is_empty() {
                sent = sent.bearer_auth(token);
            }
            for (name, value) in &request.headers {
                sent = sent.header(*name, value);
            }
            if let Some(body) = &request.body {
                sent = sent.json(body);
            }
            match sent.send().await {
                Err(error) if error.is_connect() => self.fail_over(),
                Err(error) => {
                    self.fail_over();
                    return Answer::Open(format!("{:#}", anyhow::Error::from(error)));
                }
                Ok(answer) => {
                    let answer = read(answer).await;
                    // As a balancer does: this one cannot do it now.
                    if matches!(answer, Answer::Open(_)) {
                        self.fail_over();
                    }
                    return answer;
                }
            }
        }
        Answer::Unsent
    }

    fn fail_over(&self) {
        if self.gateways.count() > 1 {
            self.counters.failovers.fetch_add(1, Ordering::Relaxed);
        }
        self.at.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the account, or logs in where there is one already, as often as it takes.
    ///
    /// # Errors
    /// When that does not work for so long.
    pub async fn enter(&self, patience: Duration) -> anyhow::Result<()> {
        let name = &self.user.name;
        let body = json!({"username": name, "email": format!("{name}@example.org"), "password": PASSWORD});
        let register = Request::new(Method::POST, "/api/v1/auth/register").json(body);
        let mut left = Patience::of(patience);
        loop {
            match self.deliver(&register).await {
                Answer::Refused(StatusCode::CONFLICT) if self.log_in().await => return Ok(()),
                answer => match self.take_token(answer) {
                    Ok(()) => return Ok(()),
                    Err(answer) if left.is_over() => bail!("{name} cannot register: {answer:?}"),
                    Err(_) => tokio::time::sleep(RETRY_EVERY).await,
                },
            }
        }
    }

    async fn log_in(&self) -> bool {
        let body = json!({"login": self.user.name, "password": PASSWORD});
        let answer = self.deliver(&Request::new(Method::POST, "/api/v1/auth/login").json(body)).await;
        self.take_token(answer).is_ok()
    }

    /// The time of day by which a gateway makes tokens, in seconds since 1970; none without an answer.
    pub async fn time_of_day(&self) -> Option<i64> {
        if !self.log_in().await {
            return None;
        }
        let token = self.user.token();
        let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        serde_json::from_slice::<Value>(&claims).ok()?["iat"].as_i64()
    }

    fn take_token(&self, answer: Answer) -> Result<(), Answer> {
        match &answer {
            Answer::Done(body) if body["access_token"].is_string() => {
                let token = body["access_token"].as_str().unwrap_or_default();
                *self.user.token.write().expect("no panic under this lock") = token.into();
                Ok(())
            }
            _ => Err(answer),
        }
    }
}

async fn read(answer: reqwest::Response) -> Answer {
    let status = answer.status();
    if status.is_client_error() {
        return Answer::Refused(status);
    }
    if !status.is_success() {
        let problem = answer.text().await.unwrap_or_default();
        return Answer::Open(format!("{status} {}", problem.trim_end()));
    }
    match answer.bytes().await {
        // What is broken off may have been done.
        Err(error) => Answer::Open(error.to_string()),
        Ok(body) if body.is_empty() => Answer::Done(Value::Null),
        Ok(body) => serde_json::from_slice(&body).map_or_else(|error| Answer::Open(error.to_string()), Answer::Done),
    }
}
