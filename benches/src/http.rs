//! A minimal HTTP/1.1 client: one connection, one request at a time, nothing but what a
//! load generator needs.
//!
//! It shares the processor with the server that it measures, so a request is formatted once
//! and sent many times, and of an answer only the status line and `content-length` are read.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Text in a request that gives way to sixteen digits which differ from send to send.
///
/// It is as long as what replaces it, so that `content-length` stays right.
pub const SERIAL: &str = "{serial-number-}";

/// Answers with more header lines than this are refused.
const HEADERS_MAX: usize = 64;
/// Large enough that most answers arrive in one read, and that the read which takes the last
/// byte is a short one: tokio then knows without another system call that nothing is left.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// A request in the form in which it goes over the wire.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
    /// Where the places of [`SERIAL`] begin.
    serials: Vec<usize>,
}

impl Request {
    /// A GET of a path (query included).
    pub fn get(path: &str) -> Self {
        Self::new("GET", path, &[], None)
    }

    /// A POST of a JSON text, which may hold [`SERIAL`].
    pub fn post(path: &str, headers: &[(&str, &str)], json: &str) -> Self {
        Self::new("POST", path, headers, Some(json))
    }

    /// Any request; a body is sent as JSON.
    pub fn new(method: &str, path: &str, headers: &[(&str, &str)], json: Option<&str>) -> Self {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(json) = json {
            text += &format!("content-type: application/json\r\ncontent-length: {}\r\n", json.len());
        }
        text += "\r\n";
        text += json.unwrap_or_default();
        let serials = text.match_indices(SERIAL).map(|(at, _)| at).collect();
        Self { bytes: text.into_bytes(), serials }
    }

    /// Writes the request over what `buffer` held, `serial` in place of [`SERIAL`].
    pub fn write(&self, serial: u64, buffer: &mut Vec<u8>) {
        buffer.clone_from(&self.bytes);
        for at in &self.serials {
            let mut rest = serial;
            for digit in buffer[*at..*at + SERIAL.len()].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
    }
}

/// An answer, within the buffer of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The status code.
    pub status: u16,
    /// The body, as it came.
    pub body: &'a [u8],
    head: &'a [u8],
}

impl<'a> Response<'a> {
    /// Whether the status is 200–299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed.parse(self.head).ok()?;
        let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(header.value).ok()
    }
}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects, with Nagle's algorithm off.
    ///
    /// # Errors
    /// When nobody listens at the address.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: vec![0; RECEIVE_BUFFER_BYTES] })
    }

    /// Sends a request and waits for its whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is not HTTP/1.1 with a `content-length`.
    /// The connection is of no use afterwards.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Response<'_>> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let mut head = None;
        let head = loop {
            if filled == self.received.len() {
                self.received.resize(2 * filled, 0);
            }
            let count = self.stream.read(&mut self.received[filled..]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
            if head.is_none() {
                head = Head::parse(&self.received[..filled])?;
            }
            if let Some(head) = head
                && filled >= head.bytes + head.body_bytes
            {
                break head;
            }
        };
        if filled > head.bytes + head.body_bytes {
            return Err(invalid("the answer is longer than it said"));
        }
        let (head_bytes, body) = self.received[..filled].split_at(head.bytes);
        Ok(Response { status: head.status, head: head_bytes, body })
    }
}

/// What the client wants to know of the lines before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
}

impl Head {
    /// Reads a head, or `None` if it has not arrived to its end.
    fn parse(received: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(bytes) = response.parse(received).map_err(invalid)? else {
            return Ok(None);
        };
        let status = response.code.expect("a complete head has a status");
        let body_bytes = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| str::from_utf8(header.value).ok()?.parse().ok());
        let body_bytes = match (status, body_bytes) {
            (204 | 304, _) => 0,
            (_, Some(bytes)) => bytes,
            // No chunked bodies: none of the answers that we measure is streamed.
            (_, None) => return Err(invalid("the answer has no content-length")),
        };
        Ok(Some(Self { status, bytes, body_bytes }))
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(request: &Request, serial: u64) -> String {
        let mut buffer = b"left over".to_vec();
        request.write(serial, &mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn a_get_is_a_request_line_and_a_host() {
        assert_eq!(written(&Request::get("/a?b=c"), 0), "GET /a?b=c HTTP/1.1\r\nhost: localhost\r\n\r\n");
    }

    #[test]
    fn a_serial_takes_every_place_and_keeps_the_length() {
        let json = format!(r#"{{"a":"{SERIAL}","b":"{SERIAL}"}}"#);
        let request = Request::post("/", &[("authorization", "Bearer t")], &json);
        assert_eq!(
            written(&request, 90_210),
            "POST / HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer t\r\n\
             content-type: application/json\r\ncontent-length: 47\r\n\r\n\
             {\"a\":\"0000000000090210\",\"b\":\"0000000000090210\"}"
        );
    }

    #[test]
    fn a_head_is_awaited_to_its_end() {
        let head = b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(Head::parse(&head[..cut]).unwrap(), None, "{cut} bytes");
        }
        let whole = Head { status: 201, bytes: head.len(), body_bytes: 7 };
        assert_eq!(Head::parse(head).unwrap(), Some(whole));
    }

    #[test]
    fn an_answer_without_content_may_lack_its_length() {
        let head = Head::parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!(head.unwrap().body_bytes, 0);
    }

    #[test]
    fn an_answer_of_unknown_length_is_refused() {
        let head = Head::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(head.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let response = Response { status: 200, head: b"HTTP/1.1 200 OK\r\nX-Search-Token: t0k\r\n\r\n", body: b"" };
        assert_eq!(response.header("x-search-token"), Some("t0k"));
        assert_eq!(response.header("etag"), None);
    }
}
