use super::*;

#[test]
fn a_title_beats_a_body() {
    let index = given([post(1, "Gardens", "rust on the fence"), post(2, "Rust", "a language of the fence")]);
    assert_eq!(index.find("rust"), [2, 1]);
}

#[test]
fn more_of_the_words_rank_higher() {
    let index = given([
        post(1, "one", "actors everywhere in the house"),
        post(2, "two", "actors and supervisors in the house"),
        post(3, "three", "nothing of it"),
    ]);
    assert_eq!(index.find("actors supervisors"), [2, 1]);
}

#[test]
fn another_form_of_a_word_matches() {
    let index = given([post(1, "", "he runs databases")]);
    assert_eq!(index.find("running"), [1]);
    assert_eq!(index.find("database"), [1]);
}

#[test]
fn the_exact_form_comes_first() {
    let index = given([post(1, "", "we run it"), post(2, "", "we running it"), post(3, "", "we runs it")]);
    assert_eq!(index.find("running")[0], 2);
}

#[test]
fn accents_do_not_matter_on_either_side() {
    let index = given([post(1, "", "a café"), post(2, "", "a cafe")]);
    assert_eq!(index.find_sorted("cafe"), [1, 2]);
    assert_eq!(index.find_sorted("CAFÉ"), [1, 2]);
}

#[test]
fn a_typo_finds_what_was_meant() {
    let index = given([post(1, "", "a question of supervision"), post(2, "", "a database")]);
    assert_eq!(index.find("quesiton"), [1], "two neighbours swapped");
    assert_eq!(index.find("databse"), [2], "one letter missing");
    assert_eq!(index.find("zupervizion"), [1], "two letters wrong in a long word");
}

#[test]
fn a_typo_finds_other_forms_of_what_was_meant() {
    let index = given([post(1, "", "these databases"), post(2, "", "this database")]);
    assert_eq!(index.find_sorted("databse"), [1, 2]);
}

#[test]
fn a_misspelt_word_counts_beside_the_others() {
    let index = given([
        post(1, "", "a forum for plants"),
        post(2, "", "a forum for plants and databases"),
        post(3, "", "forum, forum, forum"),
    ]);
    assert_eq!(index.find("forum databse")[0], 2);
}

#[test]
fn short_words_and_numbers_are_taken_at_their_word() {
    let index = given([post(1, "", "a cat"), post(2, "", "in 2014")]);
    assert_eq!(index.find("bat"), []);
    assert_eq!(index.find("2013"), []);
}

/// What was broken: the wrong word in a title stood above the right one in a body.
#[test]
fn a_word_that_a_document_has_is_taken_at_its_word() {
    let rookery = post(1, "", "a long text about many things in which once, somewhere, a rookery is named, and then no more");
    let cookery = (2..=12).map(|id| post(id, "Cookery", "cookery, all about cookery"));
    let index = given([rookery].into_iter().chain(cookery));
    assert_eq!(index.find("rookery"), [1]);
    assert_eq!(index.meant("rookery").as_deref(), Some("cookery"), "it is offered");
    assert_eq!(index.meant("cookery"), None);
    let rust = (1..=5).map(|id| post(id, "", "rust"));
    let index = given(rust.chain([post(9, "", "trust")]));
    assert_eq!(index.find_sorted("rust"), [1, 2, 3, 4, 5]);
}

#[test]
fn what_a_misspelt_word_was_taken_to_mean_is_said() {
    let index = given([post(1, "", "a question of supervision")]);
    assert_eq!(index.meant("quesiton supervision").as_deref(), Some("question supervision"));
}

#[test]
fn of_two_words_both_beat_one_of_them_twice() {
    let rare = (10..60).map(|id| post(id, "", "plain words about the weather"));
    let index = given(rare.chain([
        post(1, "zeppelin zeppelin", "zeppelin zeppelin zeppelin"),
        post(2, "", &format!("a zeppelin in any {} weather", "very ".repeat(200))),
    ]));
    assert_eq!(index.find("zeppelin weather")[..2], [2, 1]);
}

#[test]
fn words_near_each_other_and_in_order_count_a_little() {
    let filler = "filler ".repeat(10);
    let index = given([
        post(1, "", &format!("memory {filler} safety")),
        post(2, "", &format!("{filler} safety memory")),
        post(3, "", &format!("{filler} memory safety")),
    ]);
    assert_eq!(index.find("memory safety"), [3, 2, 1]);
}

