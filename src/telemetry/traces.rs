//! Traces: spans of requests and of what they call, sent by OTLP (HTTP, protobuf).
//!
//! Every request has a trace id, wherever its spans go. Without `OTEL_EXPORTER_OTLP_ENDPOINT` they go
//! nowhere, and only the ids are made. With it they wait in a bounded queue for a thread that sends
//! them: what the receiver does not take is dropped and counted, and no request waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::HeaderMap;
use metrics::counter;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span as SdkSpan, SpanData,
    SpanExporter, SpanProcessor,
};
use reqwest::redirect;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::registry::LookupSpan;
use uuid::Uuid;

use super::metrics::DROPPED;
use super::targets::{CALL, REQUEST, SERVER};
use super::{COMMIT, VERSION};
use crate::config::{Config, TraceSampler, TracesConfig};

/// Spans that wait to be sent at most; more are dropped.
const QUEUE: usize = 4096;
/// Spans sent at once.
const BATCH: usize = 512;
/// Longest a span waits for others to be sent with.
const DELAY: Duration = Duration::from_secs(2);

/// A span of what is done for a request or another span; none where there is neither. The health
/// checks' own queries, which nobody asked for, make no traces that way.
#[macro_export]
macro_rules! child_span {
    (target: $target:expr, $($span:tt)*) => {
        if $crate::telemetry::traces::is_under_way() {
            ::tracing::info_span!(target: $target, $($span)*)
        } else {
            ::tracing::Span::none()
        }
    };
    ($($span:tt)*) => {
        $crate::child_span!(target: $crate::telemetry::targets::TRACE, $($span)*)
    };
}

/// Whether anything is traced here. A request that is not has the span for its log lines alone.
#[doc(hidden)]
pub fn is_under_way() -> bool {
    Span::current().metadata().is_some_and(|current| current.target() != REQUEST)
}

/// What makes spans of this process, and the layer that takes them from `tracing`.
pub(super) fn layer<S>(config: &Config) -> anyhow::Result<(impl Layer<S>, SdkTracerProvider)>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let provider = provider(config)?;
    let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
    let layer = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        // Nobody asks OpenTelemetry for its current context; the current span has one.
        .with_context_activation(false);
    let spans = match &config.traces.endpoint {
        // Ours, and those that handlers are given by `#[tracing::instrument]`.
        Some(_) => Targets::new().with_target(env!("CARGO_CRATE_NAME"), Level::INFO),
        None => Targets::new().with_target(SERVER, Level::INFO).with_target(CALL, Level::INFO),
    };
    let spans = spans.with_target(REQUEST, LevelFilter::OFF);
    // Events stay in the logs, which name the trace.
    let ours = filter_fn(move |metadata| {
        metadata.is_span() && spans.would_enable(metadata.target(), metadata.level())
    });
    // Without a level, every `trace!` of every crate would come as far as here to be refused.
    let ours = ours.with_max_level_hint(Level::INFO);
    Ok((layer.with_filter(ours), provider))
}

fn provider(config: &Config) -> anyhow::Result<SdkTracerProvider> {
    let traces = &config.traces;
    let provider = SdkTracerProvider::builder().with_resource(resource(config));
    let Some(endpoint) = &traces.endpoint else {
        // What the caller decided is passed on.
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        return Ok(provider.with_sampler(sampler).build());
    };
    let url = format!("{}/v1/traces", endpoint.expose().trim_end_matches('/'));
    // Whoever can make the receiver redirect must not be sent its headers.
    let client = reqwest::blocking::Client::builder()
        .redirect(redirect::Policy::none())
        .timeout(Duration::from_millis(traces.timeout_ms))
        .build()?;
    let sender = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .with_headers(traces.header_pairs().into_iter().collect())
        .build()
        .context("OTEL_EXPORTER_OTLP_ENDPOINT cannot be used")?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    let sender = Counted { sender, waiting: waiting.clone(), failing: AtomicBool::new(false) };
    let queue = BatchSpanProcessor::builder(sender).with_batch_config(batches).build();
    Ok(provider
        .with_sampler(sampler(traces))
        .with_span_processor(Bounded { queue, waiting })
        .build())
}

fn resource(config: &Config) -> Resource {
    let traces = &config.traces;
    let mut attributes = traces.attribute_pairs();
    if let Some(name) = &traces.service_name {
        attributes.insert("service.name".into(), name.clone());
    }
    let ours = [
        ("service.name", env!("CARGO_PKG_NAME")),
        ("service.version", VERSION),
        ("vcs.ref.head.revision", COMMIT),
        ("deployment.environment.name", config.env.as_str()),
    ];
    // The operator's word goes before ours.
    for (name, value) in ours {
        attributes.entry(name.into()).or_insert_with(|| value.into());
    }
    let instance = || Uuid::now_v7().to_string();
    attributes.entry("service.instance.id".into()).or_insert_with(instance);
    let attributes = attributes.into_iter().map(|(name, value)| KeyValue::new(name, value));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(attributes)
        .build()
}

fn sampler(config: &TracesConfig) -> Sampler {
    let ratio = Sampler::TraceIdRatioBased(config.sampler_arg);
    let parent = |root| Sampler::ParentBased(Box::new(root));
    match config.sampler {
        TraceSampler::AlwaysOn => Sampler::AlwaysOn,
        TraceSampler::AlwaysOff => Sampler::AlwaysOff,
        TraceSampler::Traceidratio => ratio,
        TraceSampler::ParentbasedAlwaysOn => parent(Sampler::AlwaysOn),
        TraceSampler::ParentbasedAlwaysOff => parent(Sampler::AlwaysOff),
        TraceSampler::ParentbasedTraceidratio => parent(ratio),
    }
}

/// The SDK's queue, entered only while it has room: what it drops by itself it does not tell.
#[derive(Debug)]
struct Bounded {
    queue: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut SdkSpan, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Relaxed) < QUEUE {
            self.queue.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Relaxed);
            dropped(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// Sends batches, and says once when that begins to fail and once when it works again.
#[derive(Debug)]
struct Counted {
    sender: opentelemetry_otlp::SpanExporter,
    waiting: Arc<AtomicUsize>,
    failing: AtomicBool,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.fetch_sub(spans, Relaxed);
        let outcome = self.sender.export(batch).await;
        let failed_before = self.failing.swap(outcome.is_err(), Relaxed);
        match &outcome {
            Err(error) => {
                dropped(spans);
                if !failed_before {
                    tracing::warn!(%error, "traces are not taken; they are dropped meanwhile");
                }
            }
            Ok(()) if failed_before => tracing::info!("traces are taken again"),
            Ok(()) => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.sender.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.sender.set_resource(resource);
    }
}

fn dropped(spans: usize) {
    counter!(DROPPED, "signal" => "spans").increment(spans as u64);
}

/// Makes `span` a part of the trace that the headers name (W3C Trace Context). Call it before the
/// span is entered, and only for a caller that is believed.
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    if parent.span().span_context().is_valid() {
        // It fails for a span that has begun, or that nobody takes.
        let _ = span.set_parent(parent);
    }
}

/// Tells whoever gets these headers which trace the current span is of.
pub fn pass_on(headers: &mut HeaderMap) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
}

/// The trace that a span is of, in hexadecimal; `None` for a span that is not traced.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| span.trace_id().to_string())
}
