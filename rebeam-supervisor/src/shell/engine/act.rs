//! Carrying out what the core decides (see [`rebeam_core::shell`]), with processes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rebeam_core::event::{Launch, LaunchError, NodeEnd, NodeEvent};
use rebeam_core::shell::{Frame, Shell};
use rebeam_core::tracing::Span;
use rebeam_core::{Core, EntryChange};
use rebeam_protocol::certificate::{Certificate, Next};
use rebeam_protocol::id::{CallId, ProcessId, RequestId, Version};
use rebeam_protocol::message::{DeadLetter, Outcome};
use rebeam_protocol::outside::{Answer, Reloaded};
use rebeam_protocol::page::{self, Snapshot};
use rebeam_protocol::table::RowWatch;
use rebeam_sys::process;

use super::{Ended, Engine, Node};
use crate::shell::sampler::{self, look};
use crate::shell::service_manager;
use crate::view::text::duration;
use rebeam_sys::clock::monotonic_ns;

/// After how long an exit signal that nobody has taken note of is sent again, at first and at last.
const FIRST_AGAIN: Duration = Duration::from_millis(20);
const LAST_AGAIN: Duration = Duration::from_secs(1);

/// Dead letters that are reported within a second; more are only counted.
const REPORTED_PER_SECOND: u32 = 20;

/// Dead letters so far, and which of them were reported.
#[derive(Default)]
pub(super) struct DeadLetterReports {
    all: u64,
    /// How many of them were only counted.
    all_left_out: u64,
    /// When the current second began, how many were reported in it, and how many were not.
    since: Duration,
    reported: u32,
    left_out: u64,
}

/// What is to be reported when another dead letter has come.
struct Report {
    /// How many of the last second were left out.
    left_out: u64,
    /// Whether this one is reported.
    is_due: bool,
}

impl DeadLetterReports {
    fn next(&mut self, now: Duration) -> Report {
        self.all += 1;
        let mut left_out = 0;
        if now.saturating_sub(self.since) >= Duration::from_secs(1) {
            left_out = std::mem::take(&mut self.left_out);
            (self.since, self.reported) = (now, 0);
        }
        let is_due = self.reported < REPORTED_PER_SECOND;
        self.reported += u32::from(is_due);
        self.left_out += u64::from(!is_due);
        self.all_left_out += u64::from(!is_due);
        Report { left_out, is_due }
    }

    /// What is said of them when the node ends; `None` if there are none.
    pub(super) fn summary(&self) -> Option<String> {
        let all = match self.all {
            0 => return None,
            1 => "1 message became a dead letter".to_owned(),
            all => format!("{all} messages became dead letters"),
        };
        Some(match self.all_left_out {
            0 => format!("{all}, listed above"),
            left_out => format!("{all}; {left_out} of them are not listed above"),
        })
    }
}

impl Shell for Engine {
    fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn launch(&mut self, launch: Launch) -> Result<(), LaunchError> {
        self.make_worker(launch)
    }

    fn write(&mut self, process: ProcessId, frame: Frame) {
        let is_exit = frame.attention & page::EXIT != 0;
        self.push(process, frame);
        if is_exit {
            self.insist_on_exit(process);
        }
    }

    fn kill(&mut self, process: ProcessId) {
        self.kill_worker(process);
    }

    fn page(&self, process: ProcessId) -> Option<(Snapshot, u64)> {
        Some((self.workers.get(&process)?.page.snapshot(), monotonic_ns()))
    }

    fn dump_stacks(&mut self, process: ProcessId) {
        let Some(os_pid) = self.workers.get(&process).and_then(|worker| worker.os_pid) else { return };
        let Some(node) = self.me.upgrade().map(Node) else { return };
        tokio::task::spawn_local(async move {
            let is_stopped = look(move || sampler::is_stopped(os_pid)).await.unwrap_or(false);
            node.0.borrow_mut().ask_to_write_stacks(process, is_stopped);
        });
    }

    fn reply_outside(&mut self, client: u64, call: CallId, outcome: Outcome, payload: Bytes) {
        self.clients.reply(client, call, outcome, payload);
    }

    fn answer_outside(&mut self, asker: u64, answer: Answer) {
        self.clients.answer(asker, answer);
    }

    fn note_entry(&mut self, change: &EntryChange) {
        if !self.ledger.write(&change.record()) {
            let all = self.core.ledger();
            self.ledger.begin_anew(all.iter().map(EntryChange::record));
        }
        self.note_table(change);
    }

