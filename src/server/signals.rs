//! Signals into tokens: the first asks for a drain, the second ends it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two stages of stopping. Clones share them; whoever works in the background waits on
/// `drain` too.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled when no more work is to be taken on.
    pub drain: CancellationToken,
    /// Cancelled when what is left is to be dropped.
    pub force: CancellationToken,
}

impl Shutdown {
    /// Stages that only code triggers, as tests do.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stages that SIGTERM or SIGINT trigger: the first drains, the second forces. Call it inside
    /// a Tokio runtime.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let stages = [shutdown.drain.clone(), shutdown.force.clone()];
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            for stage in stages {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stage.cancel();
            }
        });
        Ok(shutdown)
    }
}
