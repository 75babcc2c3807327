//! Searching the partitions of a node: what they say of a query's words, the page, and what is shown of it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::highlight::Marks;
use super::hits::{Cursor, Highlight, Hit, Hits, LIMIT_MAX, Search, Sort, Summary};
use super::plan::{FormKind, Plan, Statistics, Wishes};
use super::rank::{Page, Place, Ranking, rank};
use super::reader::{SearchError, View};
use super::reading::{By, Reading};
use super::spelling::Spelling;
use super::text::KnownStems;
use crate::episodes;

/// How much of a body a summary quotes, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

/// The partitions of a node as of one moment. One that cannot be read costs its part of the answer, not the others'.
pub struct Views {
    views: Vec<View>,
    spelling: Spelling,
    /// Where words may be spelt similarly: all partitions of the node.
    all: Vec<View>,
    /// When nobody waits for the answer any more.
    deadline: Option<Instant>,
    broken: RefCell<BTreeSet<usize>>,
}

/// A page of what these partitions have, without what is shown of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// How many match on all pages together.
    pub total: u64,
    /// There are more, which would have cost too much to count.
    pub is_cut: bool,
    /// Whether there is a match behind the last of these.
    pub more: bool,
    /// Best first.
    pub places: Vec<Cursor>,
}

impl Ranked {
    /// The best of several answers to one search.
    pub fn merge(parts: Vec<Ranked>, limit: usize) -> Ranked {
        let mut merged = Ranked::default();
        for part in parts {
            merged.total += part.total;
            merged.is_cut |= part.is_cut;
            merged.more |= part.more;
            merged.places.extend(part.places);
        }
        merged.places.sort_by_key(Cursor::place);
        merged.more |= merged.places.len() > limit;
        merged.places.truncate(limit);
        merged
    }
}

/// What is asked of every partition before a search is carried out, and how its answers become a plan.
#[derive(Debug)]
pub struct Planning {
    reading: Reading,
    wishes: Wishes,
}

impl Planning {
    /// Begins with what was typed.
    pub fn of(search: &Search) -> Planning {
        let reading = Reading::of(&search.query);
        let wishes = Plan::wishes(&reading);
        Planning { reading, wishes }
    }

    /// What to ask first.
    pub fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    /// What to ask then, if anything.
    pub fn spelling(&self, statistics: &Statistics) -> Option<Wishes> {
        Plan::wishes_for_spelling(&self.reading, statistics)
    }

    /// The plan.
    pub fn plan(&self, statistics: &Statistics, spelling: Option<(&Wishes, &Statistics)>) -> Plan {
        match spelling {
            Some((wishes, spelling)) => Plan::of(&self.reading, statistics, wishes, spelling),
            None => Plan::of(&self.reading, statistics, &Wishes::default(), &Statistics::default()),
        }
    }
}

impl Plan {
    /// Whether it was made of what partitions said, and is worth keeping for the next page.
    pub fn is_known(&self) -> bool {
        self.documents > 0
    }

    /// What would have cost too much and was left out, as typed.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// What the query was taken to mean where no document has its words, or may have meant where hardly any has.
    pub fn meant(&self) -> Option<&str> {
        self.meant.as_deref()
    }
}

impl Views {
    /// Of these partitions.
    pub fn of(views: Vec<View>) -> Views {
        Views::with(views.clone(), Spelling::default(), views)
    }

    /// The same with the words that were gathered of `all` the partitions of a node.
    pub fn with(views: Vec<View>, spelling: Spelling, all: Vec<View>) -> Views {
        Views { views, spelling, all, deadline: None, broken: RefCell::default() }
    }

