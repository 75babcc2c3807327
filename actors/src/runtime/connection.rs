//! A connection to Postgres on which every statement has a deadline: a server that falls silent, or the network before it,
//! costs whoever waits some seconds and the connection, not the lease (rule 10).

use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::TryStreamExt;
use tokio::{runtime::Handle, task::AbortHandle, time::timeout};
use tokio_postgres::{CancelToken, Client, Config, Error, Row, SimpleQueryMessage, Statement, ToStatement, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::describe;
use crate::episodes;

/// A statement of the log or of the directory takes milliseconds, and waits for a lock for 2 s at most; on the server's side it
/// is given up after 5 s. One that took this long went to a server that is gone or over a connection that died in silence.
pub(crate) const STATEMENT_WITHIN: Duration = Duration::from_secs(6);

/// The same for whatever only reads or tidies up: some of it goes through many rows.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(10);

/// How long the server is asked to give up what nobody waits for any more.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server or the network says no.
    #[error(transparent)]
    Refused(#[from] Error),
    /// Neither says anything.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

impl ConnectError {
    /// Whether a server that works answers no: it has no connection left, or does not know us.
    pub(crate) fn is_by_choice(&self) -> bool {
        // 57: it starts or stops.
        let chosen = |error: &Error| error.as_db_error().is_some_and(|db| !db.code().code().starts_with("57"));
        matches!(self, Self::Refused(error) if chosen(error))
    }

    /// What the server or the network says, in one line.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Refused(error) => describe(error),
            Self::Silent(_) => self.to_string(),
        }
    }
}

/// A connection of our own. A statement that gets no answer in time fails as one whose connection has died: the outcome of a
/// write is open.
pub struct Connection {
    client: Client,
    task: ConnectionTask,
}

/// The task that talks to the server, and how to give it up.
struct ConnectionTask {
    /// Without it every statement fails.
    handle: AbortHandle,
    within: Duration,
    /// Statements whose answers nobody has taken.
    open: AtomicUsize,
    is_cut: AtomicBool,
    cancel: CancelToken,
    tls: MakeRustlsConnect,
    database: String,
}

/// Connects, and drives the connection in a task of its own.
async fn dial(config: &Config, tls: &MakeRustlsConnect) -> Result<(Client, AbortHandle), Error> {
    let (client, connection) = config.connect(tls.clone()).await?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a database session ended");
        }
    });
    Ok((client, task.abort_handle()))
}

/// A connection without deadlines, for what takes as long as it takes: migrations.
pub(super) async fn connect_without_deadlines(config: &Config, tls: &MakeRustlsConnect) -> Result<Client, ConnectError> {
    match timeout(STATEMENT_WITHIN, dial(config, tls)).await {
        Ok(dialled) => Ok(dialled?.0),
        Err(_) => Err(ConnectError::Silent(STATEMENT_WITHIN)),
    }
}

impl Connection {
    /// Connects; `within` is what each statement is given.
    pub(super) async fn open(config: &Config, tls: &MakeRustlsConnect, within: Duration) -> Result<Self, ConnectError> {
        let Ok(dialled) = timeout(STATEMENT_WITHIN, dial(config, tls)).await else {
            return Err(ConnectError::Silent(STATEMENT_WITHIN));
        };
        let (client, handle) = dialled?;
        let task = ConnectionTask {
            handle,
            within,
            open: AtomicUsize::new(0),
            is_cut: AtomicBool::new(false),
            cancel: client.cancel_token(),
            tls: tls.clone(),
            database: config.get_dbname().unwrap_or_default().to_owned(),
        };
        Ok(Self { client, task })
    }

