//! Panics: one log line each, wherever they happen.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo};

use futures_util::FutureExt;

tokio::task_local! {
    static CAUGHT: ();
}

thread_local! {
    static LAST: Cell<Option<String>> = const { Cell::new(None) };
}

/// A panic inside [`catch`]: where, and with which message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Panicked(String);

/// Runs `work`; a panic in it becomes an error, and the caller's to report.
///
/// # Errors
/// [`Panicked`], when it did.
pub async fn catch<F: Future>(work: F) -> Result<F::Output, Panicked> {
    let work = AssertUnwindSafe(CAUGHT.scope((), work));
    work.catch_unwind().await.map_err(|_| {
        // The hook ran on this thread, just before.
        Panicked(LAST.take().unwrap_or_else(|| "a panic".into()))
    })
}

/// Makes a panic outside [`catch`] an error in the log (and so in Sentry), in place of text on
/// standard error.
pub(super) fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        if CAUGHT.try_with(|()| ()).is_ok() {
            LAST.set(Some(describe(panic)));
        } else {
            tracing::error!(panic = describe(panic), "a background task panicked");
        }
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let message = panic.payload_as_str().unwrap_or("no message");
    match panic.location() {
        Some(place) => format!("panicked at {place}: {message}"),
        None => format!("panicked: {message}"),
    }
}
