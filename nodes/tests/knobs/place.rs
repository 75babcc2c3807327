//! Who a node is, where it keeps its files, whom it believes, and what it says.

use serde_json::Value;

use crate::lab::{
    Lab,
    Who::{Gateway, Member, Plain, Small, Strict, Up},
};

pub(crate) async fn data_dir(lab: &Lab) {
    for who in [Up, Plain] {
        let node = lab.of(who);
        assert!(node.running.greeting.contains(&format!("(data in {})", node.data.display())), "{}", node.running.greeting);
        let index = node.data.join("search").join("0.v4");
        assert!(index.is_dir(), "{who:?} keeps an index in {}", index.display());
    }
    assert!(lab.of(Up).data.ends_with("up/.rookery"), "where it was started");
}

pub(crate) async fn secret(lab: &Lab) {
    let kept = |who| lab.of(who).data.join("secret").is_file();
    assert!(kept(Up) && !kept(Plain), "one is made, and kept, where none was given");
    let known = |who| lab.of(who).status()["secrets"].clone();
    assert_eq!(known(Member), known(Gateway), "the same secret has the same name");
    assert_ne!(known(Member), known(Plain));
    assert_ne!(known(Member), known(Up));
}

pub(crate) async fn secret_previous(lab: &Lab) {
    let known = |who| lab.of(who).status()["secrets"].as_array().unwrap().clone();
    // A secret in hex has two names, since nodes of before took it as it stands.
    let former = known(Member);
    let knows_it = |who| former.iter().any(|name| known(who).contains(name));
    assert!(knows_it(Small) && !knows_it(Plain), "{former:?} is among {:?} and not among {:?}", known(Small), known(Plain));
}

pub(crate) async fn name(lab: &Lab) {
    for (who, name) in [(Plain, "n1"), (Member, "member")] {
        let node = lab.of(who);
        let client = node.sql(rookery::migrate::Database::Users).await;
        let found: String = client.query_one("SELECT node FROM member WHERE state = 'live'", &[]).await.unwrap().get(0);
        assert_eq!(found, name);
        assert!(node.running.log().contains(&format!("{{\"node\":\"{name}\",")), "its lines say whose they are");
    }
}

pub(crate) async fn roles(lab: &Lab) {
    let probes = async |who| {
        let answer = lab.of(who).get("/readyz?verbose").await;
        answer.body["probes"].as_object().unwrap_or_else(|| panic!("{}", answer.body)).clone()
    };
    for service in ["users", "posts", "comments", "search"] {
        let own = format!("{service}.shards");
        assert!(probes(Plain).await.contains_key(&own), "a node does everything");
        assert!(!probes(Gateway).await.contains_key(&own), "a gateway serves no shards of {service}");
    }
}

pub(crate) async fn log_filter(lab: &Lab) {
    let levels = |who| {
        let log = lab.of(who).running.log();
        let level = |line: &str| serde_json::from_str::<Value>(line).ok()?["level"].as_str().map(str::to_owned);
        log.lines().filter_map(level).collect::<std::collections::BTreeSet<String>>()
    };
    assert!(levels(Plain).contains("INFO") && !levels(Plain).contains("DEBUG"), "{:?}", levels(Plain));
    assert!(levels(Member).contains("INFO") && levels(Member).contains("DEBUG"), "{:?}", levels(Member));
}

pub(crate) async fn log_format(lab: &Lab) {
    let json = |who| {
        let log = lab.of(who).running.log();
        assert!(!log.is_empty());
        log.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count()
    };
    assert!(json(Plain) > 0, "no terminal: JSON");
    assert_eq!(json(Strict), 0, "for eyes: {}", lab.of(Strict).running.log());
}
