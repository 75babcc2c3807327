//! The commands that a running node carries out, but for those that have a file of their own.

use super::{
    AdminCommand, DltCommand, Exit, GrantableRole, Json, KeysCommand, client::Client, import, password, print_json, show,
};
use crate::{
    admin::{
        dlt::{Replayed, Wanted},
        keys::{Grant, Key, NewPassword},
        reindex::Progress,
        restored::Restored,
        services::Letter,
        status::Status,
    },
    terminal::{self, answer_line, note_line},
};

pub(super) async fn status(client: &Client, Json { json }: Json) -> anyhow::Result<Exit> {
    let status: Status = client.get("/status", &()).await?;
    if json {
        print_json(&status)?
    } else {
        terminal::answer(show::status(&status))
    }
    Ok(if status.is_served() { Exit::Done } else { Exit::Unserved })
}

pub(super) async fn keys(client: &Client, command: KeysCommand) -> anyhow::Result<Exit> {
    let (keys, json): (Vec<Key>, _) = match command {
        KeysCommand::List(Json { json }) => (client.get("/keys", &()).await?, json),
        KeysCommand::Rotate(Json { json }) => (client.post("/keys/rotate").await?, json),
    };
    if json {
        print_json(&keys)?
    } else {
        terminal::answer(show::keys(&keys))
    }
    Ok(Exit::Done)
}

pub(super) async fn dead_letters(client: &Client, command: DltCommand) -> anyhow::Result<Exit> {
    let (letters, json) = match command {
        DltCommand::Replay(letters) => return replay(client, letters.into()).await,
        DltCommand::List { letters, json: Json { json } } => (letters, json),
    };
    let letters: Vec<Letter> = client.get("/dlt", &Wanted::from(letters)).await?;
    match letters.as_slice() {
        letters if json => print_json(&letters)?,
        [] => answer_line!("there are no dead letters"),
        letters => terminal::answer(show::letters(letters)),
    }
    Ok(Exit::Done)
}

pub(super) async fn admin(client: &Client, command: AdminCommand) -> anyhow::Result<Exit> {
    match command {
        AdminCommand::Grant { user, role, revoke } => {
            let role = match role {
                GrantableRole::Admin => "admin",
                GrantableRole::Moderator => "moderator",
            };
            client.tell("/grant", &Grant { username: user.clone(), role: role.to_owned(), revoke }).await?;
            if revoke {
                answer_line!("{user} has the role {role} no longer; their sessions have ended");
            } else {
                answer_line!("{user} has the role {role}; it is in their next access token (log in or refresh)");
            }
        }
        AdminCommand::Password { user } => {
            let password = password::ask(&user).await?;
            client.tell("/password", &NewPassword { username: user.clone(), password }).await?;
            answer_line!("{user} has a new password; their sessions have ended");
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn reindex(client: &Client) -> anyhow::Result<Exit> {
    let mut answers = client.ask("/reindex", &()).await?;
    while let Some(progress) = answers.next::<Progress>().await? {
        match progress {
            Progress::Exported { service, documents } => {
                note_line!("{service}: {} documents", import::grouped(documents))
            }
            Progress::Checked { documents, removed } => {
                note_line!("checked {} documents, {removed} of things that are gone", import::grouped(documents));
            }
            Progress::Indexing => note_line!("building the indexes; the old ones serve meanwhile"),
            Progress::Done { documents, removed } => {
                answer_line!(
                    "{} documents can be found; {removed} of things that were gone are not any more",
                    import::grouped(documents)
                );
                return Ok(Exit::Done);
            }
            Progress::Failed { reason } => {
                anyhow::bail!("the rebuild ended early: {reason}; run it again")
            }
        }
    }
    anyhow::bail!("the node went away: start it and run `rookery reindex` again")
}

pub(super) async fn restored(client: &Client, service: String) -> anyhow::Result<Exit> {
    client.tell("/restored", &Restored { service: service.clone() }).await?;
    answer_line!("what follows from {service} is built anew from now on; `rookery status` and the log say how far it is");
    Ok(Exit::Done)
}

async fn replay(client: &Client, wanted: Wanted) -> anyhow::Result<Exit> {
    let mut answers = client.ask("/dlt", &wanted).await?;
    let (mut applied, mut stayed) = (0_u64, 0_u64);
    while let Some(Replayed { letter, error }) = answers.next().await? {
        match error {
            None => applied += 1,
            Some(reason) => {
                stayed += 1;
                terminal::note(show::letters(&[Letter { reason, ..letter }]));
            }
        }
    }
    answer_line!("applied {applied}, still dead {stayed}");
    Ok(if stayed == 0 { Exit::Done } else { Exit::Failed })
}
