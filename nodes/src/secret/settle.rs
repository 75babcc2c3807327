//! Which of its secrets a node makes things with, as the other nodes' reports say what those recognise; and the cookie of
//! the links, which outlives every secret.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use rookery_actors::{
    entity::Failure,
    runtime::Database,
    secret::{KeyRing, Purpose},
    users::keys::SigningKeys,
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::report::{self, Said, State};

/// Between two looks at the other nodes' reports.
const EVERY: Duration = Duration::from_secs(1);

/// A node that has said nothing for longer is gone: far longer than a node that still serves can go without a report.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// The row that holds the cookie, in the settings of the users database.
const COOKIE: &str = "links cookie";

/// Chooses with which secret to make things, before anything is made; what the sessions of ractor_cluster show each other.
///
/// # Errors
/// When the database does not answer, or holds a cookie that none of the secrets opens.
pub(crate) async fn settle(secrets: &KeyRing, users: &Database, me: &str) -> anyhow::Result<String> {
    choose(secrets, users, me).await?;
    cookie(secrets, users).await
}

/// Goes on looking, as nodes come and go.
pub(crate) fn follow(secrets: KeyRing, users: Arc<Database>, me: String) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let changed = match choose(&secrets, &users, &me).await {
                Ok(changed) => changed,
                // What was right a second ago stays so.
                Err(failure) => {
                    tracing::debug!(%failure, "the reports of other nodes cannot be read");
                    continue;
                }
            };
            if changed && let Err(error) = seal_anew(&secrets, &users).await {
                tracing::warn!(error = format!("{error:#}"), "what is sealed in the users database cannot be sealed anew");
            }
        }
    })
}

/// Seals with the configured secret what the database holds, if every node recognises that one.
async fn seal_anew(secrets: &KeyRing, users: &Database) -> anyhow::Result<()> {
    cookie(secrets, users).await?;
    SigningKeys::load_or_create(users, secrets).await?;
    Ok(())
}

/// Whether the choice changed.
async fn choose(secrets: &KeyRing, users: &Database, me: &str) -> Result<bool, Failure> {
    let said = report::all(users).await?;
    let others: Vec<&Said> =
        said.iter().filter(|said| said.name != me && said.state != State::Dead && said.age < GONE_AFTER).collect();
    let changed = secrets.settle(others.iter().map(|said| said.report.secrets.as_slice()));
    if changed {
        let ours = &secrets.ids()[0];
        let without = others.iter().filter(|said| !said.report.secrets.contains(ours));
        let without: Vec<&str> = without.map(|said| said.name.as_str()).collect();
        match secrets.is_settled() {
            true => tracing::info!("every node recognises the configured secret: everything is signed and sealed with it"),
            false => tracing::info!(
                nodes = without.join(", "),
                "other nodes do not recognise the configured secret yet: signing and sealing with the former one"
            ),
        }
    }
    Ok(changed)
}

/// The cookie: made once, as builds up to 0.1.0 derived it, and kept, for a session of ractor_cluster knows only one. The
/// proof that a node belongs to the cluster is the greeting's; this is no more than ractor_cluster asks for.
async fn cookie(secrets: &KeyRing, users: &Database) -> anyhow::Result<String> {
    let place = format!("setting/{COOKIE}").into_bytes();
    let seal = |cookie: &[u8]| anyhow::Ok(BASE64_STANDARD.encode(secrets.seal(cookie, &place)?));
    let first = seal(former(secrets).as_bytes())?;
    let client = users.get().await?;
    client.execute("INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", &[&COOKIE, &first]).await?;
    let kept: String = client.query_one("SELECT value FROM setting WHERE name = $1", &[&COOKIE]).await?.get(0);
    let opened = BASE64_STANDARD.decode(&kept).ok().and_then(|sealed| secrets.unseal(&sealed, &place).ok()).context(
        "the users database belongs to a cluster with another secret. Give all nodes the secret of that cluster; if it is being \
         replaced, give it as `secret_previous` (ROOKERY__SECRET_PREVIOUS_FILE) beside the new one",
    )?;
    let cookie = secrecy::ExposeSecret::expose_secret(&opened.plain).clone();
    if !opened.by_first && secrets.is_settled() {
        let anew = seal(&cookie)?;
        let set = "UPDATE setting SET value = $2 WHERE name = $1 AND value = $3";
        client.execute(set, &[&COOKIE, &anew, &kept]).await?;
    }
    String::from_utf8(cookie).context("the cookie of the links is no text")
}

fn former(secrets: &KeyRing) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secrets.former().derive(Purpose::Link));
    hmac::sign(&key, b"cookie").as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rookery_actors::secret::{ClusterSecret, FormerReading};

    use super::*;

    #[test]
    fn the_cookie_is_that_of_builds_of_before() {
        let text = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let secrets = KeyRing::read(&text.into(), FormerReading::Literal, None).unwrap();
        // Computed apart from this code: HKDF-SHA256, then HMAC-SHA256 of "cookie".
        let theirs = include_str!("../../tests/fixtures/links_v2_cookie.txt");
        assert_eq!(former(&secrets), theirs.trim());
        assert_eq!(former(&ClusterSecret::from_bytes(text.as_bytes()).unwrap().into()), theirs.trim());
    }
}
