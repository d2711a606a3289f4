//! The binary embeds the migrations, so a new one is a change to it; cargo cannot tell by itself.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
