//! The two servers that Rookery is compared with.
//!
//! They say where they listen on their standard output and end when their standard input
//! does, so that none outlives a bench that was killed.

use std::{io::Read, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bb8_postgres::PostgresConnectionManager;
use jiff::Timestamp;
use serde::Deserialize;
use tokio_postgres::NoTls;
use uuid::Uuid;

const STATIC_BYTES: [u8; 500] = [b'x'; 500];
/// What a careful author of a small server would take.
const POOL_CONNECTIONS: u32 = 16;

/// The path of the one route of the bare server.
pub(crate) const BARE_PATH: &str = "/static";
/// The path of the one route of the inserting server.
pub(crate) const INSERT_PATH: &str = "/posts";

/// Serves 500 static bytes.
#[tokio::main]
pub(crate) async fn serve_bare() -> anyhow::Result<()> {
    serve(Router::new().route(BARE_PATH, get(async || STATIC_BYTES.as_slice()))).await
}

/// The columns of a post as Rookery keeps it, and its primary key; nothing else, so that
/// an INSERT costs what it must.
const CREATE_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS posts (
        id uuid PRIMARY KEY,
        author uuid NOT NULL,
        title text NOT NULL,
        body text NOT NULL,
        tags text[] NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        edited boolean NOT NULL,
        version bigint NOT NULL,
        like_count bigint NOT NULL,
        comment_count bigint NOT NULL
    )";
const INSERT: &str = "
    INSERT INTO posts (id, author, title, body, tags, created_at, updated_at, edited, version,
                       like_count, comment_count)
    VALUES ($1, $2, $3, $4, $5, $6, $6, false, 1, 0, 0)";

/// Serves `POST /posts`: one INSERT in a transaction of its own, then the answer.
#[tokio::main]
pub(crate) async fn serve_insert(database: &str) -> anyhow::Result<()> {
    let manager = Manager(PostgresConnectionManager::new_from_stringlike(database, NoTls)?);
    let pool = bb8::Pool::builder()
        .max_size(POOL_CONNECTIONS)
        .min_idle(POOL_CONNECTIONS)
        .test_on_check_out(false)
        .connection_timeout(Duration::from_secs(5))
        .build(manager)
        .await
        .with_context(|| format!("connecting to {database}"))?;
    let server = Arc::new(Inserter { pool, author: Uuid::now_v7() });
    serve(Router::new().route(INSERT_PATH, post(insert)).with_state(server)).await
}

struct Inserter {
    pool: bb8::Pool<Manager>,
    author: Uuid,
}

/// A connection with its statement prepared once.
struct Prepared {
    client: tokio_postgres::Client,
    insert: tokio_postgres::Statement,
}

struct Manager(PostgresConnectionManager<NoTls>);

impl bb8::ManageConnection for Manager {
    type Connection = Prepared;
    type Error = tokio_postgres::Error;

    async fn connect(&self) -> Result<Prepared, Self::Error> {
        let client = self.0.connect().await?;
        let insert = client.prepare(INSERT).await?;
        Ok(Prepared { client, insert })
    }

    async fn is_valid(&self, connection: &mut Prepared) -> Result<(), Self::Error> {
        connection.client.simple_query("").await.map(drop)
    }

    fn has_broken(&self, connection: &mut Prepared) -> bool {
        connection.client.is_closed()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPost {
    title: String,
    body: String,
    tags: Vec<String>,
}

async fn insert(State(server): State<Arc<Inserter>>, Json(post): Json<NewPost>) -> Response {
    match server.insert(&post).await {
        Ok(id) => {
            let location = format!("{INSERT_PATH}/{id}");
            let created = Json(serde_json::json!({ "id": id }));
            (StatusCode::CREATED, [(header::LOCATION, location)], created).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

impl Inserter {
    async fn insert(&self, post: &NewPost) -> Result<Uuid, bb8::RunError<tokio_postgres::Error>> {
        let id = Uuid::now_v7();
        let now = Timestamp::now();
        let connection = self.pool.get().await?;
        connection.client.execute(&connection.insert, &[&id, &self.author, &post.title, &post.body, &post.tags, &now]).await?;
        Ok(id)
    }
}

/// Makes the table of the inserting server.
pub(crate) async fn create_table(database: &str) -> anyhow::Result<()> {
    let (client, connection) = tokio_postgres::connect(database, NoTls).await?;
    let connection = tokio::spawn(connection);
    client.batch_execute(CREATE_TABLE).await?;
    drop(client);
    connection.await??;
    Ok(())
}

async fn serve(router: Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    axum::serve(listener, router).await?;
    Ok(())
}
