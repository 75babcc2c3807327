//! Whether a database answers, asked over a connection of its own: those of the pool may all be at work, which says nothing
//! about the database.

use tokio::sync::Mutex;

use super::{Connection, Database, describe};

/// What the connection is called on the server.
const NAME: &str = "rookery-health";

/// A database that is asked whether it answers.
pub struct Ping {
    database: Database,
    session: Mutex<Option<Connection>>,
}

impl Ping {
    /// Connects when it is first asked.
    pub fn of(database: Database) -> Self {
        Self { database, session: Mutex::default() }
    }

    /// Waits for an answer, for as long as the caller does.
    ///
    /// # Errors
    /// What the server or the network says.
    pub async fn ask(&self) -> Result<(), String> {
        let mut place = self.session.lock().await;
        // Taken out, so that one whose answer nobody waits for any more is not asked again.
        let session = match place.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.database.session(NAME).await.map_err(|error| error.describe())?,
        };
        session.simple_query("SELECT 1").await.map_err(|error| describe(&error))?;
        *place = Some(session);
        Ok(())
    }
}