    /// For whoever waits until then.
    pub fn until(self, deadline: Instant) -> Views {
        Views { deadline: Some(deadline), ..self }
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Those that could not be read, by their places, and why is logged.
    pub fn broken(&self) -> Vec<usize> {
        self.broken.borrow().iter().copied().collect()
    }

    /// What one of them says, unless it cannot be read.
    fn of_view<T>(&self, view: usize, answer: Result<T, SearchError>) -> Result<Option<T>, SearchError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ (SearchError::Index(_) | SearchError::Files(_) | SearchError::Document(_))) => {
                episodes::warn("index partitions cannot answer", "search", &error);
                self.broken.borrow_mut().insert(view);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What all of them say of the words of a query.
    pub fn statistics(&self, wishes: &Wishes) -> Statistics {
        let mut sum = Statistics::default();
        for (number, view) in self.views.iter().enumerate() {
            if let Ok(Some(said)) = self.of_view(number, view.statistics(wishes, self.deadline).map_err(Into::into)) {
                sum.add(said);
            }
        }
        for (word, edits) in &wishes.similar {
            if self.is_late() {
                break;
            }
            let similar = self.spelling.similar(&self.all, word, *edits);
            // Nothing is found by another spelling then, and what cannot be read is noticed where it is ranked.
            sum.similar.push(similar.unwrap_or_default());
        }
        sum
    }

    /// The plan of a search of these partitions alone.
    pub fn plan(&self, search: &Search) -> Plan {
        let planning = Planning::of(search);
        let statistics = self.statistics(planning.wishes());
        let spelling = planning.spelling(&statistics).map(|wishes| (self.statistics(&wishes), wishes));
        planning.plan(&statistics, spelling.as_ref().map(|(answers, wishes)| (wishes, answers)))
    }

    /// The page of a search, and where on it each hit is.
    fn page(&self, search: &Search, plan: &Plan, deadline: Option<Instant>) -> Result<Page, SearchError> {
        search.check()?;
        let search = &Search { limit: search.limit.min(LIMIT_MAX), ..search.clone() };
        let reading = Reading::of(&search.query);
        let anew;
        let plan = if plan.fits(&reading) {
            plan
        } else {
            // Of a build that reads a query otherwise.
            anew = self.plan(search);
            &anew
        };
        let (page, broken) = rank(&self.views, &Ranking { search, reading: &reading, plan, deadline })?;
        for (view, error) in broken {
            self.of_view(view, Err::<(), _>(error))?;
        }
        Ok(page)
    }

    /// The page of a search without what is shown of it: for whoever merges it with those of other nodes.
    ///
    /// # Errors
    /// [`SearchError::Cursor`] for a cursor of another order, and [`SearchError::Late`].
    pub fn rank(&self, search: &Search, plan: &Plan, deadline: Option<Instant>) -> Result<Ranked, SearchError> {
        let Page { total, is_cut, more, places } = self.page(search, plan, deadline)?;
        let sort = search.effective_sort();
        Ok(Ranked { total, is_cut, more, places: places.iter().map(|place| place.cursor(sort)).collect() })
    }

    /// What is shown of those of a page that are here; what is gone by now is left out.
    pub fn show(&self, search: &Search, plan: &Plan, places: &[Cursor]) -> Vec<Hit> {
        let mut showing = Showing::of(search, plan);
        let mut hits = Vec::with_capacity(places.len());
        'places: for cursor in places {
            for (number, view) in self.views.iter().enumerate() {
                let hit = view.anywhere(cursor.id).map_err(Into::into).and_then(|address| {
                    let place = |address| Place { rank: Place::rank_of(cursor), id: cursor.id.as_u128(), view: number, address };
                    address.map(|address| showing.hit(view, place(address))).transpose()
                });
                if let Ok(Some(Some(hit))) = self.of_view(number, hit) {
                    hits.push(hit);
                    continue 'places;
                }
            }
        }
        hits
    }

    /// All of it at once, where all partitions are here; and whether there would have been more than was counted.
    ///
    /// # Errors
    /// As [`Views::rank`].
    pub fn search(&self, search: &Search, plan: &Plan, deadline: Option<Instant>) -> Result<(Hits, bool), SearchError> {
        let Page { total, is_cut, more, places } = self.page(search, plan, deadline)?;
        let mut showing = Showing::of(search, plan);
        let mut items = Vec::with_capacity(places.len());
        for place in places {
            items.extend(self.of_view(place.view, showing.hit(&self.views[place.view], place))?);
        }
        Ok((Hits { total, more, items }, is_cut))
    }
}

