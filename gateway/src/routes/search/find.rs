use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::HeaderMap;
use jiff::Timestamp;
use rookery_actors::caller::on_behalf_of;
use rookery_actors::episodes;
use rookery_actors::posts::rules::Tag;
use rookery_actors::search::index::{Cursor, Kind, Plan, Query as Words, Search, SearchError, Sort, Suggestion};
use rookery_actors::search::{Found, SearchRequest, SearchToken};
use rookery_actors::users::names::Username;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::items::FoundView;
use crate::call::Service;
use crate::context::{Context, Identity};
use crate::cursor::Cursors;
use crate::extract::{Json, Query};
use crate::problem::{self, Problem};
use crate::routes::page::{bad_query, page_size, within};
use crate::routes::rejection::NO_ANSWER;
use crate::routes::{Api, SharedApi};

/// How long a search may take before what has not answered is left out.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a search waits for a write to become searchable.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// What to look for.
#[derive(Debug, Deserialize, garde::Validate, utoipa::IntoParams)]
#[garde(allow_unvalidated)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SearchQuery {
    /// Words, `"phrases"`, `-not`, `prefix*`, as in `"analytical engine" -steam`; at most 512 bytes. Without any, everything
    /// matches, the newest first.
    #[serde(default)]
    q: String,
    /// `post`, `user`, `comment` or their plurals, comma-separated; all unless asked otherwise.
    #[serde(rename = "type")]
    #[param(value_type = Option<Vec<KindWord>>, inline, style = Form, explode = false)]
    kinds: Option<String>,
    /// Only by the user of this name.
    author: Option<String>,
    /// Only posts with this tag.
    tag: Option<String>,
    /// Only what was created at this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Only what was created before this time.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// `relevance` (default): the best first. `new`: the newest first.
    #[param(value_type = Option<SortWord>, inline)]
    sort: Option<Sort>,
    /// Items on the page, 20 unless asked otherwise.
    #[garde(custom(within(1, 100)))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// The words of `type`, for the documentation.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the documentation reads the names")]
enum KindWord {
    Post,
    User,
    Comment,
    Posts,
    Users,
    Comments,
}

/// The words of [`Sort`], for the documentation.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the documentation reads the names")]
enum SortWord {
    Relevance,
    New,
}

/// A page of what was found.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SearchResult {
    /// In order; what was deleted since it was indexed is left out.
    items: Vec<FoundView>,
    /// How many match on all pages together.
    total: u64,
    /// Whether there are more than `total`, which would have cost too much to count.
    total_is_lower_bound: bool,
    /// What was left out of the query, as it would have cost too much.
    left_out: Vec<String>,
    /// What the query was taken to mean where nothing has its words, or may have meant where hardly anything has.
    #[schema(example = "analytical engine")]
    did_you_mean: Option<String>,
    took_ms: u64,
    /// Whether a part of the index could not answer in time.
    partial: bool,
    next_cursor: Option<String>,
}

/// Search posts, users and comments
///
/// Tolerant of typos; any of the words may match, the best first.
#[utoipa::path(
    get,
    path = "/api/v1/search",
    tag = "Search",
    operation_id = "search",
    params(
        SearchQuery,
        ("x-search-after" = Option<String>, Header,
            description = "`x-search-token` of a write: the search waits up to 2 s until it is searchable."),
    ),
    responses((status = 200, description = "A page of what was found.", body = SearchResult))
)]
pub(crate) async fn handle(
    State(api): State<SharedApi>,
    context: Context,
    headers: HeaderMap,
    Query(asked): Query<SearchQuery>,
) -> Result<Json<SearchResult>, Problem> {
    let scope = asked.scope();
    let (search, plan) = asked.search(&api.cursors, &scope)?;
    let author = asked.author.as_deref().map(Username::parse).transpose();
    let author = author.map_err(|invalid| bad_query("author", invalid))?;
    let after = api.search_after(&context, &headers)?;
    let search = match author {
        None => search,
        Some(name) => match api.user_id(&context, &name).await? {
            Some(id) => Search { author: Some(id.0), ..search },
            None => return Ok(Json(SearchResult::nothing())),
        },
    };
    let found = api.find(&context, SearchRequest { search, plan, after, client: client(&context) }).await?;
    let last = found.hits.items.last().filter(|_| found.hits.more);
    let next_cursor = last.map(|hit| api.cursors.seal(&scope, &Sealed::new(hit.cursor, &found.plan)));
    let total = found.hits.total;
    Ok(Json(SearchResult {
        items: api.found(&context, found.hits.items).await?,
        total,
        total_is_lower_bound: found.is_cut || !found.plan.left_out().is_empty(),
        left_out: found.plan.left_out().to_vec(),
        did_you_mean: found.plan.meant().map(str::to_owned),
        took_ms: u64::try_from(found.took.as_millis()).unwrap_or(u64::MAX),
        partial: found.partial,
        next_cursor,
    }))
}

