//! `rookery scale`: one node more or less at a time, until there are so many.

use super::{Exit, client::Client};
use crate::{fleet::Kept, terminal::answer_line};

pub(super) async fn run(client: &Client, wanted: u16) -> anyhow::Result<Exit> {
    let mut nodes: Vec<Kept> = client.get("/nodes", &()).await?;
    while nodes.len() < usize::from(wanted) {
        let added: Kept = client.post("/nodes").await?;
        match &added.gateway {
            Some(gateway) => answer_line!("{} is up: http://{gateway}", added.name),
            None => answer_line!("{} is up", added.name),
        }
        nodes.push(added);
    }
    // The last ones go, so that the ports of the others stay.
    while nodes.len() > usize::from(wanted) {
        let last = nodes.pop().expect("there are more than are wanted");
        client.delete(&format!("/nodes/{}", last.name)).await?;
        answer_line!("{} has left", last.name);
    }
    answer_line!("{} nodes", nodes.len());
    Ok(Exit::Done)
}
