//! Sends spans to a collector by OTLP, from a thread of its own: a collector that is slow or gone blocks nothing else.

use std::path::Path;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind as Kind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use rebeam_core::tracing::{Span, SpanKind};
use tokio::sync::{mpsc, oneshot};

use crate::printer::Printer;
use crate::view::failure::Failure;

/// Spans that may wait for the collector; more are dropped.
const WAITING: usize = 10_000;

/// Spans in one request, and how long one may wait for others.
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_secs(1);

/// How long the collector may take for one request, and for what is left when the node has ended.
const PATIENCE: Duration = Duration::from_secs(10);
const LAST: Duration = Duration::from_secs(2);

/// What `OTEL_…` calls the collector; `--otlp` goes before it.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Where spans go, and which.
#[derive(Debug)]
pub(crate) struct Options {
    exporter: opentelemetry_otlp::SpanExporter,
    /// Which share of traces is sampled, from 0 to 1.
    pub(crate) share: f64,
}

impl Options {
    /// By the collector's address, or, without one, by the environment; `None` if neither says one.
    pub(crate) fn new(address: Option<&str>, share: f64, project: &Path) -> Result<Option<Self>, Failure> {
        let is_said = VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        if address.is_none() && !is_said {
            return Ok(None);
        }
        let said = VARIABLES.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let wanted = address.map(str::to_owned).or(said);
        if let Some(address) = wanted.filter(|address| address.starts_with("https:")) {
            return Err(Failure::usage(format!("spans cannot be sent to `{address}`: there is no TLS"))
                .hint("send them to a collector beside the node, which passes them on"));
        }
        let builder = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(PATIENCE);
        let builder = match address {
            Some(address) => builder.with_endpoint(format!("{}/v1/traces", address.trim_end_matches('/'))),
            None => builder,
        };
        let mut exporter = builder.build().map_err(|error| {
            let shown = address.unwrap_or("of the environment");
            Failure::usage(format!("spans cannot be sent to `{shown}`"))
                .because(&error)
                .hint("write the address of a collector, such as `http://localhost:4318`")
        })?;
        let name = project.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let resource = Resource::builder().with_service_name(service_name().unwrap_or(name));
        exporter.set_resource(
            &resource.with_attribute(KeyValue::new("process.pid", i64::from(std::process::id()))).build(),
        );
        Ok(Some(Options { exporter, share }))
    }
}

fn service_name() -> Option<String> {
    std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty())
}

/// A handle on the thread.
pub(crate) struct Exporter {
    spans: mpsc::Sender<Span>,
    over: oneshot::Receiver<()>,
}

impl Exporter {
    /// Starts the thread. Spans count from `started`.
    ///
    /// # Errors
    /// The thread or its event loop cannot be made.
    pub(crate) fn start(options: Options, started: SystemTime, printer: Printer) -> std::io::Result<Self> {
        let (spans, waiting) = mpsc::channel(WAITING);
        let (done, over) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("otlp".into()).spawn(move || {
            runtime.block_on(export(&options.exporter, waiting, started, &printer));
            let _ = done.send(());
        })?;
        Ok(Exporter { spans, over })
    }

    /// Sends one. If too many wait, it is dropped.
    pub(crate) fn send(&mut self, span: Span) {
        let _ = self.spans.try_send(span);
    }

    /// Sends what is left, unless the collector takes too long.
    pub(crate) async fn finish(self) {
        drop(self.spans);
        let _ = tokio::time::timeout(LAST, self.over).await;
    }
}

async fn export(
    exporter: &impl SpanExporter,
    mut waiting: mpsc::Receiver<Span>,
    started: SystemTime,
    printer: &Printer,
) {
    let mut has_warned = false;
    let mut batch = Vec::new();
    loop {
        let is_over = tokio::time::timeout(EVERY, async {
            while batch.len() < BATCH {
                match waiting.recv().await {
                    Some(span) => batch.push(data(span, started)),
                    None => return,
                }
            }
        });
        let _ = is_over.await;
        let is_over = waiting.is_closed() && waiting.is_empty();
        if !batch.is_empty()
            && let Err(error) = exporter.export(std::mem::take(&mut batch)).await
            && !has_warned
        {
            has_warned = true;
            printer.warn(&format!("spans were not taken, and are lost: {error}; this is not said again"));
        }
        if is_over {
            return;
        }
    }
}

fn data(span: Span, started: SystemTime) -> SpanData {
    let context = SpanContext::new(
        TraceId::from(span.trace),
        SpanId::from(span.span),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    let mut attributes = vec![KeyValue::new("rebeam.actor", span.actor)];
    if let Some(pid) = span.pid {
        attributes.push(KeyValue::new("rebeam.incarnation", pid.to_string()));
    }
    SpanData {
        span_context: context,
        parent_span_id: SpanId::from(span.parent),
        parent_span_is_remote: false,
        span_kind: match span.kind {
            SpanKind::Call => Kind::Client,
            SpanKind::Handler => Kind::Server,
            SpanKind::Consumer => Kind::Consumer,
        },
        name: span.name.into(),
        start_time: started + span.from,
        end_time: started + span.until,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder("rebeam").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}
