//! Who owns what, by the databases themselves.

use rookery_actors::ids::ShardId;

use super::Cluster;
use crate::{fleet, placement::Placement, postgres};

/// The owners of the shards of each service, in the order of the shards; none: nobody who lives.
type Owners = Vec<Vec<Option<String>>>;

impl Cluster {
    /// Whether every shard is owned by one of these nodes; the first is 1.
    pub async fn is_owned_by(&self, nodes: &[usize]) -> bool {
        let names: Vec<String> = nodes.iter().map(fleet::name).collect();
        let owners = self.owners().await.unwrap_or_default();
        !owners.is_empty() && owners.iter().flatten().all(|owner| owner.as_ref().is_some_and(|owner| names.contains(owner)))
    }

    /// Whether every shard is where so many nodes should have it.
    pub async fn is_balanced(&self, nodes: u16) -> bool {
        let owners = self.owners().await.unwrap_or_default();
        let placed = |owners: &Vec<Option<String>>| {
            let shards = u16::try_from(owners.len()).expect("shards are numbered by u16");
            let placement = Placement::new((1..=nodes).map(fleet::name), shards);
            (0..).map(ShardId).zip(owners).all(|(shard, owner)| owner.as_deref() == placement.owner(shard))
        };
        !owners.is_empty() && owners.iter().all(placed)
    }

    async fn owners(&self) -> anyhow::Result<Owners> {
        let select = "SELECT m.node FROM shard s LEFT JOIN member m ON m.incarnation = s.owner AND m.state <> 'dead'
                      ORDER BY s.id";
        let mut owners = Vec::new();
        for (_, config) in self.databases()? {
            let client = postgres::connect(&config).await?;
            owners.push(client.query(select, &[]).await?.iter().map(|row| row.get(0)).collect());
        }
        Ok(owners)
    }
}
