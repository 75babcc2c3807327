//! How a command reaches a running node: its admin socket, or its gateway with an administrator's token.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use nix::unistd::{Uid, User};
use reqwest::{Method, RequestBuilder, Response, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::admin::{
    ndjson::{self, Lines},
    silence, socket,
};

/// The short question: what the node is.
const NODE: &str = "/node";
/// Where a gateway mounts the admin routes.
const MOUNT: &str = "/admin/v1";
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// For a look at something: longer than a node asks databases that do not answer.
const LOOK_PATIENCE: Duration = Duration::from_secs(15);
/// For a change: longer than a node tries.
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);

/// Which node is meant.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The one that runs with this data folder.
    Local(PathBuf),
    /// One behind a gateway.
    Remote {
        /// Of the gateway.
        url: String,
        /// An administrator's access token.
        token: Option<String>,
    },
}

/// What is read of a refusal.
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

/// A way to a running node.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    target: Target,
}

impl Client {
    pub(super) fn new(target: Target) -> anyhow::Result<Self> {
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_PATIENCE).no_proxy();
        let (http, base) = match &target {
            Target::Local(data) => (builder.unix_socket(socket::find(data)).build()?, "http://rookery".to_owned()),
            Target::Remote { url, .. } => (builder.build()?, format!("{}{MOUNT}", url.trim_end_matches('/'))),
        };
        Ok(Self { http, base, target })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, query: &impl Serialize) -> anyhow::Result<T> {
        let url = match query_string(query)? {
            query if query.is_empty() => path.to_owned(),
            query => format!("{path}?{query}"),
        };
        let response = self.send(self.request(Method::GET, &url).timeout(LOOK_PATIENCE)).await?;
        self.read(response).await
    }

    /// Whether a node is there to be asked; it is told apart from one that hangs.
    pub(super) async fn reach(&self) -> anyhow::Result<()> {
        let asked = self.request(Method::GET, NODE).timeout(LOOK_PATIENCE).send().await;
        asked.map(drop).map_err(|error| self.unreachable(error))
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.post_within(path, CHANGE_PATIENCE).await
    }

    /// The same for what takes longer.
    pub(super) async fn post_within<T: DeserializeOwned>(&self, path: &str, within: Duration) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::POST, path).timeout(within)).await?;
        self.read(response).await
    }

    pub(super) async fn delete_within(&self, path: &str, within: Duration) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path).timeout(within)).await.map(drop)
    }

    /// Sends something that is answered with nothing but success.
    pub(super) async fn tell(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        self.send(self.request(Method::POST, path).timeout(CHANGE_PATIENCE).json(body)).await.map(drop)
    }

    /// Sends something that is answered with a value a line. How long it takes, nobody knows: see [`silence`].
    pub(super) async fn ask(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Answers> {
        self.answers(self.request(Method::POST, path).json(body)).await
    }

    /// Sends lines while they are made, and reads the answers while they come.
    pub(super) async fn stream<S>(&self, path: &str, lines: S) -> anyhow::Result<Answers>
    where
        S: Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
    {
        let request = self.request(Method::POST, path).header(header::CONTENT_TYPE, ndjson::CONTENT_TYPE);
        self.answers(request.body(reqwest::Body::wrap_stream(lines))).await
    }

    async fn answers(&self, request: RequestBuilder) -> anyhow::Result<Answers> {
        // A proxy that keeps what is sent to it answers when it has all of it.
        let response = silence::while_alive(self.send(request), self.is_alive()).await??;
        Ok(Answers(Lines::new(silence::watched(response.bytes_stream().boxed(), self.is_alive()).boxed())))
    }

    /// Whether the node answers a short question, whatever it says.
    fn is_alive(&self) -> impl Fn() -> BoxFuture<'static, bool> + Send + Sync + use<> {
        let client = self.clone();
        move || {
            let question = client.request(Method::GET, NODE).timeout(silence::ANSWERS_WITHIN);
            async move { question.send().await.is_ok() }.boxed()
        }
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> anyhow::Result<T> {
        let answer = response.bytes().await.map_err(|error| self.unreachable(error))?;
        serde_json::from_slice(&answer).context("the node's answer is not what this version understands")
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.target {
            Target::Remote { token: Some(token), .. } => request.bearer_auth(token),
            Target::Remote { token: None, .. } | Target::Local(_) => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let hint = match (status.as_u16(), &self.target) {
            (401, Target::Remote { .. }) => ": give an administrator's access token with --token",
            (403, Target::Remote { .. }) => ": the token is not an administrator's; see `rookery admin grant`",
            _ => "",
        };
        match response.json::<Problem>().await {
            Ok(problem) => bail!("{}{hint}", problem.detail),
            Err(_) => bail!("the node answered {status}{hint}"),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        if error.is_timeout() && !error.is_connect() {
            let whose = match &self.target {
                Target::Local(data) => format!("the node of the data folder {}", data.display()),
                Target::Remote { url, .. } => format!("the node behind {url}"),
            };
            return anyhow!("{whose} takes connections and did not answer in time: it hangs, was stopped, or is overloaded");
        }
        if !error.is_connect() {
            return anyhow::Error::from(error).context("the connection to the node broke");
        }
        match &self.target {
            Target::Local(data) if is_forbidden(&error) => forbidden(data),
            Target::Local(data) => anyhow!(
                "no node runs with the data folder {}: start one with `rookery up`, or say where one runs with --data-dir DIR or \
                 --node URL",
                data.display()
            ),
            Target::Remote { url, .. } => anyhow::Error::from(error).context(format!("no node answers at {url}")),
        }
    }
}

/// Whether the way to a socket is closed to us, which says nothing of whether somebody listens there.
fn is_forbidden(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.kind() == io::ErrorKind::PermissionDenied;
        }
        cause = error.source();
    }
    false
}

fn forbidden(data: &Path) -> anyhow::Error {
    let owner = std::fs::metadata(data).ok().map(|folder| {
        let name = User::from_uid(Uid::from_raw(folder.uid())).ok().flatten().map(|user| user.name);
        name.unwrap_or_else(|| folder.uid().to_string())
    });
    let whose = owner.map_or_else(|| "is not yours".to_owned(), |owner| format!("belongs to the user {owner}"));
    anyhow!(
        "the data folder {} {whose}, and its node listens to that user and to root alone: run this as one of them, or as an \
         administrator with --node URL",
        data.display()
    )
}

/// The pairs of a flat query, whose words need no escapes but the slash.
fn query_string(query: &impl Serialize) -> anyhow::Result<String> {
    let serde_json::Value::Object(pairs) = serde_json::to_value(query)? else {
        return Ok(String::new());
    };
    let pair = |(key, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::String(text) => format!("{key}={}", escaped(text)),
        other => format!("{key}={other}"),
    };
    Ok(pairs.iter().map(pair).collect::<Vec<_>>().join("&"))
}

fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// The answers of a node, a value a line.
pub(super) struct Answers(Lines<BoxStream<'static, io::Result<Bytes>>>);

impl Answers {
    /// The next one; none: that was all.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        match self.0.next().await.context("the node went away: start it and run the same command again")? {
            Some(line) => {
                serde_json::from_slice(&line).map(Some).context("the node's answer is not what this version understands")
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::dlt::Wanted;

    #[test]
    fn a_query_names_only_what_is_wanted() {
        let wanted = Wanted { service: None, source: Some("posts/17".to_owned()), seq: Some(3) };
        assert_eq!(query_string(&wanted).unwrap(), "seq=3&source=posts%2F17");
        assert_eq!(query_string(&Wanted::default()).unwrap(), "");
    }
}
