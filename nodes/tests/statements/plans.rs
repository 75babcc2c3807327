//! What Postgres says of the statements that it carries out.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

use rookery::testing::TestPostgres;
use serde_json::Value;
use tokio_postgres::{Client, Config, NoTls};

/// What a statement came upon.
pub(crate) struct Visit {
    /// Rows of tables, those that were thrown away included, and blocks of tables and indexes.
    pub(crate) rows: u64,
    pub(crate) plan: String,
}

pub(crate) async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn postgres() -> Client {
    connect(&TestPostgres::shared().server().config("postgres")).await
}

/// Whether the server can tell.
pub(crate) async fn are_told() -> bool {
    postgres().await.batch_execute("LOAD 'auto_explain'").await.is_ok()
}

/// From now on the server tells of every statement in this database. It reads no table whole that it could read by an index, as if
/// all of them were large already.
pub(crate) async fn tell(database: &Config) {
    let client = connect(database).await;
    let name = database.get_dbname().expect("it has a name");
    let settings = [
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_buffers", "on"),
        ("auto_explain.log_timing", "off"),
        ("auto_explain.log_nested_statements", "on"),
        ("auto_explain.log_format", "json"),
        ("enable_seqscan", "off"),
    ];
    client.batch_execute("LOAD 'auto_explain'").await.unwrap();
    for (setting, value) in settings {
        client.batch_execute(&format!("ALTER DATABASE \"{name}\" SET {setting} = '{value}'")).await.unwrap();
    }
}

/// The server's log, from a moment on.
pub(crate) struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    pub(crate) async fn begin() -> Self {
        let data: String = postgres().await.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
        let path = PathBuf::from(data).with_file_name("postgres.log");
        let from = fs::metadata(&path).unwrap().len();
        Self { path, from }
    }

    /// What each statement came upon at most.
    pub(crate) fn visits(&self) -> BTreeMap<String, Visit> {
        let mut file = fs::File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.from)).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        let mut visits: BTreeMap<String, Visit> = BTreeMap::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if !line.ends_with(" plan:") {
                continue;
            }
            let mut json = String::new();
            while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
                json.push_str(more);
                json.push('\n');
            }
            // What is cut short by another process's line is one of many of its kind.
            let Ok(told) = serde_json::from_str::<Value>(&json) else { continue };
            let statement = squeezed(told["Query Text"].as_str().unwrap_or_default());
            let plan = &told["Plan"];
            let blocks = number(plan, "Shared Hit Blocks") + number(plan, "Shared Read Blocks");
            let rows = (visited(plan) + blocks) as u64;
            let visit = visits.entry(statement).or_insert(Visit { rows: 0, plan: String::new() });
            if rows >= visit.rows {
                *visit = Visit { rows, plan: outline(plan, 0) };
            }
        }
        visits
    }
}

/// With one space between words.
pub(crate) fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn number(node: &Value, name: &str) -> f64 {
    node[name].as_f64().unwrap_or(0.0)
}

fn inner(node: &Value) -> impl Iterator<Item = &Value> {
    node["Plans"].as_array().into_iter().flatten()
}

/// Rows of tables that a plan has come upon.
fn visited(node: &Value) -> f64 {
    let thrown_away = number(node, "Rows Removed by Filter") + number(node, "Rows Removed by Index Recheck");
    let here = (number(node, "Actual Rows") + thrown_away) * number(node, "Actual Loops");
    let is_scan = node["Node Type"].as_str().is_some_and(|kind| kind.ends_with("Scan")) && node["Relation Name"].is_string();
    if is_scan { here + inner(node).map(visited).sum::<f64>() } else { inner(node).map(visited).sum() }
}

fn outline(node: &Value, depth: usize) -> String {
    let text = |name: &str| node[name].as_str().map(|text| format!(" {text}")).unwrap_or_default();
    let mut line = format!(
        "{}{}{}{}: {} rows, {} thrown away, {} times, {} blocks\n",
        "  ".repeat(depth + 1),
        node["Node Type"].as_str().unwrap_or_default(),
        text("Relation Name"),
        text("Index Name"),
        number(node, "Actual Rows"),
        number(node, "Rows Removed by Filter") + number(node, "Rows Removed by Index Recheck"),
        number(node, "Actual Loops"),
        number(node, "Shared Hit Blocks") + number(node, "Shared Read Blocks"),
    );
    inner(node).for_each(|node| line.push_str(&outline(node, depth + 1)));
    line
}
