//! Sizes, written so that they read back as the same number: `2MiB`.

use bytesize::ByteSize;
use serde::Serializer;

const UNITS: [(&str, u64); 3] =
    [("GiB", bytesize::GIB), ("MiB", bytesize::MIB), ("KiB", bytesize::KIB)];

/// For `#[serde(serialize_with)]`: bytesize's own form rounds to one decimal, and the defaults
/// pass through it.
pub(super) fn exact<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = size.as_u64();
    let (name, unit) = UNITS
        .into_iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .unwrap_or(("B", 1));
    serializer.collect_str(&format_args!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back_as_itself() {
        for (bytes, text) in [(2 << 20, "2MiB"), (1_500_000, "1500000B"), (0, "0B")] {
            let written = exact(&ByteSize(bytes), serde_json::value::Serializer).unwrap();
            assert_eq!(written, text);
            assert_eq!(text.parse::<ByteSize>().unwrap().as_u64(), bytes);
        }
    }
}
