use reqwest::Method;

use crate::client::anybody;

/// Whatever the document promises is routed: a path with its parameters filled in is never "no such route".
#[tokio::test]
async fn every_documented_operation_is_served() {
    let document = anybody().send_raw(Method::GET, "/openapi.json", None).await.is(200).body;
    for (path, item) in document["paths"].as_object().unwrap() {
        let filled = path
            .replace("{id}", "019a0000-0000-7000-8000-000000000000")
            .replace("{comment_id}", "019a0000-0000-7000-8000-000000000001")
            .replace("{username}", "contract_nobody");
        for (method, operation) in item.as_object().unwrap() {
            let answer = anybody().send_raw(method.to_uppercase().parse().unwrap(), &filled, None).await;
            assert_ne!(answer.body["type"], "/problems/no-such-route", "{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key(&answer.status.to_string()), "{method} {path} answers {} undocumented", answer.status);
        }
    }
}

#[tokio::test]
async fn a_problems_type_answers_with_a_page() {
    let kind = anybody().get("/posts/1").await.is(404).text("/type").to_owned();
    anybody().send_raw(Method::GET, &kind, None).await.is(200);
}
