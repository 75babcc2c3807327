//! What a careful author would do with Postgres alone: a column of lexemes with weights, a GIN index on it, and one statement
//! for the page, its highlights and the exact count.

use std::{collections::HashMap, fmt::Write, time::Duration};

use anyhow::Context;
use rookery::testing::TestPostgres;
use rookery_actors::search::index::Document;
use rookery_benches::{
    process,
    search::ask::{Ask, Clause},
};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls, Statement, types::ToSql};

use crate::subjects::Searches;

const SCHEMA: &str = "
    CREATE TABLE document (
        id uuid PRIMARY KEY,
        kind text NOT NULL,
        author uuid,
        tags text[] NOT NULL,
        title text NOT NULL,
        body text NOT NULL,
        created_at timestamptz NOT NULL,
        post_id uuid,
        lexemes tsvector NOT NULL GENERATED ALWAYS AS (
            setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', body), 'B')) STORED
    )";

const INSERT: &str = "
    INSERT INTO document (id, kind, author, tags, title, body, created_at, post_id)
    SELECT id, kind, author, string_to_array(tags, ' '), title, body, created_at, post_id
    FROM UNNEST($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::uuid[])
         AS new (id, kind, author, tags, title, body, created_at, post_id)";

const INDEXES: &str = "
    SET maintenance_work_mem = '512MB';
    CREATE INDEX ON document USING gin (lexemes);
    CREATE INDEX ON document USING gin (tags);
    CREATE INDEX ON document (created_at DESC, id DESC);
    CREATE INDEX ON document (author, created_at DESC);
    CREATE INDEX ON document (kind, created_at DESC)";

/// Words and their trigrams, as the documentation of pg_trgm proposes for misspelt queries.
const SPELLING: &str = "
    CREATE EXTENSION pg_trgm;
    CREATE TABLE word AS
        SELECT word, ndoc FROM ts_stat($$SELECT to_tsvector('simple', title || ' ' || body) FROM document$$)
        WHERE word ~ '^[a-z]+$';
    CREATE INDEX ON word USING gin (word gin_trgm_ops);
    ANALYZE word";

/// A private server with the documents.
pub(crate) struct Postgres {
    runtime: Runtime,
    client: Client,
    /// The process that serves the one connection.
    backend: process::Pid,
    statements: HashMap<String, Statement>,
    /// Whether a word is looked up among those that it may be a misspelling of.
    spelling: bool,
}

/// A statement and its parameters.
pub(crate) struct Prepared {
    statement: Statement,
    parameters: Vec<Box<dyn ToSql + Sync>>,
}

impl Postgres {
    /// Starts the server that tests use: settings as a node has them, but for fsync, which reads nothing.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = TestPostgres::shared().server().config("postgres");
        let (client, connection) = runtime.block_on(config.connect(NoTls))?;
        runtime.spawn(connection);
        let backend: i32 = runtime.block_on(client.query_one("SELECT pg_backend_pid()", &[]))?.get(0);
        runtime.block_on(client.batch_execute(SCHEMA))?;
        Ok(Self { runtime, client, backend: backend.cast_unsigned(), statements: HashMap::new(), spelling: false })
    }

    /// Adds documents.
    pub(crate) fn add(&mut self, batch: &[(u64, Document)]) -> anyhow::Result<()> {
        let all = || batch.iter().map(|(_, document)| document);
        let text = |text: &str| text.replace('\0', "");
        let ids: Vec<_> = all().map(|it| it.id).collect();
        let kinds: Vec<_> = all().map(|it| it.kind.as_str()).collect();
        let authors: Vec<_> = all().map(|it| it.author).collect();
        let tags: Vec<_> = all().map(|it| it.tags.join(" ")).collect();
        let titles: Vec<_> = all().map(|it| text(it.title.as_deref().unwrap_or_default())).collect();
        let bodies: Vec<_> = all().map(|it| text(&it.body)).collect();
        let times: Vec<_> = all().map(|it| it.created_at).collect();
        let posts: Vec<_> = all().map(|it| it.post_id).collect();
        let insert = self.statement(INSERT)?;
        let parameters: [&(dyn ToSql + Sync); 8] = [&ids, &kinds, &authors, &tags, &titles, &bodies, &times, &posts];
        self.runtime.block_on(self.client.execute(&insert, &parameters))?;
        Ok(())
    }

    /// Makes the indexes, and what the planner wants to know.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.runtime.block_on(self.client.batch_execute(INDEXES))?;
        self.runtime.block_on(self.client.batch_execute("VACUUM ANALYZE document"))?;
        Ok(())
    }

    /// Looks up what a word may be a misspelling of from now on; none without pg_trgm.
    pub(crate) fn with_spelling(mut self) -> anyhow::Result<Option<Self>> {
        let there = "SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'";
        if self.runtime.block_on(self.client.query_opt(there, &[]))?.is_none() {
            return Ok(None);
        }
        self.runtime.block_on(self.client.batch_execute(SPELLING))?;
        self.spelling = true;
        Ok(Some(self))
    }

    /// What the documents and their indexes have on the disk.
    pub(crate) fn bytes(&self) -> anyhow::Result<u64> {
        let size = "SELECT pg_total_relation_size('document')";
        let bytes: i64 = self.runtime.block_on(self.client.query_one(size, &[]))?.get(0);
        Ok(bytes.cast_unsigned())
    }

    /// The CPU time of the process that serves us.
    pub(crate) fn cpu(&self) -> Duration {
        process::cpu_of_one_thread(self.backend)
    }

    fn statement(&mut self, sql: &str) -> anyhow::Result<Statement> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.runtime.block_on(self.client.prepare(sql)).with_context(|| sql.to_owned())?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Searches for Postgres {
    type Prepared = Prepared;

    fn prepare(&mut self, ask: &Ask) -> anyhow::Result<Prepared> {
        let (sql, parameters) = statement(ask, self.spelling);
        Ok(Prepared { statement: self.statement(&sql)?, parameters })
    }

    fn search(&mut self, question: &Prepared) -> anyhow::Result<(Vec<u8>, u64)> {
        let parameters: Vec<&(dyn ToSql + Sync)> = question.parameters.iter().map(|it| &**it).collect();
        let row = self.runtime.block_on(self.client.query_one(&question.statement, &parameters))?;
        let (total, json): (i64, String) = (row.get(0), row.get(1));
        Ok((json.into_bytes(), total.cast_unsigned()))
    }

    fn cpu(&self) -> Duration {
        self.cpu()
    }
}

