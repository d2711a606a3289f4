//! One flat JSON object a line: `timestamp`, `level`, `target`, `message`, then the fields of the
//! event and of the spans around it. (tracing-subscriber's own JSON nests and repeats the spans'.)

use std::fmt::{self, Write as _};

use chrono::{SecondsFormat, Utc};
use tracing::field::{Field, Visit};
use tracing::span::Id;
use tracing::{Event, Subscriber, dispatcher};
use tracing_subscriber::Registry;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes an event.
pub(super) struct JsonLine;

/// Writes fields as `,"name":value` each, ready to follow others.
pub(super) struct JsonFields;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        write!(
            writer,
            r#"{{"timestamp":"{}","level":"{}","target":"{}""#,
            Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            metadata.level(),
            metadata.target(),
        )?;
        // sqlx's queries come without one, at debug.
        if metadata.fields().field("message").is_none() {
            writer.write_str(r#","message":"""#)?;
        }
        let mut visitor = Visitor { writer: writer.by_ref(), of: Of::Event, outcome: Ok(()) };
        event.record(&mut visitor);
        visitor.outcome?;
        let parent = match event.parent() {
            Some(parent) => Some(parent.clone()),
            None => context.current_span().id().cloned(),
        };
        if let Some(parent) = parent {
            write_fields_around(&parent, &mut writer)?;
        }
        writer.write_str("}\n")
    }
}

/// The fields of a span and of those around it. Not by way of the context, to which a span that only
/// traces are made of is the end: the request, which has the ids, is further out.
fn write_fields_around(span: &Id, writer: &mut Writer<'_>) -> fmt::Result {
    dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>();
        let Some(span) = registry.and_then(|registry| registry.span(span)) else { return Ok(()) };
        for span in span.scope() {
            if let Some(fields) = span.extensions().get::<FormattedFields<JsonFields>>() {
                writer.write_str(&fields.fields)?;
            }
        }
        Ok(())
    })
}

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, of: Of::Span, outcome: Ok(()) };
        fields.record(&mut visitor);
        visitor.outcome
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &tracing::span::Record<'_>,
    ) -> fmt::Result {
        self.format_fields(current.as_writer(), fields)
    }
}

struct Visitor<'writer> {
    writer: Writer<'writer>,
    of: Of,
    outcome: fmt::Result,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Event,
    Span,
}

/// Whether a span has this field for traces: the semantic conventions' names have dots, ours none.
pub(super) fn is_for_traces(name: &str) -> bool {
    name.contains('.')
}

impl Visitor<'_> {
    /// A number or a boolean, which looks in JSON as it is printed.
    fn write_plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.write(field, |writer| write!(writer, "{value}"));
    }

    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let name = field.name();
        let left_out = match self.of {
            // Records of the `log` crate have the target `log`; of their origin, `log.target` is enough.
            Of::Event => matches!(name, "log.module_path" | "log.file" | "log.line"),
            Of::Span => is_for_traces(name),
        };
        if self.outcome.is_ok() && !left_out {
            self.outcome = write_member(&mut self.writer, name, value);
        }
    }
}

/// By pieces: the machinery of `write!` costs more than they do.
fn write_member(
    writer: &mut Writer<'_>,
    name: &str,
    value: impl FnOnce(&mut Writer<'_>) -> fmt::Result,
) -> fmt::Result {
    writer.write_str(",\"")?;
    writer.write_str(name)?;
    writer.write_str("\":")?;
    value(writer)
}

/// A JSON string of what `text` writes.
fn quoted(
    writer: &mut Writer<'_>,
    text: impl FnOnce(&mut Escaped<&mut Writer<'_>>) -> fmt::Result,
) -> fmt::Result {
    writer.write_char('"')?;
    text(&mut Escaped(&mut *writer))?;
    writer.write_char('"')
}

impl Visit for Visitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities.
        if value.is_finite() {
            self.write_plain(field, value);
        } else {
            self.write_plain(field, "null");
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write_plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write_plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write_plain(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, |writer| quoted(writer, |text| text.write_str(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, |writer| quoted(writer, |text| write!(text, "{value:?}")));
    }
}

/// Escapes what passes through it as a JSON string wants it (RFC 8259, section 7).
struct Escaped<W>(W);

impl<W: fmt::Write> fmt::Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            self.0.write_str(&rest[..at])?;
            match rest.as_bytes()[at] {
                quoted @ (b'"' | b'\\') => write!(self.0, "\\{}", char::from(quoted))?,
                b'\n' => self.0.write_str("\\n")?,
                b'\r' => self.0.write_str("\\r")?,
                b'\t' => self.0.write_str("\\t")?,
                control => write!(self.0, "\\u{control:04x}")?,
            }
            rest = &rest[at + 1..];
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_from_json_as_it_was() {
        let every = (0..0x250).filter_map(char::from_u32).collect::<String>();
        for text in ["", "plain", "\"", "a\\", "\n\n", "déjà 🦀", every.as_str()] {
            let mut json = String::from("\"");
            write!(Escaped(&mut json), "{text}").unwrap();
            json.push('"');
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
