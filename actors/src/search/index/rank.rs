//! One pass over the postings: which documents match, how well, and which of them are the first behind a cursor.
//!
//! A segment is gone through in windows of a few thousand documents. In each, the words add what they are worth to a number per
//! document, filters and exclusions take documents away, and what is left is counted and offered to the page. All matches are
//! visited, so totals are exact; and scores are sums of integers, so they do not depend on the order of adding: a document
//! has the same score in every segment, on every replica and on every page.
//!
//! What a document gains by having words as they were typed, and near each other, takes their positions to tell. It is bounded,
//! so that only those are asked for whom it could matter.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Instant;

use tantivy::columnar::Column;
use tantivy::fieldnorm::FieldNormReader;
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocAddress, DocId, SegmentReader, TERMINATED, Term};
use uuid::Uuid;

use super::cursor::Postings;
use super::hits::{Cursor, Search, Sort, key_score, score_key, time_key};
use super::near::{InARow, Typed};
use super::plan::{Form, FormKind, Plan};
use super::reader::{SearchError, View};
use super::reading::{By, Excluded, Reading, Wanted};
use super::schema::{CREATED, ID_HIGH, ID_LOW, label};

/// Documents that are looked at together: their numbers fit into a processor's first cache.
const WINDOW: usize = 4_096;
/// Scores are counted in parts of this: a score of all words of a query is below 2^24 then, which a float holds exactly.
pub(super) const SCALE: f32 = 1_024.0;
/// The most that the words of a query come to, in those parts: more only by very many words of a prefix.
const SUM_MAX: u32 = 1 << 23;
/// BM25: how soon more of a word says little more, and how much the length of a text matters (Robertson & Zaragoza, 2009).
const K1: f32 = 1.2;
const B: f32 = 0.75;
/// Of a score of three words and more, the part that depends on how many of them a document has.
const COORDINATION: f32 = 0.4;
/// What it adds to have a word as typed, as a part of what the word is worth.
const AS_TYPED: f32 = 0.1;
/// What it adds at most to have neighbours of a query near each other.
const NEAR: f32 = 0.25;
/// What a word that says little adds at most, however rare it is: as an IDF.
const LESSER: f32 = 1.0;
/// Looks at a word of a document that a search may take, about: some 10 ms.
const LOOKS_MAX: u64 = 100_000;

/// The first matches behind a cursor.
#[derive(Default)]
pub(super) struct Page {
    /// All matches, those before the cursor too.
    pub total: u64,
    /// There are more, which would have cost too much to find.
    pub is_cut: bool,
    /// There is a match behind the last place.
    pub more: bool,
    /// Best first.
    pub places: Vec<Place>,
}

/// A match and its place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// A score in parts of [`SCALE`], or a time; comparable within one search.
    pub rank: u64,
    pub id: u128,
    /// Which of the views that were searched.
    pub view: usize,
    pub address: DocAddress,
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Place) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Place) -> std::cmp::Ordering {
        (self.rank, self.id, self.view, self.address).cmp(&(other.rank, other.id, other.view, other.address))
    }
}

impl Place {
    /// As it travels.
    pub(super) fn cursor(&self, sort: Sort) -> Cursor {
        let key = match sort {
            Sort::Relevance => score_key(self.rank as f32 / SCALE),
            Sort::New => self.rank,
        };
        Cursor { sort, key, id: Uuid::from_u128(self.id) }
    }

    /// The rank of a place that has travelled.
    pub(super) fn rank_of(cursor: &Cursor) -> u64 {
        match cursor.sort {
            Sort::Relevance => (key_score(cursor.key) * SCALE).round() as u64,
            Sort::New => cursor.key,
        }
    }

    pub(super) fn score(&self, sort: Sort) -> f32 {
        if sort == Sort::Relevance { self.rank as f32 / SCALE } else { 0.0 }
    }
}