/// The one statement for a question. What matches is found once, for the count and for the page; only the page is highlighted.
fn statement(ask: &Ask, spelling: bool) -> (String, Vec<Box<dyn ToSql + Sync>>) {
    let mut parameters: Vec<Box<dyn ToSql + Sync>> = Vec::new();
    let mut conditions = Vec::new();
    let mut with = String::new();
    let mut number = |parameter: Box<dyn ToSql + Sync>| {
        parameters.push(parameter);
        parameters.len()
    };
    let asked = !ask.clauses.is_empty();
    if asked {
        let is_prefix = ask.clauses.iter().any(|clause| matches!(clause, Clause::Prefix(_)));
        let at = number(Box::new(if is_prefix { prefixes(ask) } else { web_search(ask) }));
        let parsed = match (spelling, is_prefix) {
            (true, _) => format!(
                "to_tsquery('english', (SELECT string_agg(word, ' | ') FROM (SELECT word FROM word WHERE word % ${at}::text \
                 ORDER BY similarity(word, ${at}::text) DESC, ndoc DESC LIMIT 16) AS meant))"
            ),
            (false, true) => format!("to_tsquery('english', ${at}::text)"),
            (false, false) => format!("websearch_to_tsquery('english', ${at}::text)"),
        };
        let _ = write!(with, "asked AS MATERIALIZED (SELECT {parsed} AS query), ");
        conditions.push("lexemes @@ query".to_owned());
    }
    if let Some(kind) = ask.kind {
        conditions.push(format!("kind = ${}::text", number(Box::new(kind.as_str()))));
    }
    if let Some(author) = ask.author {
        conditions.push(format!("author = ${}::uuid", number(Box::new(author))));
    }
    if let Some(tag) = &ask.tag {
        conditions.push(format!("tags @> ARRAY[${}::text]", number(Box::new(tag.clone()))));
    }
    if let Some(from) = ask.from {
        conditions.push(format!("created_at >= ${}::timestamptz", number(Box::new(from))));
    }
    if let Some(to) = ask.to {
        conditions.push(format!("created_at < ${}::timestamptz", number(Box::new(to))));
    }
    let condition = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    let tables = if asked { "document, asked" } else { "document" };
    let key = if ask.is_by_time() { "created_at" } else { "ts_rank(lexemes, query)" };
    let headline = |column: &str| match asked {
        true => format!("ts_headline('english', {column}, (SELECT query FROM asked), 'StartSel=<mark>, StopSel=</mark>')"),
        false => "NULL".to_owned(),
    };
    let (limit, behind) = (ask.limit, ask.behind);
    let matches = format!("SELECT document.id, {key} AS key FROM {tables} WHERE {condition}");
    // Without a word nothing has to be ranked: an index has the order, and all are only counted.
    let (found, count) = match asked {
        true => (format!("found AS MATERIALIZED ({matches}), "), "SELECT count(*) FROM found".to_owned()),
        false => (String::new(), format!("SELECT count(*) FROM document WHERE {condition}")),
    };
    let from = if asked { "SELECT id, key FROM found" } else { &matches };
    let sql = format!(
        "WITH {with}{found}page AS (SELECT json_agg(hit) AS items FROM (
             SELECT document.id, kind, author, tags, title, left(body, 200) AS excerpt, created_at, post_id,
                    {title} AS title_marked, {body} AS body_marked
             FROM ({from} ORDER BY key DESC, id DESC LIMIT {limit} OFFSET {behind}) AS best
             JOIN document USING (id) ORDER BY key DESC, document.id DESC) AS hit)
         SELECT ({count}), coalesce((SELECT items FROM page)::text, '[]')",
        title = headline("title"),
        body = headline("body"),
    );
    (sql, parameters)
}

/// As a person types it who knows what `websearch_to_tsquery` takes.
fn web_search(ask: &Ask) -> String {
    let mut text = String::new();
    for clause in &ask.clauses {
        match clause {
            Clause::Word(word) | Clause::Prefix(word) => {
                let or = if text.is_empty() { "" } else { " or " };
                text += &format!("{or}{word}");
            }
            Clause::Phrase(phrase) => text += &format!(" \"{phrase}\""),
            Clause::Not(word) => text += &format!(" -{word}"),
        }
    }
    text
}

fn prefixes(ask: &Ask) -> String {
    let prefixes = ask.clauses.iter().filter_map(|clause| match clause {
        Clause::Prefix(prefix) => Some(format!("{prefix}:*")),
        _ => None,
    });
    prefixes.collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_worded_as_postgres_takes_them() {
        assert_eq!(web_search(&Ask::words(["loom", "bird"])), "loom or bird");
        let ask = Ask::of([Clause::Word("loom".to_owned()), Clause::Not("bird".to_owned())]);
        assert_eq!(web_search(&ask), "loom -bird");
        assert_eq!(prefixes(&Ask::of([Clause::Prefix("loo".to_owned())])), "loo:*");
    }
}
