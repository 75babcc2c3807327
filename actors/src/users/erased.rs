//! The names that deleted accounts had. They cannot be read, only compared: an import asks whether the name of an author was
//! that of an account which is gone, because whoever has it now is somebody else.

use std::fmt;

use aws_lc_rs::hmac;

use super::{Users, names::Username};
use crate::{entity::Failure, ids::UserId};

/// Hashes names with a key that is as old as the cluster: a rotation of its secret does not change it.
#[derive(Clone)]
pub struct NameHasher {
    key: hmac::Key,
}

impl NameHasher {
    /// From something that only the nodes of the cluster know, and that stays when its secret is rotated.
    pub fn new(lasting: &str) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, lasting.as_bytes());
        // A key of its own, so that its hashes say nothing about other uses.
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, b"rookery/erased-name/v1").as_ref()) }
    }

    fn hash(&self, name: &Username) -> hmac::Tag {
        hmac::sign(&self.key, name.as_str().as_bytes())
    }
}

impl fmt::Debug for NameHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameHasher([redacted])")
    }
}

impl Users {
    /// Before an account goes: afterwards nobody knows its name. Should the account stay after all, [`Users::was_erased`] leaves
    /// it out.
    pub(super) async fn remember_name(&self, user: UserId, name: &Username) -> Result<(), Failure> {
        let client = self.runtime.database().get().await?;
        let sql = "INSERT INTO erased_name (name, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        client.execute(sql, &[&self.names.hash(name).as_ref(), &user.0]).await?;
        Ok(())
    }

    /// Whether an account that was deleted had this name.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub async fn was_erased(&self, name: &Username) -> Result<bool, Failure> {
        let sql = "SELECT EXISTS (SELECT FROM erased_name e JOIN app_user u ON u.id = e.user_id WHERE e.name = $1 AND u.deleted)";
        let client = self.runtime.database().get().await?;
        Ok(client.query_one(sql, &[&self.names.hash(name).as_ref()]).await?.get(0))
    }
}