/// What is searched for, in all views alike.
pub(super) struct Ranking<'a> {
    pub search: &'a Search,
    pub reading: &'a Reading,
    pub plan: &'a Plan,
    /// When nobody waits for the answer any more.
    pub deadline: Option<Instant>,
}

/// Finds the page in these views; and which of them cannot be read.
///
/// # Errors
/// [`SearchError::Late`] when the time is over.
pub(super) fn rank(views: &[View], ranking: &Ranking<'_>) -> Result<(Page, BTreeMap<usize, SearchError>), SearchError> {
    let sort = ranking.search.effective_sort();
    let mut broken = BTreeMap::new();
    let mut scan = Scan {
        ranking,
        sort,
        after: ranking.search.after.map(|cursor| (Place::rank_of(&cursor), cursor.id.as_u128())),
        best: BinaryHeap::with_capacity(ranking.search.limit + 1),
        page: Page::default(),
        totals: vec![0; views.len()],
        looks: 0,
        rows_looked_at: 0,
        window: Window::new(),
    };
    if ranking.reading.hopeless {
        return Ok((scan.page, broken));
    }
    let mut segments: Vec<(usize, u32, i64)> = Vec::new();
    let mut compiled = Vec::with_capacity(views.len());
    for (number, view) in views.iter().enumerate() {
        let newest = view.searcher.segment_readers().iter().map(|segment| Ok(segment.fast_fields().i64(CREATED)?.max_value()));
        match (newest.collect::<tantivy::Result<Vec<i64>>>(), Compiled::of(view, ranking)) {
            (Ok(newest), Ok(ready)) => {
                segments.extend((0..).zip(newest).map(|(ordinal, newest)| (number, ordinal, newest)));
                compiled.push(Some(ready));
            }
            (Err(error), _) => drop((broken.insert(number, error.into()), compiled.push(None))),
            (_, Err(error)) => drop((broken.insert(number, error), compiled.push(None))),
        }
    }
    if sort == Sort::New {
        // The newest first: of the others, little can be on the page.
        segments.sort_by_key(|(_, _, newest)| Reverse(*newest));
    }
    for (number, ordinal, newest) in segments {
        let view = &views[number];
        let Some(ready) = compiled[number].as_ref().filter(|_| !broken.contains_key(&number)) else { continue };
        match scan.segment(view, number, ordinal, view.searcher.segment_reader(ordinal), newest, ready) {
            Ok(()) if scan.page.is_cut => break,
            Ok(()) => {}
            Err(SearchError::Late) => return Err(SearchError::Late),
            Err(error) => {
                // It is asked for elsewhere, as a whole.
                scan.best.retain(|Reverse(place)| place.view != number);
                scan.totals[number] = 0;
                scan.window = Window::new();
                broken.insert(number, error);
            }
        }
    }
    let Scan { best, mut page, totals, .. } = scan;
    page.total = totals.iter().sum();
    page.places = best.into_sorted_vec().into_iter().map(|Reverse(place)| place).collect();
    Ok((page, broken))
}

/// A search in the terms of one view.
struct Compiled {
    terms: Vec<Weighted>,
    /// Words of a prefix, by its group and field, in their order: a walk over that part of a dictionary finds them all.
    prefixes: Vec<Prefixed>,
    /// Words that say little, with their weights.
    lesser: Vec<(Term, f32)>,
    /// What a text's length takes from a match, by field.
    norms: Vec<(Field, Box<[f32; 256]>)>,
    /// All of these, each one of its terms.
    filters: Vec<Vec<Term>>,
    excluded: Vec<Term>,
    worth: Worth,
}

/// A term and what it is worth.
struct Weighted {
    term: Term,
    group: usize,
    weight: f32,
    /// By number of [`Compiled::norms`].
    norm: usize,
}

/// Many words that begin alike.
struct Prefixed {
    field: Field,
    beginning: String,
    group: usize,
    norm: usize,
    /// With their weights.
    words: BTreeMap<String, f32>,
}

/// From so many words of a prefix on, a walk over a dictionary is cheaper than to look each of them up.
const WALK_FROM: usize = 8;
/// Unless it is so short that most words between them are others.
const WALK_CHARS_MIN: usize = 3;

