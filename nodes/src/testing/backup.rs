//! A database that is put back to an older state, without a second server: the copy lies beside the tables.

use std::fmt::Write as _;

use tokio_postgres::{Client, Error};

/// Keeps what a database of a service holds now, all of it of one moment, for [`put_back`].
///
/// # Errors
/// What Postgres says.
pub async fn back_up(client: &Client) -> Result<(), Error> {
    let mut copies = "BEGIN ISOLATION LEVEL REPEATABLE READ; DROP SCHEMA IF EXISTS kept CASCADE; CREATE SCHEMA kept;".to_owned();
    for table in tables(client).await? {
        let _ = write!(copies, "CREATE TABLE kept.{table} AS TABLE public.{table};");
    }
    client.batch_execute(&(copies + "COMMIT;")).await
}

/// Puts the database back to what was kept, as from a backup. Nobody may use it meanwhile.
///
/// # Errors
/// What Postgres says.
pub async fn put_back(client: &Client) -> Result<(), Error> {
    let mut copies = "BEGIN;".to_owned();
    for table in tables(client).await? {
        let _ = write!(copies, "TRUNCATE public.{table}; INSERT INTO public.{table} SELECT * FROM kept.{table};");
    }
    client.batch_execute(&(copies + "COMMIT;")).await
}

/// The tables of a service, and not which migrations were applied.
async fn tables(client: &Client) -> Result<Vec<String>, Error> {
    let sql = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'refinery%' ORDER BY 1";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}
