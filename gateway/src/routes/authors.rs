//! Who wrote it, as answers show it.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use rookery_actors::authors::Author;
use rookery_actors::ids::UserId;
use serde::Serialize;
use uuid::Uuid;

use super::Api;
use crate::auth::Claims;
use crate::call::Service;
use crate::context::Context;
use crate::problem::Problem;

/// What is shown of an author.
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
#[schema(as = Author)]
pub(crate) struct AuthorView<'a> {
    id: Uuid,
    #[schema(example = "ada")]
    username: &'a str,
    #[schema(example = "Ada Lovelace")]
    display_name: &'a str,
    avatar_url: Option<&'a str>,
}

impl<'a> From<&'a Author> for AuthorView<'a> {
    fn from(author: &'a Author) -> Self {
        Self {
            id: author.id.0,
            username: &author.username,
            display_name: &author.display_name,
            avatar_url: author.avatar_url.as_deref(),
        }
    }
}

/// The same, for answers that outlive what they were made of.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = AuthorName)]
pub(crate) struct AuthorName {
    id: Uuid,
    username: String,
    display_name: String,
    avatar_url: Option<String>,
}

impl From<&Author> for AuthorName {
    fn from(author: &Author) -> Self {
        Self {
            id: author.id.0,
            username: author.username.clone(),
            display_name: author.display_name.clone(),
            avatar_url: author.avatar_url.clone(),
        }
    }
}

/// The authors of one answer; who deleted their account is not among them.
#[derive(Debug, Default)]
pub(crate) struct Known(HashMap<UserId, Arc<Author>>);

impl Known {
    pub(crate) fn get(&self, id: UserId) -> Option<&Arc<Author>> {
        self.0.get(&id)
    }
}

impl Api {
    /// The authors of what a service has; whoever has only just registered is not known there yet and is asked of users.
    pub(crate) async fn authors(
        &self,
        service: Service,
        context: &Context,
        ids: impl IntoIterator<Item = UserId>,
    ) -> Result<Known, Problem> {
        let mut ids: Vec<UserId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        let mut known = match service {
            Service::Comments => self.read(service, context, |_| self.comments.authors(ids.iter().copied())).await?,
            _ => self.read(Service::Posts, context, |_| self.posts.authors(ids.iter().copied())).await?,
        };
        let missing: Vec<UserId> = ids.into_iter().filter(|id| !known.contains_key(id)).collect();
        let asked = missing.iter().map(|id| self.read(Service::Users, context, |deadline| self.users.author(*id, deadline)));
        for author in join_all(asked).await {
            if let Some(author) = author? {
                known.insert(author.id, Arc::new(author));
            }
        }
        known.retain(|_, author| !author.deleted);
        Ok(Known(known))
    }

    /// One author, from memory if they are known there; who deleted their account is none.
    pub(crate) async fn author(&self, service: Service, context: &Context, id: UserId) -> Result<Option<Arc<Author>>, Problem> {
        let names = match service {
            Service::Comments => &self.comments.runtime().service().authors,
            _ => &self.posts.runtime().service().authors,
        };
        match names.known(id) {
            Some(author) => Ok(Some(author).filter(|author| !author.deleted)),
            None => Ok(self.authors(service, context, [id]).await?.get(id).cloned()),
        }
    }

    /// The author of what was just written. It is committed, so nothing may fail the answer any more: whoever cannot be looked
    /// up is shown by the name in their token.
    pub(crate) async fn writer(&self, service: Service, context: &Context, user: &Claims) -> Option<Arc<Author>> {
        let id = UserId(user.sub);
        match self.author(service, &context.committed(), id).await {
            Ok(author) => author,
            Err(_) => Some(Arc::new(Author {
                id,
                version: 0,
                username: user.name.clone(),
                display_name: user.name.clone(),
                avatar_url: None,
                deleted: false,
            })),
        }
    }
}