fn may_walk(wanted: &Wanted, forms: &[Form]) -> bool {
    wanted.by == By::Prefix && forms.len() >= WALK_FROM && wanted.text.chars().count() >= WALK_CHARS_MIN
}

/// How the worth of words becomes a score; the same in all views.
struct Worth {
    /// Of two words, what it adds to have both: more than one alone can be worth.
    both: u64,
    /// By how many are there, in parts of 1,024.
    coordination: Vec<u64>,
    /// What having a word as typed adds, by group.
    as_typed: Vec<u64>,
    /// What having it beside the next one adds at most.
    near: Vec<u64>,
    /// What words that say little add at most.
    lesser: u64,
}

impl Worth {
    fn of(plan: &Plan, reading: &Reading) -> Self {
        let weight =
            |forms: &Vec<Form>| forms.iter().map(|form| idf(plan, form) * form.closeness()).fold(0.0, f32::max) * (K1 + 1.0);
        let weights: Vec<f32> = plan.forms.iter().map(weight).collect();
        let groups = weights.iter().filter(|weight| **weight > 0.0).count() as u32;
        let part = |weight: f32, part: f32| (weight * part * SCALE) as u64;
        let typed = |place: usize| {
            let is_stem = matches!(reading.wanted.get(place).map(|wanted| &wanted.by), Some(By::Stem(_)));
            // Where words must stand in a row, all that match have them so.
            is_stem && reading.phrases.is_empty() && plan.forms[place].iter().any(|form| form.edits == 0)
        };
        let as_typed: Vec<u64> =
            weights.iter().enumerate().map(|(place, weight)| if typed(place) { part(*weight, AS_TYPED) } else { 0 }).collect();
        let near = (0..weights.len()).map(|place| {
            let both = typed(place) && place + 1 < weights.len() && typed(place + 1);
            if both { part(weights[place].min(weights[place + 1]), NEAR) } else { 0 }
        });
        let near: Vec<u64> = near.collect();
        // One of two words brings its weight at most in each field, and what its typed form adds.
        let both = if groups == 2 { 4 * part(weights.iter().copied().fold(0.0, f32::max), 1.0) } else { 0 };
        let share = |have: u32| {
            let missing = 1.0 - have as f32 / groups.max(1) as f32;
            ((1.0 - COORDINATION * missing) * 1_024.0) as u64
        };
        let coordination = (0..=64).map(|have| if groups < 3 { 1_024 } else { share(have.min(groups)) }).collect();
        let lesser = plan.lesser.iter().map(|documents| part(lesser_weight(plan, *documents), 1.0)).sum();
        Self { both, coordination, as_typed, near, lesser }
    }

    /// What a closer look can add at most to a document that has these words.
    fn bonus_max(&self, has: u64) -> u64 {
        let mut most = self.lesser;
        let mut left = has;
        while left != 0 {
            let group = left.trailing_zeros() as usize;
            left &= left - 1;
            most += self.as_typed[group];
            if has & (1 << ((group + 1) % 64)) != 0 {
                most += self.near[group];
            }
        }
        most
    }

    fn score(&self, sum: u32, has: u64) -> u64 {
        let (sum, have) = (sum.min(SUM_MAX), has.count_ones());
        match self.both {
            0 => u64::from(sum) * self.coordination[have as usize] / 1_024,
            both if have == 2 => both + u64::from(sum),
            // Whatever adds to it, it stays below.
            both => u64::from(sum).min(both.saturating_sub(self.bonus_max(u64::MAX >> (64 - self.near.len())) + 1)),
        }
    }
}

fn idf(plan: &Plan, form: &Form) -> f32 {
    rarity(plan, form.documents)
}

/// What a word that says little is worth.
fn lesser_weight(plan: &Plan, documents: u64) -> f32 {
    rarity(plan, documents).min(LESSER) * (K1 + 1.0)
}

