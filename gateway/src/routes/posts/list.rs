use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use rookery_actors::ids::UserId;
use rookery_actors::posts::rules::Tag;
use rookery_actors::posts::{Filter, Key, Seen, Sort};
use rookery_actors::users::names::Username;
use serde::Deserialize;

use super::PostList;
use crate::auth::Claims;
use crate::call::Service;
use crate::context::Context;
use crate::extract::{MaybeUser, Query};
use crate::problem::Problem;
use crate::routes::page::{bad_query, page_size, within};
use crate::routes::{Api, SharedApi, render};

/// The longest way along an author's posts in search of a tag, in steps of [`STEP`], before a page ends early.
const STEPS_MAX: usize = 5;
/// Posts that are looked at together.
const STEP: usize = 100;

/// Which posts.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// `new` (default): newest first. `top`: most likes, then newest. `hot`: `log10(max(likes, 1)) + created_at_seconds / 45000`.
    #[param(value_type = Option<SortWord>, inline)]
    sort: Option<Sort>,
    /// Only with this tag.
    tag: Option<String>,
    /// Only by the user of this name.
    author: Option<String>,
    /// Items on the page, 20 unless asked otherwise.
    #[garde(custom(within(1, 100)))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The words of [`Sort`], for the documentation.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the documentation reads the names")]
enum SortWord {
    New,
    Top,
    Hot,
}

/// List posts
#[utoipa::path(
    get,
    path = "/api/v1/posts",
    tag = "Posts",
    operation_id = "list_posts",
    params(ListQuery),
    responses((status = 200, description = "A page of posts.", body = PostList)),
    security((), ("bearer" = []))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    MaybeUser(user): MaybeUser,
    Query(asked): Query<ListQuery>,
) -> Result<Response, Problem> {
    let tag = asked.tag.as_deref().map(|tag| Tag::parse(tag).map_err(|invalid| bad_query("tag", invalid)));
    let tag = tag.transpose()?;
    let list = match asked.author.as_deref() {
        None => Some(List { author: None, tag }),
        Some(name) => {
            let name = Username::parse(name).map_err(|invalid| bad_query("author", invalid))?;
            let author = api.user_id(&context, &name).await?;
            author.map(|author| List { author: Some(author), tag })
        }
    };
    let Some(list) = list else {
        // Nobody has that name, and nobody has written nothing.
        return Ok(render::list(std::iter::empty(), None));
    };
    let sort = asked.sort.unwrap_or_default();
    api.posts_of(&context, user.as_deref(), &list, sort, page_size(asked.limit), asked.cursor.as_deref()).await
}

/// A page of an author's posts, the newest first.
pub(crate) async fn by_author(
    api: &Api,
    context: &Context,
    user: Option<&Claims>,
    author: UserId,
    limit: usize,
    cursor: Option<&str>,
) -> Result<Response, Problem> {
    let list = List { author: Some(author), tag: None };
    api.posts_of(context, user, &list, Sort::New, limit, cursor).await
}

/// What a list is narrowed to.
#[derive(Debug)]
struct List {
    author: Option<UserId>,
    tag: Option<Tag>,
}

impl List {
    /// Names the list and its parameters: a cursor of one opens in no other.
    fn scope(&self, sort: Sort) -> String {
        let author = self.author.map(|author| author.to_string()).unwrap_or_default();
        let tag = self.tag.as_ref().map_or("", Tag::as_str);
        format!("posts {sort:?} {author} {tag}")
    }
}

impl Api {
    async fn posts_of(
        &self,
        context: &Context,
        user: Option<&Claims>,
        list: &List,
        sort: Sort,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<Response, Problem> {
        let scope = list.scope(sort);
        // What depends on nobody's likes is kept whole, as long as the posts and their authors are what they were.
        let stamp = if user.is_none() { self.posts.stamp() } else { None };
        let key = format!("{scope} {limit} {}", cursor.unwrap_or_default());
        if let Some(kept) = stamp.and_then(|stamp| self.post_pages.get(&key).filter(|kept| kept.stamp == stamp)) {
            return Ok(render::answer(StatusCode::OK, kept.json.clone(), None));
        }
        let after: Option<Key> = cursor.map(|cursor| self.cursors.open(&scope, cursor)).transpose()?;
        let viewer = user.map(|user| UserId(user.sub));
        let (seen, next) = match (list.author, &list.tag) {
            (None, None) => self.posts_page(context, viewer, sort, &Filter::All, after, limit).await?,
            (None, Some(tag)) => {
                let filter = Filter::Tag(tag.as_str().to_owned());
                self.posts_page(context, viewer, sort, &filter, after, limit).await?
            }
            (Some(author), None) => self.posts_page(context, viewer, sort, &Filter::Author(author), after, limit).await?,
            (Some(author), Some(tag)) => self.tagged_posts_of(context, viewer, sort, (author, tag), after, limit).await?,
        };
        let next = next.map(|key| self.cursors.seal(&scope, &key));
        let json = self.post_list(context, &seen.posts, viewer.map(|_| seen.liked), next).await?;
        if let Some(stamp) = stamp.filter(|stamp| self.posts.stamp() == Some(*stamp)) {
            self.post_pages.put(key, stamp, json.clone());
        }
        Ok(render::answer(StatusCode::OK, json, None))
    }

    async fn posts_page(
        &self,
        context: &Context,
        viewer: Option<UserId>,
        sort: Sort,
        filter: &Filter,
        after: Option<Key>,
        limit: usize,
    ) -> Result<(Seen, Option<Key>), Problem> {
        self.read(Service::Posts, context, |deadline| self.posts.list_for(viewer, sort, filter, after, limit, deadline)).await
    }

    /// An author's posts are few: they are looked through for the tag. After a long way without enough of them the page
    /// ends early, with a cursor.
    async fn tagged_posts_of(
        &self,
        context: &Context,
        viewer: Option<UserId>,
        sort: Sort,
        (author, tag): (UserId, &Tag),
        mut after: Option<Key>,
        limit: usize,
    ) -> Result<(Seen, Option<Key>), Problem> {
        let mut tagged = Seen::default();
        for _ in 0..STEPS_MAX {
            let (step, next) = self.posts_page(context, viewer, sort, &Filter::Author(author), after, STEP).await?;
            tagged.posts.extend(step.posts.into_iter().filter(|post| post.tags.contains(tag.as_str())));
            tagged.liked.extend(step.liked);
            if tagged.posts.len() > limit {
                tagged.posts.truncate(limit);
                let next = tagged.posts.last().map(|post| sort.key(post));
                return Ok((tagged, next));
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        Ok((tagged, after))
    }
}