/// What was broken: twelve equal posts had four scores, one of each segment or partition.
#[test]
fn a_score_is_the_same_wherever_a_document_lies() {
    let mut partitions = [partition(), partition()];
    for (number, partition) in partitions.iter_mut().enumerate() {
        for batch in 0..3 {
            let first = 100 * number as u128 + 10 * batch + 1;
            partition.index((first..first + 2).map(|id| post(id, "Rooks", "a rook builds its nest")));
            partition.index([post(first + 5, "", &"other words ".repeat(7 * batch as usize + number))]);
        }
    }
    let views = Views::of(partitions.iter().map(|one| one.partition.reader().view()).collect());
    let asked = Search { limit: 100, ..search("rook nest") };
    let plan = views.plan(&asked);
    let (hits, _) = views.search(&asked, &plan, None).unwrap();
    assert_eq!(hits.total, 12);
    let scores: std::collections::BTreeSet<u32> = hits.items.iter().map(|hit| hit.score.to_bits()).collect();
    assert_eq!(scores.len(), 1, "{:?}", hits.items.iter().map(|hit| hit.score).collect::<Vec<_>>());
}

/// Pages of one plan, while documents come, go and are merged: none of those that stay is missed or seen twice.
#[test]
fn a_list_by_relevance_can_be_walked_while_others_write() {
    let mut index = given((1..=60).map(|id| post(id, "", &format!("rust {}", "and more ".repeat(id as usize % 7)))));
    let mut page = Search { limit: 7, ..search("rust more") };
    let plan = Views::of(vec![index.partition.reader().view()]).plan(&page);
    let (mut seen, mut step) = (Vec::new(), 0);
    loop {
        let (hits, _) = Views::of(vec![index.partition.reader().view()]).search(&page, &plan, None).unwrap();
        seen.extend(ids(&hits).into_iter().filter(|id| *id <= 60));
        if !hits.more {
            break;
        }
        page.after = hits.items.last().map(|hit| hit.cursor);
        step += 1;
        index.index((1..=9).map(|n| post(1_000 + 10 * step + n, "rust", "rust and more rust, which changes how rare it is")));
    }
    let mut once = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!((seen.len(), once.len()), (60, 60));
}

/// What was broken: a plan out of the cursor of another build would have been followed beyond its end.
#[test]
fn a_plan_of_another_reading_is_not_followed() {
    let index = given([post(1, "", "rust and tokio"), post(2, "", "rust")]);
    let views = Views::of(vec![index.partition.reader().view()]);
    for plan in [views.plan(&search("rust")), views.plan(&search("a b c d e -f*")), Plan::default()] {
        let (hits, _) = views.search(&search("rust tokio -axum*"), &plan, None).unwrap();
        assert_eq!(ids(&hits), [1, 2]);
    }
}

/// What was broken: what is excluded cost nothing in the books, and all that it cost in the index.
#[test]
fn an_excluded_prefix_excludes_all_its_words() {
    let index = given((1..=90).map(|id| post(id, "", &format!("rust word{id}"))).chain([post(100, "", "rust alone")]));
    assert_eq!(index.find("rust -word*"), [100]);
    let many = "rust ".to_owned() + &(0..60).map(|n| format!("-x{n} ")).collect::<String>();
    assert_eq!(index.hits(&many).total, 91);
}

#[test]
fn what_would_cost_too_much_is_left_out_and_named() {
    let word = |n: u128| format!("a{}{}", char::from(b'a' + (n % 26) as u8), n);
    let rare = |id: u128| (0..100).map(|n| word(100 * id + n) + " ").collect::<String>();
    let index = given((1..=20).map(|id| post(id, "", &(rare(id) + "aardvark"))));
    let asked = search("a*");
    let plan = Views::of(vec![index.partition.reader().view()]).plan(&asked);
    assert_eq!(plan.left_out(), ["a*"], "it stands for 2,001 words");
    assert_eq!(index.hits("a*").total, 20, "the most frequent ones stay");
}

#[test]
fn a_phrase_needs_its_words_side_by_side() {
    let index = given([post(1, "", "memory safety matters"), post(2, "", "safety of memory"), post(3, "", "memory, and safety")]);
    assert_eq!(index.find("\"memory safety\""), [1]);
}

#[test]
fn a_phrase_beside_words_is_required_and_the_words_rank() {
    let index =
        given([post(1, "", "memory safety matters"), post(2, "", "rust alone"), post(3, "", "memory safety matters in rust")]);
    assert_eq!(index.find("rust \"memory safety\""), [3, 1]);
}

#[test]
fn an_excluded_word_excludes_all_its_forms() {
    let index = given([post(1, "", "rust compiles"), post(2, "", "rust compiler and tokio"), post(3, "", "rust")]);
    assert_eq!(index.find_sorted("rust -tokio"), [1, 3]);
    assert_eq!(index.find_sorted("rust -compile"), [3]);
}