/// Makes hits of places.
struct Showing {
    sort: Sort,
    marks: Marks,
    stems: KnownStems,
}

impl Showing {
    fn of(search: &Search, plan: &Plan) -> Self {
        let reading = Reading::of(&search.query);
        let mut marks = Marks { phrases: reading.phrases.clone(), ..Marks::default() };
        for (wanted, forms) in reading.wanted.iter().zip(&plan.forms) {
            match &wanted.by {
                // The words of a phrase are marked in their row.
                _ if reading.phrases.iter().flatten().any(|(_, word)| *word == wanted.text) => {}
                By::Prefix => marks.prefixes.push(wanted.text.clone()),
                By::Stem(_) | By::Pair => {
                    marks.words.insert(wanted.text.clone());
                    marks.stems.extend(forms.iter().filter(|form| form.kind == FormKind::Stem).map(|form| form.text.clone()));
                }
            }
        }
        Self { sort: search.effective_sort(), marks: marks.ready(), stems: KnownStems::new() }
    }

    fn hit(&mut self, view: &View, place: Place) -> Result<Hit, SearchError> {
        let document = view.document(place.address)?;
        let highlight = Highlight {
            title: document.title.as_deref().and_then(|title| self.marks.fragment(title, &mut self.stems)),
            body: self.marks.fragment(&document.body, &mut self.stems),
        };
        Ok(Hit {
            kind: document.kind,
            id: document.id,
            version: document.version,
            score: place.score(self.sort),
            created_at: document.created_at,
            highlight,
            cursor: Cursor { id: Uuid::from_u128(place.id), ..place.cursor(self.sort) },
            summary: Summary {
                excerpt: excerpt(&document.body),
                title: document.title,
                author: document.author,
                tags: document.tags,
                post_id: document.post_id,
            },
        })
    }
}

/// How a body begins, cut between words where it has some.
fn excerpt(body: &str) -> String {
    let body = body.trim();
    match body.char_indices().nth(EXCERPT_CHARS_MAX) {
        None => body.to_owned(),
        Some((limit, _)) => {
            let cut = body[..limit].rfind(char::is_whitespace).unwrap_or(limit);
            body[..cut].trim_end().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: u64, id: u128) -> Cursor {
        Cursor { sort: Sort::Relevance, key, id: Uuid::from_u128(id) }
    }

    fn ranked(total: u64, places: Vec<Cursor>) -> Ranked {
        Ranked { total, places, ..Ranked::default() }
    }

    #[test]
    fn the_best_of_all_partitions_come_first_and_equals_by_greater_id() {
        let left = ranked(5, vec![place(9, 1), place(3, 2)]);
        let right = ranked(2, vec![place(5, 3), place(3, 4)]);
        let merged = Ranked::merge(vec![left, right], 3);
        let ids: Vec<u128> = merged.places.iter().map(|place| place.id.as_u128()).collect();
        assert_eq!(ids, [1, 3, 4]);
        assert_eq!((merged.total, merged.more), (7, true));
    }

    #[test]
    fn the_last_page_of_all_partitions_has_no_more() {
        assert!(!Ranked::merge(vec![ranked(1, vec![place(1, 1)])], 1).more);
    }

    #[test]
    fn an_excerpt_ends_between_words_within_200_characters() {
        let excerpt = excerpt(&"wörd ".repeat(100));
        assert!(excerpt.ends_with("wörd") && excerpt.chars().count() <= EXCERPT_CHARS_MAX, "{excerpt}");
    }

    #[test]
    fn an_excerpt_of_one_endless_word_is_cut_inside_it() {
        assert_eq!(excerpt(&"語".repeat(300)).chars().count(), EXCERPT_CHARS_MAX);
    }
}
