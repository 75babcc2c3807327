//! A client that says little and keeps its token.

use std::time::Duration;

use reqwest::{Method, header::HeaderMap};
use rookery::testing::{Patience, TestNode};
use serde_json::{Value, json};

pub(crate) const PASSWORD: &str = "correct horse battery";

/// Somebody, or with no token nobody in particular.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    pub(crate) token: Option<String>,
    pub(crate) refresh_token: String,
    headers: Vec<(&'static str, String)>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    /// Checks the status, with what was answered in the message.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        if status >= 400 {
            assert_eq!(self.header("content-type"), "application/problem+json");
            assert_eq!(self.body["status"], status, "{self:?}");
            assert!(self.body["request_id"].is_string() && self.body["title"].is_string(), "{self:?}");
        }
        self
    }

    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {self:?}"))
    }

    pub(crate) fn items(&self) -> &[Value] {
        self.body["items"].as_array().unwrap_or_else(|| panic!("no items in {self:?}"))
    }

    /// Codes of what was wrong, by field.
    pub(crate) fn errors(&self) -> Vec<(&str, &str)> {
        let errors = self.body["errors"].as_array().unwrap_or_else(|| panic!("no errors in {self:?}"));
        errors.iter().map(|error| (error["field"].as_str().unwrap(), error["code"].as_str().unwrap())).collect()
    }
}

/// Nobody in particular.
pub(crate) fn anybody() -> Client {
    Client {
        http: reqwest::Client::new(),
        base: format!("http://{}", TestNode::shared().gateway),
        token: None,
        refresh_token: String::new(),
        headers: Vec::new(),
    }
}

/// A new user of this name, unique within the test process.
pub(crate) async fn sign_up(name: &str) -> Client {
    let body = json!({"username": name, "email": format!("{name}@example.org"), "password": PASSWORD});
    let answer = anybody().post("/auth/register", body).await.is(201);
    anybody().logged_in(&answer)
}

impl Client {
    pub(crate) fn logged_in(&self, answer: &Answer) -> Self {
        Self {
            token: Some(answer.text("/access_token").to_owned()),
            refresh_token: answer.text("/refresh_token").to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn with(&self, header: &'static str, value: &str) -> Self {
        let mut other = self.clone();
        other.headers.push((header, value.to_owned()));
        other
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str) -> Answer {
        self.send(Method::PUT, path, None).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map(|body| body.to_string().into_bytes());
        self.send_raw(method, &format!("/api/v1{path}"), body).await
    }

    pub(crate) async fn send_raw(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            if !self.headers.iter().any(|(name, _)| *name == "content-type") {
                request = request.header("content-type", "application/json");
            }
            request = request.body(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status, headers, body }
    }

    /// Publishes a post; its path.
    pub(crate) async fn publish(&self, title: &str) -> String {
        let body = json!({"title": title, "body": "A body.", "tags": []});
        let answer = self.post("/posts", body).await.is(201);
        format!("/posts/{}", answer.text("/id"))
    }
}

/// Asks until the answer is right.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut patience = Patience::of(Duration::from_secs(20));
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(!patience.is_over(), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
