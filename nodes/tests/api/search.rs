use serde_json::json;

use crate::client::{anybody, eventually, sign_up};

#[tokio::test]
async fn a_write_is_found_by_who_waits_for_it() {
    let ada = sign_up("search_ada").await;
    let body = json!({"title": "Quetzalcoatlus", "body": "The largest quetzalcoatlus flew.", "tags": ["azhdarchid"]});
    let made = ada.post("/posts", body).await.is(201);
    let after = anybody().with("x-search-after", made.header("x-search-token"));
    let found = after.get("/search?q=quetzalcoatlus&type=posts").await.is(200);
    let hit = &found.items()[0];
    assert_eq!(
        (&hit["type"], hit["id"].as_str(), &hit["title"]),
        (&json!("post"), Some(made.text("/id")), &json!("Quetzalcoatlus"))
    );
    assert_eq!((&hit["author"]["username"], &hit["tags"]), (&json!("search_ada"), &json!(["azhdarchid"])));
    assert!(hit["highlight"]["body"].as_str().unwrap().contains("<mark>"), "{hit}");
    assert_eq!((&found.body["total"], &found.body["partial"]), (&json!(1), &json!(false)));
    assert!(found.body["took_ms"].is_u64() && found.body["next_cursor"].is_null());

    let thread = format!("/posts/{}/comments", made.text("/id"));
    let comment = ada.post(&thread, json!({"body": "A pterodactyloid, surely."})).await.is(201);
    let after = anybody().with("x-search-after", comment.header("x-search-token"));
    let found = after.get("/search?q=pterodactyloid&author=search_ada").await.is(200);
    assert_eq!((&found.items()[0]["type"], found.items()[0]["post_id"].as_str()), (&json!("comment"), Some(made.text("/id"))));

    let gone = ada.delete(&format!("/posts/{}", made.text("/id"))).await.is(204);
    let after = anybody().with("x-search-after", gone.header("x-search-token"));
    assert!(after.get("/search?q=quetzalcoatlus").await.is(200).items().is_empty());
}

#[tokio::test]
async fn what_a_misspelt_query_was_taken_to_mean_is_said() {
    let ada = sign_up("search_speller").await;
    let mut token = String::new();
    for n in 0..12 {
        let body = json!({"title": format!("Archaeopteryx {n}"), "body": "A feathered archaeopteryx.", "tags": ["fossils"]});
        token = ada.post("/posts", body).await.is(201).header("x-search-token").to_owned();
    }
    let asked = async |query: &str| anybody().with("x-search-after", &token).get(&format!("/search?q={query}")).await.is(200);
    let found = eventually("all of them", async || {
        let found = asked("archaeopterix&type=posts").await;
        (found.body["total"] == 12).then_some(found)
    })
    .await;
    assert_eq!(found.body["did_you_mean"], json!("archaeopteryx"));
    assert_eq!((&found.body["left_out"], &found.body["total_is_lower_bound"]), (&json!([]), &json!(false)));
    let found = asked("archaeopteryx&type=posts&limit=5").await;
    assert_eq!((&found.body["total"], &found.body["did_you_mean"]), (&json!(12), &json!(null)));
    // The scores of the next page are those of the first, whatever came meanwhile.
    let next = found.body["next_cursor"].as_str().unwrap();
    assert!(next.len() < 4_096, "{}", next.len());
    let rest = asked(&format!("archaeopteryx&type=posts&limit=100&cursor={next}")).await;
    let (mut ids, rest) = (found.items().to_vec(), rest.items().to_vec());
    ids.extend(rest);
    let different: std::collections::BTreeSet<&str> = ids.iter().map(|hit| hit["id"].as_str().unwrap()).collect();
    assert_eq!((ids.len(), different.len()), (12, 12));
}

#[tokio::test]
async fn users_are_found_and_completed() {
    sign_up("search_zebulon").await;
    // Any of the words may match, so others called search_… may come first until this one is there.
    let hit = eventually("the user", async || {
        let found = anybody().get("/search?q=search_zebulon&type=users").await.is(200);
        found.items().first().filter(|hit| hit["username"] == "search_zebulon").cloned()
    })
    .await;
    assert_eq!((&hit["type"], hit["id"].is_string()), (&json!("user"), true));
    eventually("the completion", async || {
        let completed = anybody().get("/search/suggest?q=search_zeb").await.is(200);
        completed.items().contains(&json!({"text": "search_zebulon", "type": "user"})).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_searched_for_is_a_400() {
    for query in
        ["q=a&type=tags", "q=a&sort=hot", "q=a&from=yesterday", "q=a&limit=101", "q=a&cursor=x", "q=a&tag=NO", "q=a&nonsense=1"]
    {
        anybody().get(&format!("/search?{query}")).await.is(400);
    }
    anybody().get(&format!("/search?q={}", "a".repeat(513))).await.is(400);
    anybody().with("x-search-after", "nonsense").get("/search?q=a").await.is(400);
    anybody().get("/search/suggest").await.is(400);
    assert!(anybody().get("/search?q=a&author=search_nobody").await.is(200).items().is_empty());
}
