//! HTTP written by hand, for what a well-behaved client would not send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::process::PATIENCE;

/// A plan that is accepted.
pub const PLAN: &str = r#"{"name":"A plan","start_date":"2027-03-01","end_date":"2027-05-31"}"#;

pub async fn connect(url: &str) -> TcpStream {
    TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Sends all of it, and reads until the server closes.
pub async fn exchange(url: &str, request: &[u8]) -> String {
    let mut stream = connect(url).await;
    stream.write_all(request).await.unwrap();
    rest(&mut stream).await
}

/// Reads until the server closes, by FIN or by RST.
pub async fn rest(stream: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    let read = async {
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            text.extend_from_slice(&buffer[..read]);
        }
    };
    timeout(PATIENCE, read).await.expect("the server does not close");
    String::from_utf8_lossy(&text).into_owned()
}

/// Begins to post a plan and holds back its body. It returns when a handler waits for the body.
pub async fn begin_post(url: &str, headers: &str) -> TcpStream {
    let mut stream = connect(url).await;
    let length = PLAN.len();
    let head = format!(
        "POST /api/v1/plans HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nexpect: 100-continue\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// Lets the body go, and returns the answer. The connection must be closing.
pub async fn finish_post(mut stream: TcpStream) -> String {
    stream.write_all(PLAN.as_bytes()).await.unwrap();
    rest(&mut stream).await
}