/// BM25's IDF.
fn rarity(plan: &Plan, having: u64) -> f32 {
    // Partitions were asked one after the other, so what they say may not agree.
    let documents = plan.documents.max(having) as f32;
    let having = having as f32;
    (1.0 + (documents - having + 0.5) / (having + 0.5)).ln()
}

impl Compiled {
    fn of(view: &View, ranking: &Ranking<'_>) -> Result<Self, SearchError> {
        let Ranking { search, reading, plan, .. } = ranking;
        let layout = &view.layout;
        let mut norms: Vec<(Field, Box<[f32; 256]>)> = Vec::new();
        let mut norm_of = |field: Field| -> tantivy::Result<usize> {
            if let Some(known) = norms.iter().position(|(known, _)| *known == field) {
                return Ok(known);
            }
            norms.push((field, lengths(view.average(field, plan)?)));
            Ok(norms.len() - 1)
        };
        let (mut terms, mut prefixes) = (Vec::new(), Vec::new());
        for (group, forms) in plan.forms.iter().enumerate() {
            if let Some(wanted) = reading.wanted.get(group).filter(|wanted| may_walk(wanted, forms)) {
                for (field, measured, boost) in layout.words_scored() {
                    let weight = |form: &Form| idf(plan, form) * (K1 + 1.0) * boost * SCALE;
                    prefixes.push(Prefixed {
                        field,
                        beginning: wanted.text.clone(),
                        group,
                        norm: norm_of(measured)?,
                        words: forms.iter().map(|form| (form.text.clone(), weight(form))).collect(),
                    });
                }
                continue;
            }
            for form in forms {
                let weight = idf(plan, form) * form.closeness() * (K1 + 1.0);
                let mut add = |field: Field, boost: f32, norm: usize| {
                    terms.push(Weighted { term: Term::from_field_text(field, &form.text), group, weight: weight * boost, norm });
                };
                match form.kind {
                    FormKind::Stem => {
                        for (field, boost) in &layout.stems {
                            add(*field, *boost, norm_of(*field)?);
                        }
                    }
                    FormKind::Pair => {
                        for (field, boost) in &layout.pairs {
                            add(*field, *boost, norm_of(*field)?);
                        }
                    }
                    FormKind::Word => {
                        for (field, measured, boost) in layout.words_scored() {
                            add(field, boost, norm_of(measured)?);
                        }
                    }
                }
            }
        }
        let labelled = |label: String| layout.labelled(&label);
        let mut filters: Vec<Vec<Term>> = Vec::new();
        if !search.kinds.is_empty() {
            filters.push(search.kinds.iter().map(|kind| labelled(label::kind(*kind))).collect());
        }
        filters.extend(search.author.map(|author| vec![labelled(label::author(author))]));
        filters.extend(search.tag.as_ref().map(|tag| vec![labelled(label::tag(tag))]));
        let written = |word: &str| layout.words.iter().map(|field| Term::from_field_text(*field, word)).collect::<Vec<_>>();
        for phrase in &reading.phrases {
            filters.extend(phrase.iter().map(|(_, word)| written(word)));
        }
        let mut excluded = Vec::new();
        let mut ruled_out = plan.excluded.iter();
        for one in &reading.excluded {
            match one {
                Excluded::Stem(stem) => {
                    excluded.extend(layout.stems.iter().map(|(field, _)| Term::from_field_text(*field, stem)));
                }
                Excluded::Prefix(_) => excluded.extend(ruled_out.next().into_iter().flatten().flat_map(|word| written(word))),
                Excluded::Phrase(_) => {}
            }
        }
        let (field, _) = *layout.stems.last().expect("something is scored");
        norm_of(field)?;
        let lesser = reading.lesser.iter().zip(&plan.lesser);
        let lesser =
            lesser.map(|(stem, documents)| (Term::from_field_text(field, stem), lesser_weight(plan, *documents) * SCALE));
        let lesser = lesser.collect();
        Ok(Self { terms, prefixes, lesser, norms, filters, excluded, worth: Worth::of(plan, reading) })
    }
}