#[test]
fn an_excluded_phrase_leaves_its_words_alone() {
    let index = given([post(1, "", "garbage collector"), post(2, "", "collector of garbage")]);
    assert_eq!(index.find("garbage -\"garbage collector\""), [2]);
}

#[test]
fn exclusions_alone_leave_everything_else_newest_first() {
    let index = given([post(1, "", "rust"), post(2, "", "tokio"), post(3, "", "axum")]);
    assert_eq!(index.find("-tokio"), [3, 1]);
}

#[test]
fn a_prefix_finds_words_that_begin_so() {
    let index = given([post(1, "", "tokenizer"), post(2, "", "tokio"), post(3, "", "stoked")]);
    assert_eq!(index.find_sorted("tok*"), [1, 2]);
    assert_eq!(index.find_sorted("TÓKEN*"), [1]);
}

#[test]
fn a_prefix_of_very_many_words_finds_all_of_them() {
    let index = given((1..=90).map(|id| post(id, "", &format!("word{id}"))));
    assert_eq!(index.hits("wor*").total, 90);
}

#[test]
fn han_text_is_found_by_its_parts() {
    let index = given([post(1, "東京都の天気", ""), post(2, "", "黒猫"), post(3, "", "rust")]);
    assert_eq!(index.find("東京"), [1]);
    assert_eq!(index.find("天気 京都")[0], 1);
    assert_eq!(index.find("猫"), [2], "one character, the last of its run");
    assert_eq!(index.find("\"都の天\""), [1]);
}

#[test]
fn a_very_long_word_is_found() {
    let long = "supercalifragilistic".repeat(6);
    let index = given([post(1, "", &long)]);
    assert_eq!(index.find(&long), [1]);
    assert_eq!(index.find(&format!("\"{long}\"")), [1]);
}

#[test]
fn users_are_found_by_username_and_display_name() {
    let index = given([user(1, "ada_lovelace", "Augusta Ada King"), user(2, "bob", "Bob")]);
    assert_eq!(index.find("ada_lovelace"), [1]);
    assert_eq!(index.find("lovelace"), [1]);
    assert_eq!(index.find("augusta"), [1]);
}

#[test]
fn stop_words_count_only_when_there_is_nothing_else() {
    let index = given([post(1, "", "how to cook rice"), post(2, "", "how to sleep")]);
    assert_eq!(index.find("how to rice"), [1]);
    assert_eq!(index.find_sorted("how to"), [1, 2]);
}

#[test]
fn what_is_never_indexed_finds_nothing() {
    let index = given([post(1, "", "hello 🎉")]);
    assert_eq!(index.find("🎉 !!!"), []);
}

#[test]
fn an_empty_query_finds_everything_newest_first() {
    let index = given([post(2, "", "b"), post(1, "", "a"), post(3, "", "c")]);
    assert_eq!(index.find(""), [3, 2, 1]);
}

#[test]
fn filters_narrow_without_changing_the_score() {
    let ada = Uuid::from_u128(77);
    let by_ada = |document| Document { author: Some(ada), ..document };
    let index = given([
        by_ada(Document { tags: vec!["lang".into()], ..post(1, "", "rust") }),
        post(2, "", "rust"),
        by_ada(comment(3, "rust")),
        user(4, "rust", ""),
    ]);
    let find = |filter: Search| ids(&index.partition.search(&filter).unwrap());
    assert_eq!(find(Search { kinds: vec![Kind::Comment], ..search("rust") }), [3]);
    assert_eq!(find(Search { kinds: vec![Kind::Post], author: Some(ada), ..search("rust") }), [1]);
    assert_eq!(find(Search { author: Some(ada), sort: Sort::New, ..search("rust") }), [3, 1]);
    assert_eq!(find(Search { tag: Some("lang".into()), ..search("") }), [1]);
    let filtered = index.partition.search(&Search { tag: Some("lang".into()), ..search("rust") }).unwrap();
    let all = index.hits("rust");
    assert_eq!(filtered.items[0].score, all.items.iter().find(|hit| hit.id.as_u128() == 1).unwrap().score);
}

#[test]
fn a_time_span_includes_its_beginning_and_excludes_its_end() {
    let index = given((1..=4).map(|id| post(id, "", "rust")));
    let at = |id| Some(post(id, "", "").created_at);
    let span = Search { from: at(2), to: at(4), ..search("rust") };
    assert_eq!(ids(&index.partition.search(&span).unwrap()), [3, 2]);
}

