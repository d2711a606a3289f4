//! What this process was built from.

/// The release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from; `unknown` outside the image's build.
pub const COMMIT: &str = match option_env!("PLINTH_GIT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
