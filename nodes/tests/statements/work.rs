//! Everything that a node can be asked for, and what it does by itself.

use std::{num::NonZeroUsize, process::Command, time::Duration};

use jiff::Timestamp;
use rookery::{node::Node, testing::eventually};
use rookery_actors::{
    comments::{self, CommentBody, Order, Place, Scope},
    ids::{CommentId, PostId, ShardId, UserId},
    posts::{
        self, Filter, Key, Post, Sort,
        rules::{Body, Tags, Title},
    },
    runtime::{Context, IdempotencyKey, LetterFilter, Retention, Runtime},
    search::index::{self, Kind},
    service::Service,
    users::{
        self, NewUser, Role,
        names::{DisplayName, Email, Username},
        password::Password,
    },
};
use tokio::time::Instant;

use crate::fill::{comment, post, user};

const ADA: i64 = 1;
const LIMIT: usize = 20;

fn soon() -> Context {
    Context::within(Duration::from_secs(60))
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) async fn everything(node: &Node, rows: i64) {
    let faces = &node.faces;
    of_users(&faces.users, rows).await;
    of_posts(&faces.posts, rows).await;
    let closed = of_comments(&faces.comments, &faces.posts, rows).await;
    of_search(&faces.search, rows).await;

    eventually(Duration::from_secs(60), "the thread of a deleted post is closed", async || {
        faces.comments.get(PostId(post(closed)), CommentId(comment(50 * closed)), deadline()).await.unwrap().is_none()
    })
    .await;
    eventually(Duration::from_secs(60), "all services have applied what was written", async || {
        for bridge in node.bridges().iter() {
            if bridge.bridge.oldest_unapplied().await.unwrap().is_some() {
                return false;
            }
        }
        true
    })
    .await;
    faces.comments.sweep_closed(deadline()).await.unwrap();
    faces.users.sweep_departed(deadline()).await.unwrap();
    of_the_log(faces.users.runtime(), &["users", "posts", "comments", "search"]).await;
    of_the_log(faces.posts.runtime(), &["users", "comments", "search"]).await;
    of_the_log(faces.comments.runtime(), &["users", "posts", "search"]).await;
    of_the_log(faces.search.runtime(), &[]).await;
    command(node, &["status"]).await;
    command(node, &["dlt", "list"]).await;
}