/// All pages of a search, and the total that each of them stated.
fn pages(index: &Fixture, first: Search) -> (Vec<u128>, Vec<u64>) {
    let (mut seen, mut totals, mut page) = (Vec::new(), Vec::new(), first);
    loop {
        let hits = index.partition.search(&page).unwrap();
        seen.extend(ids(&hits));
        totals.push(hits.total);
        page.after = hits.items.last().map(|hit| hit.cursor);
        if !hits.more {
            return (seen, totals);
        }
    }
}

#[test]
fn pages_visit_each_hit_once_and_in_order() {
    let mut index = partition();
    // Several commits make several segments; equal texts make ties.
    for batch in 0..4 {
        index.index((1..=6).map(|id| post(batch * 6 + id, "", if id % 2 == 0 { "rust" } else { "rust and more" })));
    }
    for sort in [Sort::Relevance, Sort::New] {
        let whole = index.partition.search(&Search { sort, limit: 100, ..search("rust") }).unwrap();
        let (paged, totals) = pages(&index, Search { sort, limit: 5, ..search("rust") });
        assert_eq!(paged, ids(&whole));
        assert_eq!(paged.len(), 24);
        assert_eq!(totals, [24; 5]);
    }
}

#[test]
fn a_cursor_of_another_order_is_refused() {
    let index = given([post(1, "", "rust")]);
    let after = Some(index.hits("rust").items[0].cursor);
    let result = index.partition.search(&Search { after, sort: Sort::New, ..search("rust") });
    assert!(matches!(result, Err(SearchError::Cursor)));
}

#[test]
fn highlights_show_what_matched_in_its_own_spelling() {
    let index = given([post(1, "The Café", "Databases <b> & cafés")]);
    let highlight = |query: &str| index.hits(query).items[0].highlight.clone();
    assert_eq!(highlight("cafe").title.unwrap(), "The <mark>Café</mark>");
    assert_eq!(highlight("cafe").body.unwrap(), "Databases &lt;b&gt; &amp; <mark>cafés</mark>");
    assert_eq!(highlight("databse").body.unwrap(), "<mark>Databases</mark> &lt;b&gt; &amp; cafés", "misspelt");
    assert_eq!(highlight("data*").title, None);
}

#[test]
fn a_hit_carries_its_summary() {
    let author = Uuid::from_u128(7);
    let document =
        Document { author: Some(author), tags: vec!["lang".into()], version: 3, ..post(1, "Rust", &"word ".repeat(100)) };
    let hit = given([document.clone()]).hits("rust").items.remove(0);
    assert_eq!((hit.kind, hit.version, hit.created_at), (Kind::Post, 3, document.created_at));
    assert_eq!(hit.summary.title.as_deref(), Some("Rust"));
    assert_eq!(hit.summary.author, Some(author));
    assert!(hit.summary.excerpt.len() <= 200);
}

#[test]
fn suggestions_come_from_usernames_tags_and_titles() {
    let index =
        given([user(1, "rustacean", "Ferris"), Document { tags: vec!["rustlang".into()], ..post(2, "Rusty nails", "rusting") }]);
    let suggested = index.partition.suggest("Rus", 10).unwrap();
    let texts: Vec<_> = suggested.iter().map(|one| (one.text.as_str(), one.kind)).collect();
    assert_eq!(texts, [("rustacean", SuggestionKind::User), ("rustlang", SuggestionKind::Tag), ("rusty", SuggestionKind::Word),]);
}

#[test]
fn the_last_of_several_words_is_completed() {
    let index = given([post(1, "Memory safety", "")]);
    assert_eq!(index.partition.suggest("Rust saf", 5).unwrap()[0].text, "rust safety");
}

#[test]
fn a_deleted_account_is_not_suggested() {
    let ada = user(1, "ada", "Ada");
    let mut index = given([ada.clone(), user(2, "adam", "Adam")]);
    index.index([deleted(ada)]);
    let texts: Vec<_> = index.partition.suggest("ad", 5).unwrap().into_iter().map(|one| one.text).collect();
    assert!(!texts.contains(&"ada".to_owned()), "{texts:?}");
}

/// The longest queries of every shape are answered: the work is bounded and nothing panics.
#[test]
fn hostile_queries_are_answered() {
    let index = given([post(1, "rust", "東京 rust abc"), comment(2, "\u{0} \u{301} ﷺ")]);
    let repeated = |piece: &str| piece.repeat(512 / piece.len());
    for query in
        ["a* ", "\"", "-a ", "-\"a b\" ", "東", "東 ", "-東* ", "ab-cd ", "zzzzzzzzz", "(", "ﷺ", "\u{0}", "*-", "\u{301}"]
    {
        index.hits(&repeated(query));
    }
    let different: String = (0..170).map(|n| format!("{}* ", char::from(b'a' + n % 26))).collect();
    index.hits(&different);
}
