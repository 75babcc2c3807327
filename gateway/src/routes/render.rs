//! What was rendered before and still holds: the JSON of posts and comments, bounded by bytes.
//!
//! A list of twenty posts is put together from what the same posts were rendered to in other lists. An entry carries a
//! stamp of all that it depends on and is compared with the committed state at every use; so it is never stale.

use std::hash::Hash;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use moka::sync::Cache;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::extract::IfNoneMatch;

/// All that the JSON of a thing depends on, besides what never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Of what was written.
    pub(crate) version: i64,
    /// How many like it.
    pub(crate) likes: i64,
    /// How many comments or replies it has.
    pub(crate) answers: i64,
    /// Version of the author's profile; none: the author is not shown.
    pub(crate) author: Option<i64>,
}

impl Stamp {
    /// The entity tag of an answer; `liked` only where the answer says it.
    pub(crate) fn etag(&self, liked: Option<bool>) -> HeaderValue {
        etag(self.version, &[self.likes, self.answers, self.author.unwrap_or(-1), liked.map_or(-1, i64::from)])
    }
}

/// An entity tag: the version, a dot, and a hash of what else the answer depends on.
pub(crate) fn etag(version: i64, rest: &[i64]) -> HeaderValue {
    let bytes: Vec<u8> = rest.iter().flat_map(|number| number.to_be_bytes()).collect();
    HeaderValue::try_from(format!("\"{version}.{:x}\"", xxh3_64(&bytes))).expect("digits are a header value")
}

/// A thing as JSON, its closing brace left out: what is the caller's own is still to be added.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) stamp: Stamp,
    open: Bytes,
}

impl Item {
    pub(crate) fn new(stamp: Stamp, thing: &impl Serialize) -> Self {
        // A post or a comment has some hundred bytes: it is written without growing, and kept at its length.
        let mut json = Vec::with_capacity(1 << 10);
        serde_json::to_writer(&mut json, thing).expect("answers are plain data");
        let brace = json.pop();
        debug_assert_eq!(brace, Some(b'}'));
        Self { stamp, open: Bytes::copy_from_slice(&json) }
    }

    /// Its length without what is the caller's own.
    pub(crate) fn len(&self) -> usize {
        self.open.len() + 1
    }

    /// Adds the whole object to `json`.
    pub(crate) fn write(&self, liked: Option<bool>, json: &mut Vec<u8>) {
        json.extend_from_slice(&self.open);
        json.extend_from_slice(tail(liked));
    }

    /// The whole object.
    pub(crate) fn json(&self, liked: Option<bool>) -> Bytes {
        let mut json = Vec::with_capacity(self.len() + 16);
        self.write(liked, &mut json);
        json.into()
    }
}

fn tail(liked: Option<bool>) -> &'static [u8] {
    match liked {
        None => b"}",
        Some(true) => br#","liked":true}"#,
        Some(false) => br#","liked":false}"#,
    }
}

/// Items that were rendered before.
pub(crate) struct Items<K> {
    cache: Cache<K, Arc<Item>>,
}

impl<K: Hash + Eq + Send + Sync + 'static> Items<K> {
    /// A cache of at most about `bytes_max`.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let weigh = |_: &K, item: &Arc<Item>| u32::try_from(item.open.len() + 200).unwrap_or(u32::MAX);
        Self { cache: Cache::builder().max_capacity(bytes_max).weigher(weigh).build() }
    }

    /// The item of this stamp: from memory, or rendered now.
    pub(crate) fn get<T: Serialize>(&self, key: K, stamp: Stamp, view: impl FnOnce() -> T) -> Arc<Item> {
        if let Some(item) = self.cache.get(&key)
            && item.stamp == stamp
        {
            return item;
        }
        let item = Arc::new(Item::new(stamp, &view()));
        self.cache.insert(key, item.clone());
        item
    }
}

/// Whole pages that were rendered before, for whoever asks without a token; `S` stamps what a page was made of.
pub(crate) struct Pages<S> {
    cache: Cache<String, Arc<RenderedPage<S>>>,
}

/// A page, and what it was made of.
pub(crate) struct RenderedPage<S> {
    pub(crate) stamp: S,
    pub(crate) json: Bytes,
}

impl<S: Send + Sync + 'static> Pages<S> {
    /// A cache of at most about `bytes_max`.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let weigh =
            |key: &String, page: &Arc<RenderedPage<S>>| u32::try_from(key.len() + page.json.len() + 200).unwrap_or(u32::MAX);
        Self { cache: Cache::builder().max_capacity(bytes_max).weigher(weigh).build() }
    }

    /// The page as it was rendered last; whether it is still that, its stamp tells.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<RenderedPage<S>>> {
        self.cache.get(key)
    }

    /// Keeps a page.
    pub(crate) fn put(&self, key: String, stamp: S, json: Bytes) {
        self.cache.insert(key, Arc::new(RenderedPage { stamp, json }));
    }
}