/// What the length of a text takes from a match, by tantivy's code of the length.
fn lengths(average: f32) -> Box<[f32; 256]> {
    let mut table = Box::new([0.0; 256]);
    for (code, length) in (0..=u8::MAX).zip(table.iter_mut()) {
        *length = K1 * (1.0 - B + B * FieldNormReader::id_to_fieldnorm(code) as f32 / average);
    }
    table
}

/// The numbers of the documents of a window.
struct Window {
    sums: Box<[u32; WINDOW]>,
    /// Which words each has.
    has: Box<[u64; WINDOW]>,
    matches: Bits,
}

type Bits = [u64; WINDOW / 64];

impl Window {
    fn new() -> Self {
        Self { sums: Box::new([0; WINDOW]), has: Box::new([0; WINDOW]), matches: [0; WINDOW / 64] }
    }
}

/// A term at work in a segment.
struct Scorer<'a> {
    postings: Postings,
    weight: f32,
    bit: u64,
    norms: FieldNormReader,
    lengths: &'a [f32; 256],
}

impl Scorer<'_> {
    /// What the term is worth in a document that has it so often.
    fn worth(weight: f32, freq: u32, length: f32) -> u32 {
        let freq = freq as f32;
        (weight * freq / (freq + length)) as u32
    }

    /// The same for one document, which is no earlier than that of the last call.
    fn score_of(&mut self, doc: DocId) -> u32 {
        if self.postings.doc() < doc {
            self.postings.seek(doc);
        }
        if self.postings.doc() != doc {
            return 0;
        }
        Self::worth(self.weight, self.postings.freq(), self.lengths[usize::from(self.norms.fieldnorm_id(doc))])
    }
}

struct Scan<'a> {
    ranking: &'a Ranking<'a>,
    sort: Sort,
    after: Option<(u64, u128)>,
    /// The worst on top, so that a better one can take its place.
    best: BinaryHeap<Reverse<Place>>,
    page: Page,
    /// Of each view.
    totals: Vec<u64>,
    /// For what a closer look adds.
    looks: u64,
    /// For words in a row.
    rows_looked_at: u64,
    window: Window,
}

/// What a document's place is told by.
struct Columns {
    created: Column<i64>,
    id_high: Column<u64>,
    id_low: Column<u64>,
}

impl Columns {
    fn id(&self, doc: DocId) -> u128 {
        let half = |column: &Column<u64>| column.first(doc).unwrap_or(0);
        Uuid::from_u64_pair(half(&self.id_high), half(&self.id_low)).as_u128()
    }

    fn created(&self, doc: DocId) -> i64 {
        self.created.first(doc).unwrap_or(0)
    }
}

