//! The admin port of the parent: it adds and removes nodes, and hands everything else to a node that answers.
//!
//! | | |
//! |---|---|
//! | `GET /nodes` | [`Kept`] of each node |
//! | `POST /nodes` | one more; [`Kept`] when it answers |
//! | `DELETE /nodes/{name}` | stops it in order and forgets it |
//! | anything else | as of a node, see [`crate::admin`] |

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{self, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use futures_util::{FutureExt, StreamExt, future::select_ok};

use super::{Nodes, environment, keeper};
use crate::admin::{Refusal, silence, socket};

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

/// Any node can answer for all of them: the first to answer a short question, for one that hangs takes connections too.
async fn pass_on(State(nodes): State<Arc<Nodes>>, request: Request) -> Response {
    let asked = nodes.up().await.into_iter().map(|number| {
        let socket = socket::find(&environment::folder(&nodes.ground.shared.data, number));
        async move { keeper::ask(&socket).await.map(|_| (number, socket)) }.boxed()
    });
    let asked: Vec<_> = asked.collect();
    let answers = if asked.is_empty() { None } else { select_ok(asked).await.ok() };
    let Some(((number, socket), _)) = answers else {
        return Refusal::unavailable("no node answers; look into the log of `rookery up`".to_owned()).into_response();
    };
    pass(socket, request).await.unwrap_or_else(|error| {
        let name = environment::name(number);
        Refusal::unavailable(format!("node {name} gave no answer: {error:#}; try again")).into_response()
    })
}

/// Both bodies flow as they come: an import is answered while it is sent. How long that takes, nobody knows; while nothing
/// comes, the node is asked whether it lives.
async fn pass(socket: PathBuf, request: Request) -> anyhow::Result<Response> {
    let client = reqwest::Client::builder().unix_socket(socket.as_path()).no_proxy().build()?;
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let request = client
        .request(parts.method, format!("http://rookery{path}"))
        .headers(end_to_end(parts.headers))
        .body(reqwest::Body::wrap_stream(body.into_data_stream()));
    let is_alive = move || {
        let socket = socket.clone();
        async move { keeper::ask(&socket).await.is_ok() }.boxed()
    };
    let answer = silence::while_alive(request.send(), &is_alive).await??;
    let (status, headers) = (answer.status(), end_to_end(answer.headers().clone()));
    let mut response = Response::new(Body::from_stream(silence::watched(answer.bytes_stream().boxed(), is_alive)));
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
