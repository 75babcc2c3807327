//! The other end of a [`super::route::Router`]: answers what other nodes ask of the shards that are served here.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Context, Runtime, activation,
    wire::{self, Answer, Asked},
};
use crate::{
    entity::{AskError, Failure},
    episodes,
    service::Service,
};

impl<S: Service> Runtime<S> {
    /// Answers a question from another node, whatever becomes of it: who asked waits for the answer.
    ///
    /// Nothing is passed on: what is not served here is answered with [`Failure::Moved`], and who asked finds the way.
    pub async fn serve(&self, question: &[u8]) -> Bytes {
        let answer = match wire::decode::<(Duration, Asked<S>)>(question) {
            Ok((left, _)) if left.is_zero() => Answer::Refused(Failure::Expired),
            Ok((left, question)) => self.answer(question, Instant::now() + left).await,
            Err(error) => {
                episodes::error("questions of other nodes cannot be read", S::NAME, &error);
                Answer::Refused(Failure::Unavailable(format!("the question cannot be read: {error}")))
            }
        };
        wire::answer(&answer)
    }

    async fn answer(&self, question: Asked<S>, deadline: Instant) -> Answer<S> {
        match question {
            Asked::Ask(id, command, traceparent, idempotency) => {
                let context = Context { deadline, traceparent, idempotency };
                Answer::Asked(match activation::ask(&self.inner, id, command, context).await {
                    activation::Asked::Answered(answer) => answer,
                    activation::Asked::NotHere(failure, ..) => Err(AskError::Failed(failure)),
                })
            }
            Asked::Query(query) => Answer::Queried(S::answer(self, &query, deadline).await),
            Asked::Log(ask) => Answer::Log(self.read_log(&ask.positions, ask.bytes_max, ask.wait).await),
            Asked::Apply(shard, slice) => Answer::Applied(self.apply_here(shard, &slice).await),
            Asked::Bury(shard, letter) => Answer::Applied(self.bury_here(shard, letter).await),
            Asked::Replay(shard, source, seq) => Answer::Replayed(self.replay_here(shard, source, seq).await),
            Asked::Borrow(reader, id, query) => {
                let (answer, loan) = self.lend(&reader, id, &query, deadline).await;
                Answer::Lent(answer, loan)
            }
            Asked::Extend(reader, session, evicted) => Answer::Extended(self.extend(&reader, session, &evicted)),
            Asked::Return(reader, session) => {
                self.end_session(&reader, session);
                Answer::Extended(None)
            }
            Asked::Readdress(shard, letter) => Answer::Applied(self.readdress_here(shard, letter).await),
            Asked::Recall(life, what) => Answer::Recalled(self.give_back(life, &what)),
        }
    }
}
