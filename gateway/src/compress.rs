//! Compression for those who ask for it, at no cost for those who do not.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::compression::{Compression, CompressionLayer};

/// Below this many bytes compression costs more than it saves.
const BYTES_MIN: u16 = 1024;

type When = tower_http::compression::predicate::And<
    tower_http::compression::predicate::And<SizeAbove, NotForContentType>,
    NotForContentType,
>;

/// Puts [`CompressIfAsked`] around a service.
#[derive(Clone, Copy)]
pub(crate) struct CompressLayer {
    pub(crate) enabled: bool,
}

impl<S: Clone> Layer<S> for CompressLayer {
    type Service = CompressIfAsked<S>;

    fn layer(&self, plain: S) -> Self::Service {
        let when = SizeAbove::new(BYTES_MIN.into()).and(NotForContentType::SSE).and(NotForContentType::IMAGES);
        let packed = CompressionLayer::new().compress_when(when).layer(plain.clone());
        CompressIfAsked { enabled: self.enabled, plain, packed }
    }
}

/// Sends a request through `packed` only if it accepts an encoding: the plain way wraps no body.
#[derive(Clone)]
pub(crate) struct CompressIfAsked<S> {
    enabled: bool,
    plain: S,
    packed: Compression<S, When>,
}

impl<S> Service<Request<Body>> for CompressIfAsked<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future, <Compression<S, When> as Service<Request<Body>>>::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready!(self.plain.poll_ready(cx))?;
        self.packed.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.enabled && request.headers().contains_key(header::ACCEPT_ENCODING) {
            Answer::Packed { future: self.packed.call(request) }
        } else {
            Answer::Plain { future: self.plain.call(request), vary: self.enabled }
        }
    }
}

pin_project! {
    /// The answer of either way.
    #[project = AnswerProjection]
    pub(crate) enum Answer<P, C> {
        Plain { #[pin] future: P, vary: bool },
        Packed { #[pin] future: C },
    }
}

impl<P, C, B, E> Future for Answer<P, C>
where
    P: Future<Output = Result<Response<Body>, E>>,
    C: Future<Output = Result<Response<B>, E>>,
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AnswerProjection::Plain { future, vary } => {
                let mut response = ready!(future.poll(cx))?;
                // A cache must know that another client would have got it packed.
                if *vary && response.body().size_hint().lower() >= BYTES_MIN.into() {
                    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
                }
                Poll::Ready(Ok(response))
            }
            AnswerProjection::Packed { future } => Poll::Ready(Ok(ready!(future.poll(cx))?.map(Body::new))),
        }
    }
}
