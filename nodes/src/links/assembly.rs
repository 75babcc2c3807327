//! Bodies that arrive in chunks.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use super::envelope::Malformed;

/// A sender finishes one large body before it begins the next; some slack, and a bound on the memory of a link.
const PARTIAL_MAX: usize = 4;

/// The bodies of one link and direction that are not complete.
pub(super) struct Assembly<H> {
    partial: HashMap<u64, Partial<H>>,
}

struct Partial<H> {
    head: H,
    total: usize,
    body: BytesMut,
}

impl<H> Default for Assembly<H> {
    fn default() -> Self {
        Self { partial: HashMap::new() }
    }
}

impl<H> Assembly<H> {
    /// A body of `total` bytes will come, for `id`.
    pub(super) fn begin(&mut self, id: u64, head: H, total: u32) -> Result<(), Malformed> {
        if self.partial.len() >= PARTIAL_MAX {
            return Err(Malformed("more large bodies at a time than a sender begins"));
        }
        // Memory is taken as bytes come, not as they are promised.
        let partial = Partial { head, total: total as usize, body: BytesMut::new() };
        match self.partial.insert(id, partial) {
            None => Ok(()),
            Some(_) => Err(Malformed("the same body begins twice")),
        }
    }

    /// A piece of a body; the whole of it with the last piece.
    pub(super) fn add(&mut self, id: u64, chunk: &[u8]) -> Result<Option<(H, Bytes)>, Malformed> {
        let partial = self.partial.get_mut(&id).ok_or(Malformed("a chunk of no body"))?;
        if partial.body.len() + chunk.len() > partial.total {
            return Err(Malformed("more of a body than was promised"));
        }
        partial.body.extend_from_slice(chunk);
        if partial.body.len() < partial.total {
            return Ok(None);
        }
        let Partial { head, body, .. } = self.partial.remove(&id).expect("it was just here");
        Ok(Some((head, body.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_whole_with_its_last_chunk() {
        let mut assembly = Assembly::default();
        assembly.begin(1, "head", 5).unwrap();
        assert_eq!(assembly.add(1, b"abc"), Ok(None));
        assert_eq!(assembly.add(1, b"de"), Ok(Some(("head", Bytes::from_static(b"abcde")))));
        assert!(assembly.add(1, b"f").is_err());
    }

    #[test]
    fn more_than_was_promised_is_refused() {
        let mut assembly = Assembly::default();
        assembly.begin(1, (), 2).unwrap();
        assert!(assembly.add(1, b"abc").is_err());
    }

    #[test]
    fn a_sender_cannot_begin_without_end() {
        let mut assembly = Assembly::default();
        let begun = (0..100).take_while(|id| assembly.begin(*id, (), 9).is_ok()).count();
        assert_eq!(begun, PARTIAL_MAX);
    }
}