    /// Whether it is gone; open another.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed() || self.task.is_cut.load(Ordering::Acquire)
    }

    /// All rows of a statement.
    ///
    /// # Errors
    /// What Postgres or the network says; also for each of the others.
    pub async fn query<T>(&self, statement: &T, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.task.answered(pin!(self.client.query(statement, params))).await
    }

    /// The one row of a statement.
    ///
    /// # Errors
    /// Also when there is none, or more than one.
    pub async fn query_one<T>(&self, statement: &T, params: &[&(dyn ToSql + Sync)]) -> Result<Row, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.task.answered(pin!(self.client.query_one(statement, params))).await
    }

    /// The row of a statement, if there is one.
    ///
    /// # Errors
    /// Also when there is more than one.
    pub async fn query_opt<T>(&self, statement: &T, params: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.task.answered(pin!(self.client.query_opt(statement, params))).await
    }

    /// Gives the rows of a statement away one by one, so that they are never all in memory.
    ///
    /// # Errors
    /// As [`Connection::query`], and what `take` says.
    pub async fn query_each<E: From<Error>>(
        &self,
        statement: &str,
        params: &[&(dyn ToSql + Sync)],
        mut take: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let rows = pin!(async {
            let mut rows = pin!(self.client.query_raw(statement, params.iter().copied()).await?);
            while let Some(row) = rows.try_next().await? {
                take(row)?;
            }
            Ok(())
        });
        self.task.answered(rows).await
    }

    /// Carries a statement out; how many rows it was about.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn execute<T>(&self, statement: &T, params: &[&(dyn ToSql + Sync)]) -> Result<u64, Error>
    where
        T: ?Sized + ToStatement,
    {
        self.task.answered(pin!(self.client.execute(statement, params))).await
    }

    /// Carries out several statements without parameters.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn batch_execute(&self, statements: &str) -> Result<(), Error> {
        self.task.answered(pin!(self.client.batch_execute(statements))).await
    }

    /// The same with their rows as text.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn simple_query(&self, statements: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        self.task.answered(pin!(self.client.simple_query(statements))).await
    }

    /// Prepares a statement for this connection.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn prepare(&self, statement: &str) -> Result<Statement, Error> {
        self.task.answered(pin!(self.client.prepare(statement))).await
    }

    /// Begins a transaction; it is rolled back if it is dropped.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        let Self { client, task } = self;
        let transaction = task.answered(pin!(client.transaction())).await?;
        Ok(Transaction { transaction, task })
    }

    /// Whether somebody went away in the middle of a statement, which the server may be at still.
    pub(super) fn is_owed_an_answer(&self) -> bool {
        self.task.open.load(Ordering::Acquire) > 0
    }

    /// Has the server give up what nobody waits for any more, and waits until it has: it answers in order.
    pub(super) async fn settle(&self) {
        self.task.cancel().await;
        match self.batch_execute("").await {
            Err(error) if error.as_db_error().is_none() => {}
            _ => self.task.open.store(0, Ordering::Release),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // By itself it would wait for an answer that may never come.
        if self.is_owed_an_answer() {
            self.task.cut();
        }
    }
}

impl ConnectionTask {
    async fn answered<T>(&self, mut statement: Pin<&mut impl Future<Output = T>>) -> T {
        self.open.fetch_add(1, Ordering::AcqRel);
        let answer = match timeout(self.within, statement.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                self.log_silence();
                self.cut();
                // It ends with its connection.
                statement.await
            }
        };
        self.open.fetch_sub(1, Ordering::AcqRel);
        answer
    }

    fn log_silence(&self) {
        let reason = format_args!("no answer within {} s", self.within.as_secs());
        episodes::warn("a database connection is given up", &self.database, reason);
    }

    /// Gives the connection up, and asks the server to do the same with the statement that it may be at.
    fn cut(&self) {
        self.handle.abort();
        if self.is_cut.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.cancel());
        }
    }

    /// Asks the server to give up the statement that it is at.
    fn cancel(&self) -> impl Future<Output = ()> + use<> {
        let (cancel, tls) = (self.cancel.clone(), self.tls.clone());
        async move {
            // Mostly it cannot be reached, which is why.
            let _ = timeout(CANCEL_WITHIN, cancel.cancel_query(tls)).await;
        }
    }
}

/// A transaction on a [`Connection`], with the same deadlines.
pub struct Transaction<'a> {
    transaction: tokio_postgres::Transaction<'a>,
    task: &'a ConnectionTask,
}

impl Transaction<'_> {
    /// All rows of a statement.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn query(&self, statement: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.task.answered(pin!(self.transaction.query(statement, params))).await
    }

    /// Carries a statement out; how many rows it was about.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn execute(&self, statement: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.task.answered(pin!(self.transaction.execute(statement, params))).await
    }

    /// Carries out several statements without parameters.
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn batch_execute(&self, statements: &str) -> Result<(), Error> {
        self.task.answered(pin!(self.transaction.batch_execute(statements))).await
    }

    /// Commits it.
    ///
    /// # Errors
    /// As [`Connection::query`]; the outcome may be open.
    pub async fn commit(self) -> Result<(), Error> {
        let Self { transaction, task } = self;
        task.answered(pin!(transaction.commit())).await
    }
}
