//! Who was a member under the name of a node that starts: dead for certain, or perhaps alive elsewhere.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rookery_actors::{
    ids::Incarnation,
    runtime::{Directory, DirectoryError, MemberRow, MemberState},
};
use tokio::time::{Instant, sleep};

use super::{Membership, sightings::Sightings};
use crate::files;

/// A node that leaves in order renews until it has gone, which takes less than this.
const LEAVES_WITHIN: Duration = Duration::from_secs(20);

/// What is known of those who are members under a node's name.
#[derive(Clone, Debug, Default)]
pub enum Former {
    /// Nobody asks: the names of a test's members are its own.
    #[default]
    Ignored,
    /// All of them are dead: their database is reached through us alone.
    Dead,
    /// The last life on this data folder is dead, for its lock is ours. Whoever else has the name may be alive: on another
    /// folder, that of a container that was made anew, say.
    OnFolder(LastLife),
}

impl Former {
    /// Whether a member of the name is dead for certain.
    pub(super) fn is_dead(&self, member: &MemberRow) -> bool {
        match self {
            Former::Ignored => false,
            Former::Dead => true,
            Former::OnFolder(last) => last.read() == Some(member.incarnation),
        }
    }

    /// Remembers who we are, before anybody else can know it.
    pub(super) fn begin(&self, service: &'static str, incarnation: Incarnation) {
        if let Former::OnFolder(last) = self
            && let Err(error) = last.write(incarnation)
        {
            let file = last.0.display();
            tracing::warn!(service.name = service, %error, "cannot write {file}: after a crash the next start waits for the lease");
        }
    }
}

/// The file of a data folder that says who its node was last in a service.
#[derive(Clone, Debug)]
pub struct LastLife(PathBuf);

impl LastLife {
    /// That of a service.
    pub fn of(data: &Path, service: &'static str) -> Self {
        Self(data.join("members").join(service))
    }

    fn read(&self) -> Option<Incarnation> {
        fs::read_to_string(&self.0).ok()?.trim().parse().ok().map(Incarnation)
    }

    fn write(&self, incarnation: Incarnation) -> io::Result<()> {
        fs::create_dir_all(self.0.parent().unwrap_or(Path::new("")))?;
        files::replace(&self.0, format!("{incarnation}\n").as_bytes(), |_| Ok(()))
    }
}

/// Returns when no other member has our name: declares dead at once who is for certain, and others once their leases have
/// ended.
///
/// # Errors
/// [`DirectoryError::NameTaken`] if one of them is alive.
pub(super) async fn make_way(
    directory: &Directory,
    membership: &Membership,
    service: &'static str,
) -> Result<(), DirectoryError> {
    if matches!(membership.former, Former::Ignored) {
        return Ok(());
    }
    let began = Instant::now();
    let mut sightings = Sightings::new(membership.lease);
    let mut first_seen: HashMap<Incarnation, i64> = HashMap::new();
    loop {
        let mut members = directory.members().await?;
        sightings.look(&members, began.elapsed());
        members.retain(|member| member.node == membership.node);
        let mut left = 0;
        for member in members {
            let MemberRow { incarnation, renewed, .. } = member;
            let is_dead = membership.former.is_dead(&member);
            if (is_dead && directory.declare_dead(incarnation, None).await?)
                || (sightings.is_silent(incarnation) && directory.declare_dead(incarnation, Some(renewed)).await?)
            {
                continue;
            }
            let is_alive = *first_seen.entry(incarnation).or_insert(renewed) != renewed;
            if is_alive && (member.state == MemberState::Live || began.elapsed() > LEAVES_WITHIN) {
                return Err(DirectoryError::NameTaken { service, node: member.node, address: member.address });
            }
            left += 1;
        }
        if left == 0 {
            return Ok(());
        }
        if began.elapsed() < membership.lease.renew_every {
            tracing::info!(
                service.name = service,
                node.id = membership.node,
                "another node called {} was a member of {service}, waiting until its lease has ended",
                membership.node
            );
        }
        sleep(membership.lease.renew_every).await;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_folder_remembers_the_last_life_of_each_service() {
        let folder = tempfile::tempdir().unwrap();
        let [posts, users] = ["posts", "users"].map(|service| LastLife::of(folder.path(), service));
        assert_eq!(posts.read(), None);
        for life in [7, 8] {
            posts.write(Incarnation(Uuid::from_u128(life))).unwrap();
        }
        assert_eq!((posts.read(), users.read()), (Some(Incarnation(Uuid::from_u128(8))), None));
        fs::write(&posts.0, "half of").unwrap();
        assert_eq!(posts.read(), None);
    }
}
