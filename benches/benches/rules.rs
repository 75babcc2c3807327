//! What the rules cost by themselves: decide and evolve of a post.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use rookery_actors::{
    entity::Entity,
    ids::{PostId, UserId},
    posts::{
        Command, Post,
        entity::Facts,
        rules::{Body, Tags, Title},
    },
};
use uuid::Uuid;

fn publish() -> Command {
    Command::Publish {
        id: PostId(Uuid::from_u128(1)),
        author: UserId(Uuid::from_u128(2)),
        title: Title::parse("On the Analytical Engine").expect("a title"),
        body: Body::parse(&"It weaves algebraic patterns. ".repeat(20)).expect("a body"),
        tags: Tags::parse(&["engines", "history"]).expect("tags"),
        at: Timestamp::UNIX_EPOCH,
        minted: true,
    }
}

fn published() -> Option<Post> {
    let mut state = None;
    for event in Post::decide(None, &publish(), &Facts::default()).expect("it may be published") {
        Post::evolve(&mut state, &event);
    }
    state
}

fn rules(c: &mut Criterion) {
    let mut group = c.benchmark_group("rules");
    let command = publish();
    group.bench_function("decide and evolve a publication", |b| {
        b.iter(|| {
            let mut state = None;
            for event in Post::decide(None, black_box(&command), &Facts::default()).expect("it may be published") {
                Post::evolve(&mut state, &event);
            }
            state
        });
    });
    let like = Command::Like { user: UserId(Uuid::from_u128(3)), on: true };
    let post = published();
    group.bench_function("decide and evolve a like", |b| {
        b.iter_batched(
            || post.clone(),
            |mut state| {
                for event in Post::decide(state.as_ref(), black_box(&like), &Facts::default()).expect("it may be liked") {
                    Post::evolve(&mut state, &event);
                }
                state
            },
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, rules);
criterion_main!(benches);
