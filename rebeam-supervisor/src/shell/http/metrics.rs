//! The figures of a node as Prometheus reads them (OpenMetrics text).
//!
//! Labels are bounded: an actor has series of its own if it lasts as long as the node (a name, or a place in a list of
//! the tree), and only so many do; all others are counted together, by class. What the system knows of processes is read
//! when somebody asks, and memory not more often than every ten seconds, since that is dear.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rebeam_core::meters::{ActorFigures, BOUNDS_US, Histogram};

use crate::shell::engine::NodeFigures;
use crate::shell::sampler::{self, Measured, cpu_seconds, proportional_kib};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many actors have series of their own.
const MOST_ACTORS: usize = 500;

/// What the others are called.
const OTHERS: &str = "(others)";

/// How long a reading of memory is good for.
const FRESH: Duration = Duration::from_secs(10);

/// What was read of processes, and when.
#[derive(Debug, Default)]
pub(super) struct Readings {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    read: Option<Instant>,
    kib: BTreeMap<u32, u64>,
}

impl Readings {
    /// Proportional set sizes, in KiB.
    fn memory(&self, processes: &[Measured]) -> BTreeMap<u32, u64> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.read.is_none_or(|read| read.elapsed() >= FRESH) {
            *memory = Memory { read: Some(Instant::now()), kib: BTreeMap::new() };
        }
        for process in processes {
            let os_pid = process.os_pid as u32;
            if !memory.kib.contains_key(&os_pid)
                && let Some(kib) = process.proportional_kib()
            {
                memory.kib.insert(os_pid, kib);
            }
        }
        memory.kib.clone()
    }
}

/// All figures as text.
pub(super) fn encode(figures: NodeFigures, readings: &Readings) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page::new(figures, readings)));
    let mut text = String::new();
    // It writes into memory: there is nothing that could fail.
    let _ = text::encode(&mut text, &registry);
    text
}

/// Everything that is shown, once.
#[derive(Debug)]
struct Page {
    node: NodeFigures,
    /// By label and class; those without series of their own together.
    actors: BTreeMap<(String, String), Sum>,
    own: Own,
}

/// One actor, or several.
#[derive(Debug, Default)]
struct Sum {
    waiting: u64,
    waiting_bytes: u64,
    oldest_s: f64,
    restarts: u64,
    memory_kib: u64,
    cpu_s: f64,
}

/// The supervisor's own process.
#[derive(Debug, Default)]
struct Own {
    memory_kib: u64,
    cpu_s: f64,
    descriptors: u64,
    threads: u64,
}

impl Page {
    fn new(node: NodeFigures, readings: &Readings) -> Self {
        let memory = readings.memory(&node.measured);
        let cpu_s: BTreeMap<u32, f64> = node.measured.iter().map(|it| (it.os_pid as u32, it.cpu_seconds())).collect();
        let mut actors: BTreeMap<(String, String), Sum> = BTreeMap::new();
        let mut own_series = 0;
        for actor in &node.core.actors {
            let has_own = actor.is_lasting && own_series < MOST_ACTORS;
            own_series += usize::from(has_own);
            let label = if has_own { actor.label.clone() } else { OTHERS.to_owned() };
            actors.entry((label, actor.class.clone())).or_default().add(actor, &memory, &cpu_s);
        }
        let (descriptors, threads) = sampler::own_counts();
        let own = Own {
            memory_kib: proportional_kib(std::process::id() as i32).unwrap_or(0),
            cpu_s: cpu_seconds(std::process::id()),
            descriptors,
            threads,
        };
        Page { node, actors, own }
    }
}

impl Sum {
    fn add(&mut self, actor: &ActorFigures, memory: &BTreeMap<u32, u64>, cpu_s: &BTreeMap<u32, f64>) {
        self.waiting += actor.waiting;
        self.waiting_bytes += actor.waiting_bytes;
        self.oldest_s = self.oldest_s.max(actor.oldest.unwrap_or_default().as_secs_f64());
        self.restarts += u64::from(actor.restarts);
        if let Some(os_pid) = actor.os_pid {
            self.memory_kib += memory.get(&os_pid).copied().unwrap_or(0);
            self.cpu_s += cpu_s.get(&os_pid).copied().unwrap_or(0.0);
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// Writes one family of metrics after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

/// What a family is called, what it says, and in which unit.
type Title = (&'static str, &'static str, Option<Unit>);

impl Writer<'_> {
    fn write<M: EncodeMetric>(
        &mut self,
        (name, help, unit): Title,
        kind: MetricType,
        series: impl IntoIterator<Item = (Labels, M)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, metric) in series {
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, title: Title, series: impl IntoIterator<Item = (Labels, f64)>) -> fmt::Result {
        self.write(title, MetricType::Gauge, series.into_iter().map(|(labels, it)| (labels, ConstGauge::new(it))))
    }

    fn counter(&mut self, title: Title, series: impl IntoIterator<Item = (Labels, f64)>) -> fmt::Result {
        self.write(title, MetricType::Counter, series.into_iter().map(|(labels, it)| (labels, ConstCounter::new(it))))
    }

    /// One number without labels.
    fn single<M: EncodeMetric>(&mut self, (name, help, unit): Title, metric: &M) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, unit.as_ref(), metric.metric_type())?)
    }
}

/// Times on their way out.
#[derive(Debug)]
struct Times<'a>(&'a Histogram);

impl EncodeMetric for Times<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets).collect();
        encoder.encode_histogram::<NoLabelSet>(self.0.sum_us as f64 / 1e6, self.0.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.write_node(&mut writer)?;
        self.write_actors(&mut writer)?;
        self.write_supervisor(&mut writer)
    }
}

