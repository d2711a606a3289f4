//! Standard output, written by a thread of its own: a reader that stalls must not stall requests.
//!
//! Lines are gathered for a moment and written together. To wake the thread for each would cost a
//! request more than the line itself.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait; what comes on top is dropped.
const MOST_WAITING: usize = 16 * 1024 * 1024;

/// What a buffer keeps of its memory when it has been written.
const KEPT: usize = 256 * 1024;

/// How long a line waits for others to be written with.
const GATHER: Duration = Duration::from_millis(10);

/// Longest the exit waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where lines are put. Cheap to clone.
#[derive(Clone)]
pub(super) struct Output(Arc<Shared>);

/// Writes the last lines when it is dropped.
pub(super) struct LastLines {
    output: Output,
    ended: Receiver<()>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    text: Vec<u8>,
    dropped: u64,
    closed: bool,
}

impl Output {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<(Self, LastLines)> {
        let output = Self(Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new() }));
        // As a file: the standard library would keep what could not be written, and begin with it again.
        let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let (ending, ended) = mpsc::channel::<()>();
        let lines = output.clone();
        thread::Builder::new().name("log".into()).spawn(move || {
            lines.write_all_there_is(&mut stdout);
            drop(ending);
        })?;
        Ok((output.clone(), LastLines { output, ended }))
    }

    /// Lines dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn put(&self, line: &[u8]) {
        let mut queue = self.lock();
        if queue.text.len() + line.len() > MOST_WAITING {
            queue.dropped += 1;
            return;
        }
        let was_empty = queue.text.is_empty();
        queue.text.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.0.filled.notify_one();
        }
    }

    fn write_all_there_is(&self, out: &mut impl Write) {
        let mut text = Vec::new();
        while self.gather() {
            mem::swap(&mut self.lock().text, &mut text);
            let lost = write(&text, out);
            self.lock().dropped += lost;
            text.clear();
            text.shrink_to(KEPT);
        }
    }

    /// Waits for lines; says whether there are any.
    fn gather(&self) -> bool {
        let nothing_new = |queue: &mut Queue| queue.text.is_empty() && !queue.closed;
        let waited = self.0.filled.wait_while(self.lock(), nothing_new);
        let queue = waited.unwrap_or_else(PoisonError::into_inner);
        let still_open = |queue: &mut Queue| !queue.closed;
        let waited = self.0.filled.wait_timeout_while(queue, GATHER, still_open);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !queue.text.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes lines; says how many could not be. What a reader has half of ends before the next begins.
fn write(mut text: &[u8], out: &mut impl Write) -> u64 {
    let mut half = false;
    while !text.is_empty() {
        match out.write(text) {
            Ok(written) if written > 0 => {
                half = text[written - 1] != b'\n';
                text = &text[written..];
            }
            // A pipe that does not block is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => {
                if half {
                    let _ = out.write(b"\n");
                }
                return text.iter().filter(|byte| **byte == b'\n').count() as u64;
            }
        }
    }
    0
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &Output {
    /// One whole line, as the layer writes them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LastLines {
    fn drop(&mut self) {
        self.output.lock().closed = true;
        self.output.0.filled.notify_one();
        // Nothing is ever sent: it ends with the thread, or when time is up.
        let _ = self.ended.recv_timeout(LAST_LINES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, fails as it is told to, and then for good.
    struct Poor(Vec<u8>, Vec<ErrorKind>);

    impl Write for Poor {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            match self.1.pop() {
                Some(kind) => Err(kind.into()),
                None => {
                    self.0.extend(&text[..text.len().min(3)]);
                    Ok(text.len().min(3))
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_pipe_is_waited_for_and_a_broken_one_costs_lines_that_are_counted() {
        let mut full = Poor(Vec::new(), vec![ErrorKind::WouldBlock, ErrorKind::Interrupted]);
        assert_eq!(write(b"one\ntwo\n", &mut full), 0);
        assert_eq!(full.0, b"one\ntwo\n");
        let mut broken = Poor(Vec::new(), vec![ErrorKind::StorageFull]);
        assert_eq!(write(b"one\ntwo\n", &mut broken), 2);
    }

    #[test]
    fn lines_over_the_limit_are_dropped_and_counted_and_the_others_stay_whole() {
        let output = Output(Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new() }));
        let line = vec![b'x'; MOST_WAITING / 4];
        for _ in 0..6 {
            (&output).write_all(&line).unwrap();
        }
        assert_eq!(output.dropped(), 2);
        output.lock().closed = true;
        let mut written = Vec::new();
        output.write_all_there_is(&mut written);
        assert_eq!(written.len(), MOST_WAITING);
    }
}