/// A place, and the plan of its search: what the scores on the next page are told by.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    cursor: Cursor,
    /// None: it would not have had room, or a gateway of 0.2 has sealed it. The next page then makes one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
}

/// The longest plan in a cursor, in bytes of JSON: the cursor then has less than 4 KiB.
const PLAN_BYTES_MAX: usize = 2_800;

impl Sealed {
    fn new(cursor: Cursor, plan: &Plan) -> Self {
        let bytes = serde_json::to_vec(plan).map_or(usize::MAX, |json| json.len());
        let pinned = cursor.sort == Sort::Relevance && bytes <= PLAN_BYTES_MAX && plan.is_known();
        Self { cursor, plan: pinned.then(|| plan.clone()) }
    }
}

/// Names a client, so that clients take turns: the user who is signed in, or else the address.
fn client(context: &Context) -> u64 {
    match &context.identity {
        Identity::Known(claims) => xxh3_64(claims.sub.as_bytes()),
        Identity::Anonymous | Identity::Refused(_) => xxh3_64(context.client.to_string().as_bytes()),
    }
}

impl SearchQuery {
    /// Names the search and its filters: a cursor of one opens in no other.
    fn scope(&self) -> String {
        let Self { q, kinds, author, tag, from, to, sort, .. } = self;
        format!("search {:?}", (q, kinds, author, tag, from, to, sort))
    }

    /// The search, but for its author, whom only users knows.
    fn search(&self, cursors: &Cursors, scope: &str) -> Result<(Search, Option<Plan>), Problem> {
        let wrong = |detail: String| Problem::new(&problem::INVALID_QUERY, detail);
        let query = Words::parse(&self.q).map_err(|error| wrong(format!("q: {error}")))?;
        let tag = self.tag.as_deref().map(Tag::parse).transpose();
        let sealed: Option<Sealed> = self.cursor.as_deref().map(|cursor| cursors.open(scope, cursor)).transpose()?;
        let (after, plan) = sealed.map_or((None, None), |sealed| (Some(sealed.cursor), sealed.plan));
        let search = Search {
            query,
            kinds: self.kinds.as_deref().map(kinds).transpose()?.unwrap_or_default(),
            tag: tag.map_err(|invalid| bad_query("tag", invalid))?.map(|tag| tag.as_str().to_owned()),
            from: self.from,
            to: self.to,
            sort: self.sort.unwrap_or_default(),
            limit: page_size(self.limit),
            after,
            ..Search::default()
        };
        Ok((search, plan))
    }
}

impl SearchResult {
    fn nothing() -> Self {
        Self {
            items: Vec::new(),
            total: 0,
            total_is_lower_bound: false,
            left_out: Vec::new(),
            did_you_mean: None,
            took_ms: 0,
            partial: false,
            next_cursor: None,
        }
    }
}

fn kinds(text: &str) -> Result<Vec<Kind>, Problem> {
    let kind = |name: &str| match name.trim() {
        // As items say it, or as the routes are called.
        "post" | "posts" => Ok(Kind::Post),
        "user" | "users" => Ok(Kind::User),
        "comment" | "comments" => Ok(Kind::Comment),
        _ => Err(Problem::new(&problem::INVALID_QUERY, "type may be post, user and comment or their plurals, comma-separated")),
    };
    text.split(',').map(kind).collect()
}

impl Api {
    /// The write that the client names, and how long to wait until it can be found. Not in time is no error: the answer is
    /// what can be found by then.
    fn search_after(&self, context: &Context, headers: &HeaderMap) -> Result<Option<(SearchToken, Duration)>, Problem> {
        let Some(token) = headers.get("x-search-after") else {
            return Ok(None);
        };
        let write = self.open_search_token(token.to_str().unwrap_or_default())?;
        let left = context.deadline.saturating_duration_since(Instant::now());
        Ok(Some((write, WAIT_MAX.min(left))))
    }