/// A command of the program to the running node.
async fn command(node: &Node, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rookery"));
    command.args(arguments).arg("--data-dir").arg(&node.config.data_dir);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn of_the_log<S: Service>(runtime: &Runtime<S>, consumers: &[&'static str]) {
    let retention = Retention {
        consumers: consumers.to_vec(),
        relayed: false,
        records: Duration::from_secs(3600),
        idempotency: Duration::from_secs(24 * 3600),
    };
    runtime.trim(&retention).await.unwrap();
    let heads = runtime.heads().await.unwrap();
    let places: Vec<(ShardId, i64)> = heads.iter().map(|(shard, seq)| (*shard, seq - 1)).collect();
    runtime.oldest_after(&places).await.unwrap();
    runtime.oldest_unrelayed().await.unwrap();
    runtime.consumer_places("search").await.unwrap();
    runtime.dead_letters(&LetterFilter::default(), 10).await.unwrap();
    for (shard, seq) in heads {
        // Below what memory has of it.
        runtime.log_after(shard, seq - 40, 1 << 20).await.unwrap();
    }
}

async fn of_users(users: &rookery_actors::users::Users, rows: i64) {
    let ada = UserId(user(ADA));
    let name = |n: i64| Username::parse(&format!("user_{n}")).unwrap();
    users.by_username(&name(rows / 2), deadline()).await.unwrap().expect("there is one");
    users.by_email(&Email::parse("user_7@example.org").unwrap(), deadline()).await.unwrap().expect("there is one");
    let middle = Some(UserId(user(rows / 2)));
    for after in [None, middle] {
        users.followers(ada, after, LIMIT, deadline()).await.unwrap();
        users.following(ada, after, LIMIT, deadline()).await.unwrap();
        users.export(after, LIMIT, deadline()).await.unwrap();
        users.export_follows(after.zip(after), LIMIT).await.unwrap();
    }
    users.which_exist(&[ada, UserId(user(rows / 2))]).await.unwrap();
    users.personal_data(ada, deadline()).await.unwrap();

    let password = || Password::parse("correct horse battery".to_owned()).unwrap();
    let eve = NewUser {
        username: Username::parse("eve").unwrap(),
        email: Email::parse("eve@example.org").unwrap(),
        password: password(),
        user_agent: None,
    };
    let eve = users.register(eve, soon()).await.unwrap().reply.account.profile.id;
    for login in ["eve", "eve@example.org"] {
        let logged_in = users.login(login, password(), None, soon()).await.unwrap().reply;
        users.refresh(logged_in.refresh_token.expose(), soon()).await.unwrap();
    }
    users.logout_all(eve, soon()).await.unwrap();
    let changes = users::Changes { display_name: Some(DisplayName::parse("Eve").unwrap()), ..users::Changes::default() };
    users.edit(eve, changes, soon()).await.unwrap();
    for on in [true, false, true] {
        users.follow(eve, &name(7), on, soon()).await.unwrap();
        users.follow(UserId(user(8)), &Username::parse("eve").unwrap(), on, soon()).await.unwrap();
    }
    users.set_role(&Username::parse("eve").unwrap(), Role::Moderator, true, soon()).await.unwrap();
    users.set_password(&Username::parse("eve").unwrap(), password(), soon()).await.unwrap();
    users.delete(eve, password(), soon()).await.unwrap();
    assert!(users.was_erased(&Username::parse("eve").unwrap()).await.unwrap());
}

fn draft(title: &str, tags: &[&str]) -> posts::Draft {
    posts::Draft {
        author: UserId(user(ADA)),
        title: Title::parse(title).unwrap(),
        body: Body::parse("A body.").unwrap(),
        tags: Tags::parse(tags).unwrap(),
        at: Timestamp::now(),
    }
}

async fn of_posts(posts: &posts::Posts, rows: i64) {
    let (ada, middle) = (UserId(user(ADA)), rows / 2);
    // First: until then these lists are made in another way.
    while !posts.rank_tags(deadline()).await.unwrap() {}
    posts.count_tags(deadline()).await.unwrap();
    let lists = [Filter::All, Filter::Tag("popular".into()), Filter::Tag("rare".into()), Filter::Author(ada)];
    for filter in lists {
        for (sort, rank) in [(Sort::New, 0), (Sort::Top, 4), (Sort::Top, 0), (Sort::Hot, middle)] {
            for after in [None, Some(Key { rank, id: PostId(post(middle)) })] {
                posts.list_for(Some(ada), sort, &filter, after, LIMIT, deadline()).await.unwrap();
            }
        }
    }
    for after in [None, Some(PostId(post(middle)))] {
        posts.feed(ada, after, LIMIT, deadline()).await.unwrap();
        posts.export(after, LIMIT, deadline()).await.unwrap();
    }
    let some: Vec<PostId> = (middle..middle + 20).map(|n| PostId(post(n))).collect();
    posts.liked(ada, &some, deadline()).await.unwrap();
    posts.which_exist(&some).await.unwrap();
    posts.which_are_taken(&some).await.unwrap();
    posts.authors((middle..middle + 20).map(|n| UserId(user(n)))).await.unwrap();

    let written = posts.publish(draft("A new one", &["popular", "rust"]), soon()).await.unwrap().reply.post.unwrap();
    let key = IdempotencyKey::new("ada:/posts:1", [1; 32]);
    for _ in 0..2 {
        let keyed = Context { idempotency: Some(key.clone()), ..soon() };
        posts.publish(draft("A keyed one", &["rust"]), keyed).await.unwrap();
    }
    posts.publish_as(PostId(post(rows + 1)), draft("An imported one", &[]), soon()).await.unwrap();
    let retagged = posts::Changes { tags: Some(Tags::parse(&["popular", "tokio"]).unwrap()), ..posts::Changes::default() };
    posts.edit(written.id, ada, retagged, Timestamp::now(), soon()).await.unwrap();
    for liked in [post(2), written.id.0] {
        for on in [true, false] {
            posts.like(PostId(liked), UserId(user(rows + 7)), on, soon()).await.unwrap();
        }
    }
    posts.delete(written.id, ada, false, None, soon()).await.unwrap();
    let first = posts.tags(None, LIMIT).await.unwrap();
    let next = posts.tags(first.next, LIMIT).await.unwrap();
    assert_eq!(next.items.len(), LIMIT);
    posts.take_back_likes(deadline()).await.unwrap();
    posts.sweep_ended_follows(deadline()).await.unwrap();
}

/// The number of a post that was deleted.
async fn of_comments(comments: &comments::Comments, posts: &posts::Posts, rows: i64) -> i64 {
    let (ada, middle) = (UserId(user(ADA)), rows / 100);
    let under = PostId(post(middle));
    for order in [Order::New, Order::Old, Order::Top] {
        let place = Place::start(Scope { post: under, order, parent: None, depth: None });
        let page =
            comments.page(&place, NonZeroUsize::new(LIMIT).unwrap(), deadline()).await.unwrap().expect("there is a thread");
        comments.liked(ada, &page.items, deadline()).await.unwrap();
    }
    for after in [None, Some(CommentId(comment(rows / 2)))] {
        comments.by_author(ada, after, LIMIT).await.unwrap();
        comments.export(after.map(|after| (under, after)), LIMIT).await.unwrap();
    }
    comments.which_exist(&[(under, CommentId(comment(50 * middle)))]).await.unwrap();
    comments.authors((middle..middle + 20).map(|n| UserId(user(n)))).await.unwrap();

    let draft = comments::Draft {
        post: under,
        author: ada,
        body: CommentBody::parse("A comment.").unwrap(),
        parent: Some(CommentId(comment(50 * middle))),
        at: Timestamp::now(),
    };
    let written = comments.add(draft, soon()).await.unwrap().reply.comment.expect("it was written");
    let change = comments::Change { body: CommentBody::parse("Another.").unwrap(), if_version: None };
    comments.edit(under, written.id, ada, change, Timestamp::now(), soon()).await.unwrap();
    for on in [true, false] {
        comments.like(under, written.id, UserId(user(7)), on, soon()).await.unwrap();
        comments.like(under, CommentId(comment(50 * middle)), UserId(user(7)), on, soon()).await.unwrap();
    }
    comments.delete(under, written.id, ada, false, None, Timestamp::now(), soon()).await.unwrap();
    // One with replies leaves a tombstone.
    comments.delete(under, CommentId(comment(50 * middle)), ada, true, None, Timestamp::now(), soon()).await.unwrap();
    comments.take_back_likes(deadline()).await.unwrap();
    // Of the first user, as every fourth is.
    let closed = middle - middle % 4;
    let Post { id, author, .. } = posts.get(PostId(post(closed)), deadline()).await.unwrap().expect("there is one");
    posts.delete(id, author, false, None, soon()).await.unwrap();
    closed
}

async fn of_search(search: &rookery_actors::search::SearchFace, rows: i64) {
    for kind in Kind::ALL {
        for after in [None, Some(post(rows / 4)), Some(comment(rows / 4))] {
            search.documents(kind, after, LIMIT).await.unwrap();
        }
    }
    let query = index::Search { query: index::Query::parse("title").unwrap(), ..index::Search::default() };
    search.search(query, deadline()).await.unwrap();
}
