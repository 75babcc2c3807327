//! `rookery scale`: one node more or less at a time, until there are so many.

use std::time::Duration;

use super::{Exit, client::Client};
use crate::{
    fleet::{Kept, STARTS_WITHIN, State},
    terminal::answer_line,
};

/// Longer than the parent gives a node to start, or to stop.
const ADD_PATIENCE: Duration = STARTS_WITHIN.saturating_add(Duration::from_secs(60));
const REMOVE_PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn run(client: &Client, wanted: u16) -> anyhow::Result<Exit> {
    let nodes: Vec<Kept> = client.get("/nodes", &()).await?;
    let (lost, mut nodes): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.state == State::Lost);
    anyhow::ensure!(!nodes.is_empty(), "no node lives any more; the log of `rookery up` says why");
    // Such a node is not started again, and does nothing: its number is for one that does.
    for Kept { name, .. } in lost {
        client.delete_within(&format!("/nodes/{name}"), REMOVE_PATIENCE).await?;
        answer_line!("{name} had ended too often, and is counted no more");
    }
    while nodes.len() < usize::from(wanted) {
        let added: Kept = client.post_within("/nodes", ADD_PATIENCE).await?;
        match &added.gateway {
            Some(gateway) => answer_line!("{} is up: http://{gateway}", added.name),
            None => answer_line!("{} is up", added.name),
        }
        nodes.push(added);
    }
    // The last ones go, so that the ports of the others stay.
    while nodes.len() > usize::from(wanted) {
        let last = nodes.pop().expect("there are more than are wanted");
        client.delete_within(&format!("/nodes/{}", last.name), REMOVE_PATIENCE).await?;
        answer_line!("{} has left", last.name);
    }
    answer_line!("{} nodes", nodes.len());
    Ok(Exit::Done)
}