    fn watch_rows(&mut self, from: Option<(ProcessId, RequestId)>, rows: RowWatch) {
        self.watch_in_store(from, rows);
    }

    fn unwatch_rows(&mut self, watch: u64, heir: Option<u64>, has_missed: bool) {
        self.unwatch_in_store(watch, heir, has_missed);
    }

    fn not_launched(&mut self, label: &str, error: &str, after: Duration) {
        let after = duration(after);
        self.printer.warn(&format!(
            "`{label}` cannot be started yet: {error}; it is tried again after {after}, then less often"
        ));
    }

    fn reloaded(&mut self, reloaded: Reloaded) {
        self.reload_is_over(reloaded);
    }

    fn keep_versions(&mut self, needed: &[Version]) {
        self.let_go_of_versions(needed);
    }

    fn report(&mut self, certificate: &Arc<Certificate>, next: Next) {
        self.printer.crash(certificate, next);
    }

    fn dead_letter(&mut self, letter: DeadLetter) {
        let report = self.dead_letters.next(self.started.elapsed());
        if report.left_out > 0 {
            self.printer.warn(&format!("{} more dead letters: see `rebeam dead list`", report.left_out));
        }
        if report.is_due {
            self.printer.dead_letter(&letter);
        }
    }

    fn span(&mut self, span: Span) {
        if let Some(exporter) = &mut self.exporter {
            exporter.send(span);
        }
    }

    fn node(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Up => {
                self.life.is_up = true;
                let actors = self.core.alive().len();
                self.printer.up(actors, self.started.elapsed());
                service_manager::ready(actors);
            }
            NodeEvent::Failed { child, reason, certificate } => {
                self.life.end(Ended::NotStarted { child, reason, certificate });
            }
            NodeEvent::Stopping => {
                self.life.is_stopping = true;
                service_manager::stopping();
                self.life.on_stopping.notify_one();
            }
            NodeEvent::Ended(NodeEnd::Clean) => self.life.end(Ended::Clean),
            NodeEvent::Ended(NodeEnd::GaveUp { last }) => self.life.end(Ended::GaveUp(last)),
        }
    }
}

impl Engine {
    /// Sends the signal of an exit again until the process knows of it. A handler of Python's runs between two of its
    /// instructions: a signal that comes just before the process begins to wait does not end that wait.
    fn insist_on_exit(&self, process: ProcessId) {
        let Some(node) = self.me.upgrade().map(Node) else { return };
        tokio::task::spawn_local(async move {
            let mut pause = FIRST_AGAIN;
            loop {
                tokio::time::sleep(pause).await;
                if !node.0.borrow().signal_exit_again(process) {
                    return;
                }
                pause = (2 * pause).min(LAST_AGAIN);
            }
        });
    }

    /// Whether it is not known yet, and the process is there.
    fn signal_exit_again(&self, process: ProcessId) -> bool {
        let Some(worker) = self.workers.get(&process).filter(|worker| !worker.is_killed) else { return false };
        if worker.page.is_leaving() {
            return false;
        }
        // Before it is told of the order, the signal says nothing.
        if let Some(os_pid) = worker.os_pid.filter(|_| worker.wants_attention & page::EXIT == 0) {
            process::signal_main_thread(os_pid, process::exit_signal());
        }
        true
    }
}

impl Engine {
    /// Has a process write its stacks, unless it could not read the signal.
    fn ask_to_write_stacks(&mut self, process: ProcessId, is_stopped: bool) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        match worker.os_pid {
            Some(_) if is_stopped => worker.no_stacks = Some("unavailable: stopped"),
            Some(os_pid) => {
                worker.no_stacks = None;
                process::signal_main_thread(os_pid, process::dump_signal());
                process::signal_main_thread(os_pid, process::tasks_signal());
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_dead_letters_a_second_are_reported_and_the_rest_is_counted() {
        let mut reports = DeadLetterReports::default();
        let due = (0..50).filter(|_| reports.next(Duration::from_millis(1500)).is_due).count();
        assert_eq!(due as u32, REPORTED_PER_SECOND);
        let next = reports.next(Duration::from_millis(2600));
        assert_eq!((next.left_out, next.is_due, reports.all), (30, true, 51));
        assert_eq!(reports.next(Duration::from_millis(3700)).left_out, 0);
        let summary = "52 messages became dead letters; 30 of them are not listed above";
        assert_eq!(reports.summary().as_deref(), Some(summary));
        assert_eq!(DeadLetterReports::default().summary(), None);
    }
}
