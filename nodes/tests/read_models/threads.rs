//! Threads and posts that another node serves, as somebody sees them: in one question.

use std::num::NonZeroUsize;

use jiff::Timestamp;
use rookery_actors::{
    comments::{self, CommentBody, Comments, Look, Order, Place, Scope},
    ids::{PostId, ShardId},
};

use super::support::*;

const BEN: usize = 7;

fn twenty() -> NonZeroUsize {
    NonZeroUsize::new(20).unwrap()
}

fn whole(post: PostId) -> Place {
    Place::start(Scope { post, order: Order::New, parent: None, depth: None })
}

fn comments(node: &Node) -> Comments {
    Comments::new(node.comments.clone())
}

async fn comment(node: &Node, post: PostId, text: &str) -> comments::Comment {
    let body = CommentBody::parse(text).unwrap();
    let draft = comments::Draft { post, author: ADA, body, parent: None, at: Timestamp::now() };
    comments(node).add(draft, soon()).await.unwrap().reply.comment.unwrap()
}

/// The second node serves it.
async fn a_post_of_the_second(world: &World) -> PostId {
    world.nodes[0].publish_in(ShardId(1), "hello").await.id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_thread_comes_with_what_its_reader_likes_in_one_question() {
    let world = World::of(2).await;
    let post = a_post_of_the_second(&world).await;
    let liked = comment(&world.nodes[0], post, "first").await;
    comment(&world.nodes[1], post, "second").await;
    comments(&world.nodes[0]).like(post, liked.id, user_id(BEN), true, soon()).await.unwrap();
    let before = world.network.sent_to("n2");
    let look = comments(&world.nodes[0]).look(&whole(post), twenty(), Some(user_id(BEN)), None, deadline()).await.unwrap();
    let Look::Page { page, liked: by_ben, .. } = look else { panic!("{look:?}") };
    assert_eq!(page.items.len(), 2);
    assert_eq!(by_ben.into_iter().collect::<Vec<_>>(), [liked.id]);
    assert_eq!(world.network.sent_to("n2"), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_known_is_not_sent_again_until_the_thread_changes() {
    let world = World::of(2).await;
    let post = a_post_of_the_second(&world).await;
    comment(&world.nodes[0], post, "first").await;
    let reader = comments(&world.nodes[0]);
    let Look::Page { stamp, .. } = reader.look(&whole(post), twenty(), None, None, deadline()).await.unwrap() else { panic!() };
    assert!(stamp.is_some());
    assert!(matches!(reader.look(&whole(post), twenty(), None, stamp, deadline()).await.unwrap(), Look::Same));
    comment(&world.nodes[1], post, "second").await;
    let look = reader.look(&whole(post), twenty(), None, stamp, deadline()).await.unwrap();
    assert!(matches!(&look, Look::Page { page, .. } if page.items.len() == 2), "{look:?}");
}

/// Two nodes number their states each for itself: a number that both have used names two states.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_not_taken_for_known_because_of_what_another_node_said_of_it() {
    let world = World::of(2).await;
    let post = a_post_of_the_second(&world).await;
    comment(&world.nodes[0], post, "first").await;
    let reader = comments(&world.nodes[0]);
    let Look::Page { stamp, .. } = reader.look(&whole(post), twenty(), None, None, deadline()).await.unwrap() else { panic!() };
    world.hand_over(|node| &node.comments, ShardId(1), 0).await;
    let look = reader.look(&whole(post), twenty(), None, stamp, deadline()).await.unwrap();
    assert!(matches!(look, Look::Page { .. }), "{look:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_comes_with_whether_its_reader_likes_it_in_one_question() {
    let world = World::of(2).await;
    let post = a_post_of_the_second(&world).await;
    world.nodes[0].posts.like(post, user_id(BEN), true, soon()).await.unwrap();
    let before = world.network.sent_to("n2");
    let (seen, liked) = world.nodes[0].posts.see(post, user_id(BEN), deadline()).await.unwrap().unwrap();
    assert_eq!((seen.id, seen.like_count, liked), (post, 1, true));
    assert!(!world.nodes[0].posts.see(post, user_id(BEN + 1), deadline()).await.unwrap().unwrap().1);
    assert_eq!(world.network.sent_to("n2"), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_with_what_its_reader_likes_in_one_question_to_each_node() {
    let world = World::of(2).await;
    let mut liked = Vec::new();
    for n in 0..SHARDS {
        let post = world.nodes[0].publish_in(ShardId(n), "hello").await;
        if n % 3 == 0 {
            world.nodes[0].posts.like(post.id, user_id(BEN), true, soon()).await.unwrap();
            liked.push(post.id);
        }
    }
    let list = async |node: usize| {
        let (sort, filter) = (rookery_actors::posts::Sort::New, rookery_actors::posts::Filter::All);
        world.nodes[node].posts.list_for(Some(user_id(BEN)), sort, &filter, None, 20, deadline()).await.unwrap().0
    };
    list(0).await;
    let before = world.network.sent_to("n2");
    let seen = list(0).await;
    assert_eq!(seen.posts.len(), usize::from(SHARDS));
    let mut found: Vec<PostId> = seen.liked.into_iter().collect();
    found.sort_unstable();
    assert_eq!(found, liked);
    assert_eq!(world.network.sent_to("n2"), before + 1);
}
