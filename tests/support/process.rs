//! The real binary in a process of its own, with a folder and an environment of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

/// Longest to wait for anything; what takes this long on a busy machine has hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

const ANNOUNCED: &str = "the API is at ";

/// A temporary folder that goes when it is dropped.
pub struct Folder(PathBuf);

/// `plinth` running. It is killed when it is dropped.
pub struct Process {
    child: Child,
    out: watch::Receiver<Vec<String>>,
    err: watch::Receiver<Vec<String>>,
}

/// What is left of a process that ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` when a signal killed it.
    pub code: Option<i32>,
    /// What it wrote to standard output, and to standard error.
    pub out: Vec<String>,
    pub err: Vec<String>,
}

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("plinth-run-{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().next().is_none()
    }

    /// `plinth` in this folder, with nothing set but a port of the system's choosing. Backtraces
    /// are asked for, so that one that is printed is noticed.
    pub fn plinth<'a>(
        &self,
        arguments: &[&str],
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plinth"));
        command.args(arguments).current_dir(&self.0).env_clear();
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("PORT", "0").env("RUST_BACKTRACE", "1").envs(variables);
        command
    }

    /// Serves, and waits until it is ready.
    pub async fn serve<'a>(
        &self,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Process, String) {
        let mut process = Process::spawn(&mut self.plinth(&[], variables));
        let url = process.ready().await;
        (process, url)
    }

    /// Runs a command to its end.
    pub async fn run<'a>(
        &self,
        arguments: &[&str],
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Ended {
        Process::spawn(&mut self.plinth(arguments, variables)).ended().await
    }

    /// Runs `healthcheck`. It gives up after two seconds, which a busy machine may need, so that
    /// alone is asked again.
    pub async fn healthcheck<'a>(
        &self,
        variables: impl IntoIterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Ended {
        let answered = async {
            loop {
                let ended = self.run(&["healthcheck"], variables.clone()).await;
                if !ended.text().contains("takes longer than") {
                    return ended;
                }
            }
        };
        timeout(PATIENCE, answered).await.expect("healthcheck gets no answer")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let err = lines(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    /// The line of standard output, present or to come, that holds `text`.
    pub async fn line(&mut self, text: &str) -> String {
        let has = |line: &&String| line.contains(text);
        let found = timeout(PATIENCE, self.out.wait_for(|lines| lines.iter().any(|l| has(&l))));
        let found = found.await.map(|lines| lines.map(|l| l.iter().find(has).cloned()));
        match found {
            Ok(Ok(Some(line))) => line,
            _ => panic!("no line with {text:?} in {:#?}\n{:#?}", self.lines(), *self.err.borrow()),
        }
    }

    /// Waits until it is ready, and returns where it is, as it says itself.
    pub async fn ready(&mut self) -> String {
        let line = self.line(ANNOUNCED).await;
        let (_, url) = line.split_once(ANNOUNCED).unwrap();
        url.split_once("/api,").unwrap().0.to_owned()
    }

    /// What it has written to standard output so far.
    pub fn lines(&self) -> Vec<String> {
        self.out.borrow().clone()
    }

    /// Closes its standard output, with the next line it writes.
    pub fn stop_reading(&mut self) {
        self.out = watch::channel(Vec::new()).1;
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and its end.
    pub async fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ended {
        let closed = async {
            while self.out.changed().await.is_ok() {}
            while self.err.changed().await.is_ok() {}
        };
        let ended = timeout(PATIENCE, closed).await;
        let (out, err) = (self.lines(), self.err.borrow().clone());
        assert!(ended.is_ok(), "it does not end: {out:#?}\n{err:#?}");
        let status = self.child.wait().unwrap();
        Ended { code: status.code(), out, err }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Everything it wrote.
    pub fn text(&self) -> String {
        [self.out.join("\n"), self.err.join("\n")].join("\n")
    }
}

/// Collects lines on a thread; the channel closes with the pipe.
fn lines(pipe: impl Read + Send + 'static) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            if sender.is_closed() {
                return;
            }
            sender.send_modify(|lines| lines.push(line));
        }
    });
    receiver
}