impl Page {
    fn write_node(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let core = &self.node.core;
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        core.actors.iter().for_each(|actor| *states.entry(actor.state.word()).or_default() += 1);
        let states = states.into_iter().map(|(state, count)| (vec![("state", state.to_owned())], count as f64));
        writer.gauge(("rebeam_actors", "Actors by state", None), states)?;
        let ready = ConstGauge::new(u64::from(self.node.is_ready));
        writer.single(("rebeam_ready", "Whether the node is ready, as /readyz says", None), &ready)?;
        let age = ConstGauge::new(self.node.age.as_secs_f64());
        writer.single(("rebeam_uptime", "How long the node runs", Some(Unit::Seconds)), &age)?;
        let code = ConstGauge::new(u64::from(self.node.code.0));
        writer.single(("rebeam_code_version", "The version of the application's code: 1 at the start", None), &code)?;
        let calls = ConstGauge::new(core.calls_in_flight);
        writer.single(("rebeam_calls_in_flight", "Calls whose answer is waited for", None), &calls)?;
        let skipped = ConstCounter::new(core.skipped_ticks);
        let help = "Ticks of timers left out because the mailbox was full, nobody was there, or the node was late";
        writer.single(("rebeam_timer_ticks_skipped", help, None), &skipped)?;
        let letters = core.dead_letters.iter();
        let letters = letters.map(|(cause, count)| (vec![("cause", (*cause).to_owned())], *count as f64));
        writer.counter(("rebeam_dead_letters", "Messages that nobody handled, by cause", None), letters)?;
        let ends = core.ended.iter().map(|(class, reason, count)| {
            (vec![("class", class.clone()), ("reason", (*reason).to_owned())], *count as f64)
        });
        writer.counter(("rebeam_actor_ends", "Ends of incarnations, by reason", None), ends)?;
        let title = ("rebeam_actor_start", "From the order to start until init returned", Some(Unit::Seconds));
        writer.single(title, &Times(&core.starts))?;
        let handled = core
            .handled
            .iter()
            .map(|(class, method, times)| (vec![("class", class.clone()), ("method", method.clone())], Times(times)));
        let title = ("rebeam_handler_duration", "How long handlers took", Some(Unit::Seconds));
        writer.write(title, MetricType::Histogram, handled)
    }

    fn write_actors(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let of = |figure: fn(&Sum) -> f64| {
            self.actors.iter().map(move |((actor, class), sum)| {
                (vec![("actor", actor.clone()), ("class", class.clone())], figure(sum))
            })
        };
        writer.gauge(("rebeam_mailbox_messages", "Messages that wait", None), of(|it| it.waiting as f64))?;
        let title = ("rebeam_mailbox", "Content of what waits or is in hand", Some(Unit::Bytes));
        writer.gauge(title, of(|it| it.waiting_bytes as f64))?;
        let title = ("rebeam_mailbox_oldest", "How long the oldest message waits", Some(Unit::Seconds));
        writer.gauge(title, of(|it| it.oldest_s))?;
        // Of those that come and go a sum would fall with each that goes: their ends are counted by class.
        let lasting = of(|it| it.restarts as f64).filter(|(labels, _)| labels[0].1 != OTHERS);
        writer.counter(("rebeam_actor_restarts", "Starts after the first", None), lasting)?;
        let title = ("rebeam_actor_memory", "Proportional set size, not older than 10 s", Some(Unit::Bytes));
        writer.gauge(title, of(|it| (it.memory_kib * 1024) as f64))?;
        let title = ("rebeam_actor_cpu", "User and system time of the process", Some(Unit::Seconds));
        writer.counter(title, of(|it| it.cpu_s).filter(|(labels, _)| labels[0].1 != OTHERS))
    }

    fn write_supervisor(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let zygote = self.node.zygote.and_then(proportional_kib).unwrap_or(0);
        let store = self.node.tables.store.and_then(proportional_kib).unwrap_or(0);
        let processes = [("supervisor", self.own.memory_kib), ("zygote", zygote), ("store", store)];
        let memory = processes.map(|(process, kib)| (vec![("process", process.to_owned())], (kib * 1024) as f64));
        let title = ("rebeam_own_memory", "Proportional set size of Re:BEAM's own processes", Some(Unit::Bytes));
        writer.gauge(title, memory)?;
        let cpu = ConstCounter::new(self.own.cpu_s);
        writer.single(("rebeam_supervisor_cpu", "User and system time", Some(Unit::Seconds)), &cpu)?;
        let descriptors = ConstGauge::new(self.own.descriptors);
        writer.single(("rebeam_supervisor_descriptors", "Open descriptors", None), &descriptors)?;
        let threads = ConstGauge::new(self.own.threads);
        writer.single(("rebeam_supervisor_threads", "Threads", None), &threads)?;
        let tables = ConstGauge::new(self.node.tables.count as f64);
        writer.single(("rebeam_tables", "Tables", None), &tables)?;
        let rows = ConstGauge::new(self.node.tables.bytes as f64);
        writer.single(("rebeam_table_rows", "Memory of the rows of all tables", Some(Unit::Bytes)), &rows)?;
        let ended = ConstCounter::new(self.node.tables.ended);
        writer.single(("rebeam_table_store_ends", "Ends of processes that kept the rows", None), &ended)?;
        let dropped = ConstCounter::new(self.node.dropped_lines);
        writer.single(("rebeam_log_lines_dropped", "Lines of output that were read too slowly", None), &dropped)
    }
}
