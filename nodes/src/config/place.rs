//! Alone or one of several: what a node's place in the world asks of its configuration.

use super::{Config, ConfigError, ConfigErrors, Role, source::variable};

impl Config {
    /// Whether there is no other node: this one listens for none, or a database of it is its own private Postgres.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.cluster.listen.is_none() || self.has_private_database()
    }

    /// Whether a database was given no URL, and so is a private Postgres that nobody else reaches.
    #[must_use]
    pub fn has_private_database(&self) -> bool {
        self.services_without_url().next().is_some()
    }

    /// Looks whether one node of a cluster can start: what the nodes share must have been given.
    ///
    /// # Errors
    /// The databases, the secret and the address that are missing.
    pub fn check_member(&self) -> Result<(), ConfigErrors> {
        let databases = self.services_without_url().map(|role| {
            let reason = "the nodes of a cluster share their databases; a single node brings its own with `rookery up`";
            missing(format!("services.{role}.database_url"), true, reason)
        });
        let secret = self.secret.is_none().then(|| {
            let reason = "the nodes of a cluster share one secret, as `openssl rand -hex 32` makes it; \
                          what one signs and seals, the others read";
            missing("secret".to_owned(), true, reason)
        });
        let listen = self.cluster.listen.is_none().then(|| {
            let reason = "the nodes of a cluster ask each other; say where this one listens for the others, such as 0.0.0.0:7400";
            missing("cluster.listen".to_owned(), false, reason)
        });
        all_right(databases.chain(secret).chain(listen))
    }

    /// Looks whether the nodes of this machine can be everything: nobody else serves what they leave out.
    ///
    /// # Errors
    /// The roles that nobody has.
    pub fn check_whole(&self) -> Result<(), ConfigErrors> {
        let left_out: Vec<_> =
            Role::ALL.iter().filter(|role| !self.node.roles.has(**role)).map(|role| role.to_string()).collect();
        all_right((!left_out.is_empty()).then(|| ConfigError::LeftOut { roles: left_out.join(", ") }))
    }

    fn services_without_url(&self) -> impl Iterator<Item = Role> {
        let without = |role: &Role| self.services.of(*role).is_some_and(|service| service.database_url.is_none());
        Role::ALL.iter().copied().filter(without)
    }
}

fn missing(key: String, is_secret: bool, reason: &'static str) -> ConfigError {
    let variable = variable(&key);
    let variables = if is_secret { format!("{variable} or {variable}_FILE") } else { variable };
    ConfigError::Missing { key, variables, reason }
}

fn all_right(mistakes: impl IntoIterator<Item = ConfigError>) -> Result<(), ConfigErrors> {
    let mistakes: Vec<_> = mistakes.into_iter().collect();
    if mistakes.is_empty() { Ok(()) } else { Err(ConfigErrors(mistakes)) }
}
