//! The API's routes: one file per endpoint, with its types, its handler and its documentation.

mod ask;
mod auth;
mod authors;
mod comments;
mod contract;
mod fields;
mod keyed;
mod page;
mod posts;
mod rejection;
mod render;
mod search;
mod users;

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use moka::sync::Cache;
use rookery_actors::comments::{Comments, Stamp as ThreadStamp};
use rookery_actors::ids::{CommentId, PostId, UserId};
use rookery_actors::posts::{Posts, Stamp as ListStamp};
use rookery_actors::search::{SearchFace, SearchToken};
use rookery_actors::secret::{KeyRing, Purpose, Tagger};
use rookery_actors::users::names::Username;
use rookery_actors::users::{Role, Users};
use utoipa_axum::router::OpenApiRouter;

use self::render::{Items, Pages, Whole};
use crate::auth::Claims;
use crate::call::{Service, Services};
use crate::context::Context;
use crate::cursor::Cursors;
use crate::issuer::Issuer;
use crate::problem::{self, Problem};

/// What the routes stand on: the services' faces, and what the gateway itself keeps.
pub struct Api {
    pub(crate) users: Users,
    pub(crate) posts: Posts,
    pub(crate) comments: Comments,
    pub(crate) search: SearchFace,
    pub(crate) services: Arc<Services>,
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) cursors: Cursors,
    pub(crate) search_tokens: Cursors,
    pub(crate) request_hash: Tagger,
    pub(crate) post_items: Items<PostId>,
    pub(crate) post_wholes: Cache<PostId, Arc<Whole>>,
    pub(crate) comment_items: Items<CommentId>,
    pub(crate) comment_pages: Pages<ThreadStamp>,
    pub(crate) post_pages: Pages<ListStamp>,
}

/// What a node gives the routes.
pub struct Faces {
    /// Accounts, sessions, follows.
    pub users: Users,
    /// Posts, feeds, tags.
    pub posts: Posts,
    /// Comment threads.
    pub comments: Comments,
    /// Search.
    pub search: SearchFace,
}

/// The routes' state, as handlers see it.
pub(crate) type SharedApi = Arc<Api>;

/// Memory for rendered JSON, in bytes, per kind.
const RENDERED_BYTES_MAX: u64 = 32 << 20;

impl Api {
    /// Routes over these faces. `services` and `issuer` are shared with the node, which reports the breakers' positions and
    /// replaces the signing key.
    pub fn new(faces: Faces, services: Arc<Services>, issuer: Arc<Issuer>, secrets: &KeyRing) -> Self {
        let Faces { users, posts, comments, search } = faces;
        let weigh = |_: &PostId, whole: &Arc<Whole>| whole.weight();
        Self {
            users,
            posts,
            comments,
            search,
            services,
            issuer,
            cursors: Cursors::new(secrets.tagger(Purpose::Cursor)),
            search_tokens: Cursors::new(secrets.tagger(Purpose::SearchToken)),
            request_hash: secrets.tagger(Purpose::RequestHash),
            post_items: Items::new(RENDERED_BYTES_MAX),
            post_wholes: Cache::builder().max_capacity(RENDERED_BYTES_MAX).weigher(weigh).build(),
            comment_items: Items::new(RENDERED_BYTES_MAX),
            comment_pages: Pages::new(RENDERED_BYTES_MAX),
            post_pages: Pages::new(RENDERED_BYTES_MAX),
        }
    }
}

/// Every route of the API with its documentation.
pub fn router(api: Api) -> OpenApiRouter {
    let mut router = routes();
    contract::complete(router.get_openapi_mut());
    router.with_state(Arc::new(api))
}

fn routes() -> OpenApiRouter<SharedApi> {
    OpenApiRouter::with_openapi(contract::document())
        .merge(auth::routes())
        .merge(users::routes())
        .merge(posts::routes())
        .merge(comments::routes())
        .merge(search::routes())
}

/// Names a write in its answer, so that a search can wait until it is found.
pub(crate) const SEARCH_TOKEN: HeaderName = HeaderName::from_static("x-search-token");
/// Scope of the seal of search tokens.
const SEARCH_TOKEN_SCOPE: &str = "search token";

impl Api {
    /// A write's name, for [`SEARCH_TOKEN`].
    pub(crate) fn search_token(&self, write: &SearchToken) -> HeaderValue {
        let sealed = self.search_tokens.seal(SEARCH_TOKEN_SCOPE, write);
        HeaderValue::try_from(sealed).expect("base64url is a header value")
    }

    /// The write that a token names.
    pub(crate) fn open_search_token(&self, text: &str) -> Result<SearchToken, Problem> {
        self.search_tokens
            .open(SEARCH_TOKEN_SCOPE, text)
            .map_err(|_| Problem::new(&problem::BAD_REQUEST, "x-search-after is not a token that a write gave"))
    }

    /// The user who has a name.
    pub(crate) async fn user_id(&self, context: &Context, name: &Username) -> Result<Option<UserId>, Problem> {
        let found = self.read(Service::Users, context, |deadline| self.users.by_username(name, deadline)).await?;
        Ok(found.map(|profile| profile.id))
    }
}

/// The time of a write, to the precision that Postgres keeps.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).expect("a timestamp in range stays in range")
}

/// Whether a user may delete what others wrote. An administrator can do what a moderator can.
pub(crate) fn is_moderator(user: &Claims) -> bool {
    [Role::Moderator, Role::Admin].iter().any(|role| user.has_role(role.as_str()))
}