/// A single resource that was rendered before, with what was rendered into it and its entity tag.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) stamp: Stamp,
    /// What does not change with the counters, as a JSON member.
    pub(crate) html: Bytes,
    pub(crate) json: Bytes,
    pub(crate) etag: HeaderValue,
}

impl Whole {
    /// Puts a resource together; `html` begins with a comma.
    pub(crate) fn new(item: &Item, html: Bytes) -> Self {
        let mut json = Vec::with_capacity(item.len() + html.len());
        json.extend_from_slice(&item.open);
        json.extend_from_slice(&html);
        json.push(b'}');
        Self { stamp: item.stamp, html, json: json.into(), etag: item.stamp.etag(None) }
    }

    /// The same with what is the caller's own.
    pub(crate) fn json(&self, liked: Option<bool>) -> Bytes {
        if liked.is_none() {
            return self.json.clone();
        }
        let open = &self.json[..self.json.len() - 1];
        [open, tail(liked)].concat().into()
    }

    pub(crate) fn weight(&self) -> u32 {
        u32::try_from(self.html.len() + self.json.len() + 300).unwrap_or(u32::MAX)
    }
}

/// A list as an answer.
pub(crate) fn list<'a>(items: impl ExactSizeIterator<Item = (&'a Item, Option<bool>)> + Clone, next: Option<&str>) -> Response {
    answer(StatusCode::OK, list_json(items, next), None)
}

/// A list: `{"items": […], "next_cursor": …}`.
pub(crate) fn list_json<'a>(items: impl ExactSizeIterator<Item = (&'a Item, Option<bool>)> + Clone, next: Option<&str>) -> Bytes {
    let length: usize = items.clone().map(|(item, _)| item.len() + 16).sum();
    let mut json = Vec::with_capacity(length + 64 + next.map_or(0, str::len));
    json.extend_from_slice(br#"{"items":["#);
    for (index, (item, liked)) in items.enumerate() {
        if index > 0 {
            json.push(b',');
        }
        item.write(liked, &mut json);
    }
    json.extend_from_slice(br#"],"next_cursor":"#);
    serde_json::to_writer(&mut json, &next).expect("a cursor is text");
    json.push(b'}');
    json.into()
}

/// A value as JSON.
pub(crate) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("answers are plain data").into()
}

/// An answer of JSON that is there already.
pub(crate) fn answer(status: StatusCode, json: Bytes, etag: Option<HeaderValue>) -> Response {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(etag) = etag {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// The answer to a single read: nothing but its tag if the client has it already.
pub(crate) fn single(have: &IfNoneMatch, etag: HeaderValue, json: impl FnOnce() -> Bytes) -> Response {
    let text = etag.to_str().expect("our entity tags are ASCII");
    if have.matches(text) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response();
    }
    answer(StatusCode::OK, json(), Some(etag))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { version: 3, likes: 1, answers: 0, author: Some(1) };

    #[derive(Serialize)]
    struct Thing {
        title: &'static str,
    }

    fn text(json: Bytes) -> String {
        String::from_utf8(json.to_vec()).unwrap()
    }

    #[test]
    fn a_tag_begins_with_the_version_and_changes_with_everything_else() {
        let tag = STAMP.etag(None);
        assert!(tag.to_str().unwrap().starts_with("\"3."));
        for other in [Stamp { likes: 2, ..STAMP }, Stamp { answers: 1, ..STAMP }, Stamp { author: None, ..STAMP }] {
            assert_ne!(other.etag(None), tag);
        }
        assert_ne!(STAMP.etag(Some(false)), tag);
    }

    #[test]
    fn what_is_the_callers_own_comes_last() {
        let item = Item::new(STAMP, &Thing { title: "a" });
        assert_eq!(text(item.json(None)), r#"{"title":"a"}"#);
        assert_eq!(text(item.json(Some(true))), r#"{"title":"a","liked":true}"#);
        let whole = Whole::new(&item, Bytes::from_static(br#","body_html":"b""#));
        assert_eq!(text(whole.json(Some(false))), r#"{"title":"a","body_html":"b","liked":false}"#);
    }

    #[test]
    fn an_item_is_rendered_once_per_stamp() {
        let items = Items::new(1 << 20);
        items.get(1, STAMP, || Thing { title: "a" });
        let again = items.get(1, STAMP, || -> Thing { unreachable!("it was rendered before") });
        assert_eq!(text(again.json(None)), r#"{"title":"a"}"#);
        let newer = items.get(1, Stamp { version: 4, ..STAMP }, || Thing { title: "b" });
        assert_eq!(text(newer.json(None)), r#"{"title":"b"}"#);
    }

    #[tokio::test]
    async fn a_list_is_its_items_and_where_it_goes_on() {
        let item = Item::new(STAMP, &Thing { title: "a" });
        let items = [(&item, None), (&item, Some(true))];
        let response = list(items.into_iter(), Some("c"));
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        assert_eq!(text(body), r#"{"items":[{"title":"a"},{"title":"a","liked":true}],"next_cursor":"c"}"#);
    }
}