impl Scan<'_> {
    fn segment(
        &mut self,
        view: &View,
        number: usize,
        ordinal: u32,
        segment: &SegmentReader,
        newest: i64,
        compiled: &Compiled,
    ) -> Result<(), SearchError> {
        let Ranking { search, reading, .. } = *self.ranking;
        let words_match = !reading.wanted.is_empty() && reading.phrases.is_empty();
        let ranked = self.sort == Sort::Relevance && !reading.wanted.is_empty();
        let everything = !words_match
            && compiled.filters.is_empty()
            && reading.excluded.is_empty()
            && search.from.is_none()
            && search.to.is_none();
        if everything && self.sort == Sort::New && self.is_behind_the_page(time_key(newest)) {
            self.totals[number] += u64::from(segment.num_docs());
            self.page.more = true;
            return Ok(());
        }
        let mut scorers = Vec::new();
        let record = if ranked { IndexRecordOption::WithFreqs } else { IndexRecordOption::Basic };
        if words_match || ranked {
            for Weighted { term, group, weight, norm } in &compiled.terms {
                let inverted = segment.inverted_index(term.field())?;
                let Some(info) = inverted.get_term_info(term)? else { continue };
                let (field, lengths) = &compiled.norms[*norm];
                scorers.push(Scorer {
                    postings: Postings::new(inverted.read_block_postings_from_terminfo(&info, record)?),
                    weight: *weight * SCALE,
                    bit: 1 << (group % 64),
                    norms: segment.get_fieldnorms_reader(*field)?,
                    lengths,
                });
            }
            for Prefixed { field, beginning, group, norm, words } in &compiled.prefixes {
                let inverted = segment.inverted_index(*field)?;
                let mut dictionary = inverted.terms().range().ge(beginning).into_stream()?;
                let (measured, lengths) = &compiled.norms[*norm];
                let Some((last, _)) = words.last_key_value() else { continue };
                while let Some((term, info)) = dictionary.next()
                    && term <= last.as_bytes()
                {
                    let Some(weight) = std::str::from_utf8(term).ok().and_then(|term| words.get(term)) else { continue };
                    scorers.push(Scorer {
                        postings: Postings::new(inverted.read_block_postings_from_terminfo(info, record)?),
                        weight: *weight,
                        bit: 1 << (group % 64),
                        norms: segment.get_fieldnorms_reader(*measured)?,
                        lengths,
                    });
                }
            }
        }
        if words_match && scorers.is_empty() {
            return Ok(());
        }
        let mut filters = Vec::with_capacity(compiled.filters.len());
        for terms in &compiled.filters {
            let lists = open(segment, terms)?;
            if lists.is_empty() {
                return Ok(());
            }
            filters.push(lists);
        }
        // The rarest leads, and the others are looked at where it is.
        filters.sort_by_key(|lists| lists.iter().map(|list| u64::from(list.documents())).sum::<u64>());
        let mut excluded = open(segment, &compiled.excluded)?;
        let phrases = |phrase: &Vec<(usize, String)>| InARow::of(segment, &view.layout.words, phrase);
        let mut required = reading.phrases.iter().map(phrases).collect::<tantivy::Result<Vec<_>>>()?;
        let ruled_out = reading.excluded.iter().filter_map(|excluded| match excluded {
            Excluded::Phrase(phrase) => Some(phrases(phrase)),
            _ => None,
        });
        let mut ruled_out = ruled_out.collect::<tantivy::Result<Vec<_>>>()?;
        let mut typed = Typed::of(segment, &view.layout.words, reading, &compiled.worth.as_typed, &compiled.worth.near);
        let mut lesser = Vec::with_capacity(compiled.lesser.len());
        if ranked {
            for (term, weight) in &compiled.lesser {
                let field = term.field();
                let inverted = segment.inverted_index(field)?;
                let Some(postings) = inverted.read_block_postings(term, IndexRecordOption::WithFreqs)? else { continue };
                let lengths = compiled.norms.iter().find(|(of, _)| *of == field).map(|(_, lengths)| &**lengths);
                lesser.push(Scorer {
                    postings: Postings::new(postings),
                    weight: *weight,
                    bit: 0,
                    norms: segment.get_fieldnorms_reader(field)?,
                    lengths: lengths.expect("it was measured above"),
                });
            }
        }
        let fast = segment.fast_fields();
        let columns = Columns { created: fast.i64(CREATED)?, id_high: fast.u64(ID_HIGH)?, id_low: fast.u64(ID_LOW)? };
        let alive = segment.alive_bitset();
        let micros = |time: jiff::Timestamp| time.as_microsecond();
        let span = (search.from.map(micros), search.to.map(micros));
        let max_doc = segment.max_doc();
        let mut base: DocId = 0;
        while base < max_doc {
            if self.ranking.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(SearchError::Late);
            }
            // Where the next match can be.
            let mut next = base;
            if words_match {
                next = next.max(scorers.iter().map(|scorer| scorer.postings.doc()).min().unwrap_or(TERMINATED));
            }
            for lists in &mut filters {
                lists.iter_mut().for_each(|list| list.seek(next));
                next = next.max(lists.iter().map(Postings::doc).min().unwrap_or(TERMINATED));
            }
            if next >= max_doc {
                break;
            }
            base = next / WINDOW as u32 * WINDOW as u32;
            let end = (base + WINDOW as u32).min(max_doc);
            self.fill(&mut scorers, &mut filters, &mut excluded, (base, end), words_match, ranked);
            for block in 0..WINDOW / 64 {
                let mut bits = std::mem::take(&mut self.window.matches[block]);
                while bits != 0 {
                    let place = block * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    let doc = base + place as u32;
                    let sum = std::mem::take(&mut self.window.sums[place]);
                    let has = std::mem::take(&mut self.window.has[place]);
                    if alive.is_some_and(|alive| !alive.is_alive(doc)) {
                        continue;
                    }
                    if span != (None, None) {
                        let created = columns.created(doc);
                        if span.0.is_some_and(|from| created < from) || span.1.is_some_and(|to| created >= to) {
                            continue;
                        }
                    }
                    if !required.is_empty() || !ruled_out.is_empty() {
                        self.rows_looked_at += 1;
                        if !required.iter_mut().all(|phrase| phrase.is_at(doc))
                            || ruled_out.iter_mut().any(|phrase| phrase.is_at(doc))
                        {
                            continue;
                        }
                    }
                    self.totals[number] += 1;
                    let base_rank = match self.sort {
                        Sort::Relevance => compiled.worth.score(sum, has),
                        Sort::New => time_key(columns.created(doc)),
                    };
                    let lazy = (&mut typed, lesser.as_mut_slice());
                    self.offer(doc, base_rank, has, (number, ordinal), &columns, lazy, &compiled.worth)?;
                }
            }
            if self.rows_looked_at > LOOKS_MAX {
                self.page.is_cut = true;
                return Ok(());
            }
            base = end;
        }
        Ok(())
    }

    /// Finds out what matches in a window, but for what takes a look at each document.
    fn fill(
        &mut self,
        scorers: &mut [Scorer<'_>],
        filters: &mut [Vec<Postings>],
        excluded: &mut [Postings],
        (base, end): (DocId, DocId),
        words_match: bool,
        ranked: bool,
    ) {
        let Window { sums, has, matches } = &mut self.window;
        let mut filters = filters.iter_mut();
        if !words_match {
            match filters.next() {
                Some(lists) => set(lists, base, end, matches),
                None => (base..end).for_each(|doc| mark(matches, (doc - base) as usize)),
            }
        }
        if words_match {
            for scorer in scorers.iter_mut() {
                let Scorer { postings, weight, bit, norms, lengths } = scorer;
                if postings.doc() < base {
                    postings.seek(base);
                }
                let (weight, bit) = (*weight, *bit);
                if ranked {
                    postings.take_before(end, |doc, freq| {
                        let place = (doc - base) as usize;
                        sums[place] += Scorer::worth(weight, freq, lengths[usize::from(norms.fieldnorm_id(doc))]);
                        has[place] |= bit;
                        mark(matches, place);
                    });
                } else {
                    postings.docs_before(end, |doc| mark(matches, (doc - base) as usize));
                }
            }
        }
        for lists in filters {
            let count: u32 = matches.iter().map(|bits| bits.count_ones()).sum();
            if count == 0 {
                break;
            }
            if (count as usize) < WINDOW / 64 {
                // Few are left: each is looked for, and what lies between is passed over.
                for (block, matches) in matches.iter_mut().enumerate() {
                    let mut bits = *matches;
                    while bits != 0 {
                        let bit = bits & bits.wrapping_neg();
                        bits &= bits - 1;
                        let doc = base + (block * 64) as u32 + bit.trailing_zeros();
                        let mut there = false;
                        for list in lists.iter_mut() {
                            if list.doc() < doc {
                                list.seek(doc);
                            }
                            there |= list.doc() == doc;
                        }
                        if !there {
                            *matches &= !bit;
                        }
                    }
                }
                continue;
            }
            let mut allowed: Bits = [0; WINDOW / 64];
            set(lists, base, end, &mut allowed);
            matches.iter_mut().zip(allowed).for_each(|(matches, allowed)| *matches &= allowed);
        }
        if !excluded.is_empty() {
            let mut gone: Bits = [0; WINDOW / 64];
            set(excluded, base, end, &mut gone);
            matches.iter_mut().zip(gone).for_each(|(matches, gone)| *matches &= !gone);
        }
        if ranked && !words_match {
            // Words only rank what must be there anyway, which are few.
            for (block, matches) in matches.iter().enumerate() {
                let mut bits = *matches;
                while bits != 0 {
                    let place = block * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    for scorer in scorers.iter_mut() {
                        let worth = scorer.score_of(base + place as u32);
                        sums[place] += worth;
                        has[place] |= if worth > 0 { scorer.bit } else { 0 };
                    }
                }
            }
        } else if ranked {
            // What words have left on documents that do not match.
            for (block, bits) in matches.iter().enumerate() {
                if *bits != u64::MAX {
                    for place in block * 64..block * 64 + 64 {
                        if bits & (1 << (place % 64)) == 0 {
                            (sums[place], has[place]) = (0, 0);
                        }
                    }
                }
            }
        }
    }

    fn is_behind_the_page(&self, rank: u64) -> bool {
        self.best.len() == self.ranking.search.limit && self.best.peek().is_some_and(|Reverse(worst)| rank < worst.rank)
    }

    /// Puts a match on the page, if it belongs there.
    #[expect(clippy::too_many_arguments, reason = "the innermost step of a scan, which would only pack and unpack them")]
    fn offer(
        &mut self,
        doc: DocId,
        rank: u64,
        has: u64,
        (view, ordinal): (usize, u32),
        columns: &Columns,
        (typed, lesser): (&mut Typed<'_>, &mut [Scorer<'_>]),
        worth: &Worth,
    ) -> Result<(), SearchError> {
        let bonus_max = if self.sort == Sort::Relevance { worth.bonus_max(has) } else { 0 };
        if self.after.is_some_and(|(after, _)| rank > after) {
            return Ok(());
        }
        if self.is_behind_the_page(rank + bonus_max) {
            self.page.more |= self.after.is_none_or(|(after, _)| rank + bonus_max < after);
            if self.page.more {
                return Ok(());
            }
        }
        let mut rank = rank;
        // Beyond that nobody gains anything: the order of very many equals is the worse for it, and nobody is left out.
        if bonus_max > 0 && self.looks < LOOKS_MAX {
            // Each word is looked up by itself.
            self.looks += u64::from(has.count_ones()) + lesser.len() as u64;
            rank += typed.bonus(doc, has)?;
            rank += lesser.iter_mut().map(|word| u64::from(word.score_of(doc))).sum::<u64>();
        }
        let place = Place { rank, id: columns.id(doc), view, address: DocAddress::new(ordinal, doc) };
        if self.after.is_some_and(|after| (place.rank, place.id) >= after) {
            return Ok(());
        }
        self.best.push(Reverse(place));
        if self.best.len() > self.ranking.search.limit {
            self.best.pop();
            self.page.more = true;
        }
        Ok(())
    }
}

fn mark(bits: &mut Bits, place: usize) {
    bits[place / 64] |= 1 << (place % 64);
}

fn set(lists: &mut [Postings], base: DocId, end: DocId, bits: &mut Bits) {
    for list in lists {
        if list.doc() < base {
            list.seek(base);
        }
        list.docs_before(end, |doc| mark(bits, (doc - base) as usize));
    }
}

/// The postings of those terms that a segment has.
fn open(segment: &SegmentReader, terms: &[Term]) -> tantivy::Result<Vec<Postings>> {
    let mut lists = Vec::with_capacity(terms.len());
    for term in terms {
        let inverted = segment.inverted_index(term.field())?;
        lists.extend(inverted.read_block_postings(term, IndexRecordOption::Basic)?.map(Postings::new));
    }
    Ok(lists)
}
