//! What is meant is found as well as it was: a change of the ranking that makes it worse fails here.

use rookery_benches::search::{
    posts::Posts,
    relevance::{SAMPLE_POSTS, SAMPLE_QUESTIONS, Scale, below_floor, compare},
};

#[test]
fn no_kind_of_question_is_answered_worse_than_its_floor() {
    let posts = Posts::read(None).unwrap();
    look_below(&posts);
}

#[test]
fn nor_where_the_posts_of_people_are_missing() {
    look_below(&Posts::made_up());
}

fn look_below(posts: &Posts) {
    let folder = tempfile::tempdir().unwrap();
    let compared = compare(&posts.sample(SAMPLE_POSTS), SAMPLE_QUESTIONS, folder.path()).unwrap();
    let scale = Scale::of(posts, true).expect("every sample has its floors");
    let below = below_floor(scale, &compared);
    assert!(below.is_empty(), "{}\n{compared:#?}", below.join("\n"));
}
