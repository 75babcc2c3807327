//! Who is asked.

use std::time::Duration;

use rookery_actors::search::index::Search;
use rookery_benches::{
    process,
    search::{ask::Ask, engine::Engine, plain::Plain},
};

/// Something that can be asked.
pub(crate) trait Searches {
    /// A question in its own terms.
    type Prepared;

    /// What need not be measured of a question.
    fn prepare(&mut self, ask: &Ask) -> anyhow::Result<Self::Prepared>;

    /// A page as JSON, and how many match.
    fn search(&mut self, question: &Self::Prepared) -> anyhow::Result<(Vec<u8>, u64)>;

    /// The CPU time that it has spent.
    fn cpu(&self) -> Duration;
}

/// Our engine.
pub(crate) struct Ours(Engine);

impl Ours {
    pub(crate) fn of(engine: Engine) -> Self {
        Self(engine)
    }
}

impl Searches for Ours {
    type Prepared = Search;

    fn prepare(&mut self, ask: &Ask) -> anyhow::Result<Search> {
        self.0.prepare(ask)
    }

    fn search(&mut self, question: &Search) -> anyhow::Result<(Vec<u8>, u64)> {
        self.0.search(question)
    }

    fn cpu(&self) -> Duration {
        process::own_cpu()
    }
}

/// Plain tantivy.
pub(crate) struct Tantivy(pub(crate) Plain);

impl Searches for Tantivy {
    type Prepared = Ask;

    fn prepare(&mut self, ask: &Ask) -> anyhow::Result<Ask> {
        Ok(ask.clone())
    }

    fn search(&mut self, question: &Ask) -> anyhow::Result<(Vec<u8>, u64)> {
        self.0.search(question)
    }

    fn cpu(&self) -> Duration {
        process::own_cpu()
    }
}
