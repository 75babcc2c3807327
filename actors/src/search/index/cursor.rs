//! A way through the postings of one term, window by window.

use tantivy::postings::BlockSegmentPostings;
use tantivy::{DocId, TERMINATED};

/// Where a scan of a list of postings is.
pub(super) struct Postings {
    block: BlockSegmentPostings,
    at: usize,
}

impl Postings {
    pub(super) fn new(block: BlockSegmentPostings) -> Self {
        Self { block, at: 0 }
    }

    /// The next document of it.
    pub(super) fn doc(&self) -> DocId {
        self.block.docs().get(self.at).copied().unwrap_or(TERMINATED)
    }

    /// How many documents there are in it, those that are gone included.
    pub(super) fn documents(&self) -> u32 {
        self.block.doc_freq()
    }

    /// How often the term is in the next document.
    pub(super) fn freq(&self) -> u32 {
        self.block.freqs().get(self.at).copied().unwrap_or(0)
    }

    /// Goes on with the first document from `target` on.
    pub(super) fn seek(&mut self, target: DocId) {
        let docs = self.block.docs();
        match docs.last() {
            None => {}
            Some(last) if *last >= target => self.at += docs[self.at..].partition_point(|doc| *doc < target),
            // The next block is likely, a jump is not.
            Some(_) => self.at = self.block.seek(target).min(self.block.docs().len()),
        }
        self.settle();
    }

    /// Takes every document before `end`, with how often the term is in it.
    pub(super) fn take_before(&mut self, end: DocId, mut take: impl FnMut(DocId, u32)) {
        loop {
            let docs = self.block.docs();
            let Some(last) = docs.last() else { return };
            let until = if *last < end { docs.len() } else { self.at + docs[self.at..].partition_point(|doc| *doc < end) };
            let freqs = self.block.freqs();
            for (doc, freq) in docs[self.at..until].iter().zip(&freqs[self.at..until]) {
                take(*doc, *freq);
            }
            self.at = until;
            if until < docs.len() {
                return;
            }
            self.block.advance();
            self.at = 0;
        }
    }

    /// The same without how often.
    pub(super) fn docs_before(&mut self, end: DocId, mut take: impl FnMut(DocId)) {
        loop {
            let docs = self.block.docs();
            let Some(last) = docs.last() else { return };
            let until = if *last < end { docs.len() } else { self.at + docs[self.at..].partition_point(|doc| *doc < end) };
            docs[self.at..until].iter().for_each(|doc| take(*doc));
            self.at = until;
            if until < docs.len() {
                return;
            }
            self.block.advance();
            self.at = 0;
        }
    }

    /// Never rests at the end of a block.
    fn settle(&mut self) {
        while self.at >= self.block.docs().len() && !self.block.docs().is_empty() {
            self.block.advance();
            self.at = 0;
        }
    }
}
