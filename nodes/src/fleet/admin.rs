//! The admin port of the parent: it adds and removes nodes, and hands everything else to a node that answers.
//!
//! | | |
//! |---|---|
//! | `GET /nodes` | [`Kept`] of each node |
//! | `POST /nodes` | one more; [`Kept`] when it answers |
//! | `DELETE /nodes/{name}` | stops it in order and forgets it |
//! | anything else | as of a node, see [`crate::admin`] |

use std::{io, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{self, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use futures_util::TryStreamExt;
use tokio::net::UnixStream;

use super::{Nodes, environment, keeper};
use crate::admin::{Refusal, socket};

pub(super) fn router(nodes: Arc<Nodes>) -> Router {
    Router::new().route("/nodes", get(list).post(add)).route("/nodes/{name}", delete(remove)).fallback(pass_on).with_state(nodes)
}

async fn list(State(nodes): State<Arc<Nodes>>) -> Json<Vec<keeper::Kept>> {
    Json(nodes.all().await)
}

async fn add(State(nodes): State<Arc<Nodes>>) -> Result<Json<keeper::Kept>, Refusal> {
    // By itself: a caller who goes away leaves no node half begun.
    let added = tokio::spawn(async move { nodes.add().await }).await;
    added.unwrap_or_else(|error| Err(error.into())).map(Json).map_err(|error| Refusal::unfit(format!("{error:#}")))
}

async fn remove(State(nodes): State<Arc<Nodes>>, extract::Path(name): extract::Path<String>) -> Result<(), Refusal> {
    let removed = tokio::spawn(async move { nodes.remove(&name).await }).await;
    removed.unwrap_or_else(|error| Err(error.into())).map_err(|error| Refusal::unfit(format!("{error:#}")))
}

/// Any node can answer for all of them: the first that is up, and not dead without our knowing it yet.
async fn pass_on(State(nodes): State<Arc<Nodes>>, request: Request) -> Response {
    let up = nodes
        .kept
        .lock()
        .await
        .iter()
        .filter(|(_, keeper)| keeper.kept().state == keeper::State::Up)
        .map(|(n, _)| *n)
        .collect::<Vec<_>>();
    for number in up {
        let socket = socket::find(&environment::folder(&nodes.ground.shared.data, number));
        if UnixStream::connect(&socket).await.is_ok() {
            return pass(socket, request).await.unwrap_or_else(|error| {
                let name = environment::name(number);
                Refusal::unavailable(format!("the connection to node {name} broke: {error}; try again")).into_response()
            });
        }
    }
    Refusal::unavailable("no node answers; look into the log of `rookery up`".to_owned()).into_response()
}

/// Both bodies flow as they come: an import is answered while it is sent.
async fn pass(socket: PathBuf, request: Request) -> reqwest::Result<Response> {
    let client = reqwest::Client::builder().unix_socket(socket).no_proxy().build()?;
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let answer = client
        .request(parts.method, format!("http://rookery{path}"))
        .headers(end_to_end(parts.headers))
        .body(reqwest::Body::wrap_stream(body.into_data_stream()))
        .send()
        .await?;
    let (status, headers) = (answer.status(), end_to_end(answer.headers().clone()));
    let mut response = Response::new(Body::from_stream(answer.bytes_stream().map_err(io::Error::other)));
    *response.status_mut() = StatusCode::from_u16(status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = headers;
    Ok(response)
}

/// Without what is between two ends of one connection.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    for name in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}