    async fn find(&self, context: &Context, request: SearchRequest) -> Result<Found, Problem> {
        let wait = request.after.map_or(Duration::ZERO, |(_, wait)| wait);
        let deadline = context.deadline.min(Instant::now() + wait + SEARCH_TIME_MAX);
        let called = self.services.call(
            Service::Search,
            context.deadline,
            |_| true,
            || {
                let asked = self.search.search(request.clone(), deadline.into());
                async move {
                    match asked.await {
                        // The client's, not the index's fault.
                        Err(SearchError::Cursor) => {
                            Ok(Err(Problem::new(&problem::INVALID_CURSOR, "the cursor is of another order")))
                        }
                        // They are there and have enough to do: no reason to cut them off, nor to ask again.
                        Err(SearchError::Busy | SearchError::Late) => {
                            Ok(Err(Problem::unavailable("too many searches are waiting", 1)))
                        }
                        Err(error) => Err(error),
                        Ok(answer) => Ok(Ok(answer)),
                    }
                }
            },
        );
        on_behalf_of(context.caller(), called).await.map_err(|error| error.into_problem(|error| unavailable(&error)))?
    }

    /// Completes what is being typed.
    pub(super) async fn suggest(&self, context: &Context, typed: &str, limit: usize) -> Result<Vec<Suggestion>, Problem> {
        let deadline = context.deadline.min(Instant::now() + SEARCH_TIME_MAX);
        let ask = || self.search.suggest(typed, limit, client(context), deadline.into());
        let called = self.services.call(Service::Search, context.deadline, |_| true, ask);
        on_behalf_of(context.caller(), called).await.map_err(|error| error.into_problem(|error| unavailable(&error)))
    }
}

fn unavailable(error: &SearchError) -> Problem {
    episodes::warn(NO_ANSWER, Service::Search.name(), error);
    Problem::unavailable("the search service is not available", 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor::tests::cursors;

    fn asked(query: &str) -> Result<Search, Problem> {
        let uri = format!("/search?{query}").parse().unwrap();
        let axum::extract::Query(asked) = axum::extract::Query::<SearchQuery>::try_from_uri(&uri).unwrap();
        asked.search(&cursors(), &asked.scope()).map(|(search, _)| search)
    }

    #[test]
    fn the_filters_of_the_contract_are_understood() {
        let search = asked("q=engine&type=posts,comments&tag=rust&from=2026-01-01T00:00:00Z&sort=new&limit=5").unwrap();
        assert_eq!(search.kinds, [Kind::Post, Kind::Comment]);
        assert_eq!((search.tag.as_deref(), search.sort, search.limit), (Some("rust"), Sort::New, 5));
    }

    #[test]
    fn a_type_is_named_in_the_singular_of_items_or_in_the_plural_of_routes() {
        let all = [Kind::Post, Kind::User, Kind::Comment];
        assert_eq!(asked("type=post,user,comment").unwrap().kinds, all);
        assert_eq!(asked("type=posts,users,comments").unwrap().kinds, all);
        assert_eq!(asked("type=post,%20comments").unwrap().kinds, [Kind::Post, Kind::Comment]);
    }

    #[test]
    fn a_query_of_more_than_512_bytes_is_a_400() {
        let problem = asked(&format!("q={}", "a".repeat(513))).unwrap_err();
        assert_eq!(problem.kind, &problem::INVALID_QUERY);
    }

    #[test]
    fn an_unknown_type_is_a_400() {
        assert_eq!(asked("q=a&type=posts,tags").unwrap_err().kind, &problem::INVALID_QUERY);
    }

    #[test]
    fn a_cursor_of_another_search_is_a_400() {
        let cursors = cursors();
        let of = |q: &str| SearchQuery {
            q: q.into(),
            kinds: None,
            author: None,
            tag: None,
            from: None,
            to: None,
            sort: None,
            limit: None,
            cursor: None,
        };
        let place = Cursor { sort: Sort::New, key: 1, id: uuid::Uuid::nil() };
        let cursor = Some(cursors.seal(&of("a").scope(), &place));
        let other = SearchQuery { cursor: cursor.clone(), ..of("b") };
        assert_eq!(other.search(&cursors, &other.scope()).unwrap_err().kind, &problem::INVALID_CURSOR);
        let same = SearchQuery { cursor, ..of("a") };
        assert_eq!(same.search(&cursors, &same.scope()).unwrap().0.after, Some(place), "as a gateway of 0.2 sealed it");
    }
}
