//! The binary embeds the migrations, so a new one is a change to it; cargo cannot tell by itself.
#![expect(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
