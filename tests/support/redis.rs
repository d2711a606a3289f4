//! A Redis of a test's own, to stop, freeze and bring back.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use plinth::config::SecretUrl;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{server, until};

/// Keeps its port while it is down. Gone when it is dropped, even while frozen.
pub struct PrivateRedis {
    program: String,
    port: u16,
    process: Option<Child>,
}

impl PrivateRedis {
    /// Running; `None` without the program.
    pub async fn start() -> Option<Self> {
        let mut redis = Self::absent()?;
        redis.appear().await;
        Some(redis)
    }

    /// Not running yet; `None` without the program.
    pub fn absent() -> Option<Self> {
        let program = server("TEST_REDIS_SERVER", "a Redis program")?;
        Some(Self { program, port: free_port(), process: None })
    }

    pub fn url(&self) -> SecretUrl {
        SecretUrl::new(format!("redis://127.0.0.1:{}", self.port))
    }

    /// Starts it, empty, and waits until it answers.
    pub async fn appear(&mut self) {
        assert!(self.process.is_none(), "it is running");
        let process = Command::new(&self.program)
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        let port = self.port;
        until("Redis answers", async || answers(port).await).await;
    }

    /// Ends it at once, with all it knows.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it is running");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Lets it accept connections, and answer none.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it is running");
        kill_process(Pid::from_child(process), signal).unwrap();
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// Below the ports that systems give out by themselves: one that is to be used again after a pause
/// must not be taken meanwhile.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() * 31 % 10_000).unwrap();
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

async fn answers(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(answer)) if &answer == b"+PONG")
}
