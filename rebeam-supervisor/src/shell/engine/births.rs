//! Processes that are being made and do not come: a zygote, or a worker that has not said anything, that was stopped by a
//! signal or hangs. It is killed, and made again.
//!
//! An actor's own `init` is not looked at here: it begins when the worker has said its first word, and has a limit of its own.

use std::time::{Duration, Instant};

use super::worker::Trust;
use super::{Engine, Node};
use crate::shell::reaper;
use crate::shell::sampler::{self, look};
use crate::shell::service::Service;

/// How often is looked, as long as something is being made.
const PERIOD: Duration = Duration::from_millis(500);

/// What is being made for longer than this may have been stopped.
const LATE: Duration = Duration::from_millis(500);

/// How long a zygote may take for a fork, stopped or not.
pub(super) const HANGS: Duration = Duration::from_secs(10);

/// What is being made, and whether somebody looks.
#[derive(Debug, Default)]
pub(super) struct Births {
    is_watched: bool,
    /// Since when the zygote forks what it forks now.
    forking_since: Option<Instant>,
}

impl Engine {
    /// Something is being made: it is looked after until it is there.
    pub(super) fn watch_births(&mut self) {
        self.births.forking_since = self.forking.as_ref().map(|_| Instant::now());
        if !std::mem::replace(&mut self.births.is_watched, true)
            && let Some(node) = self.me.upgrade().map(Node)
        {
            tokio::task::spawn_local(node.look_after_births());
        }
    }

    /// Whether something is being made.
    fn has_births(&self) -> bool {
        let mut zygotes = self.versions.zygotes();
        self.forking.is_some()
            || zygotes.any(|(_, zygote)| zygote.is_starting())
            || self.workers.values().any(|it| it.is_expected())
    }

    /// Processes that should be there by now; a zygote that hangs is killed.
    fn late(&self) -> Vec<i32> {
        let is_late = |since: Instant| since.elapsed() >= LATE;
        let forking = self.births.forking_since.filter(|_| self.forking.is_some());
        if forking.is_some_and(|since| since.elapsed() >= HANGS) {
            self.zygotes_at_work().for_each(Service::kill);
        }
        let is_late_fork = forking.is_some_and(is_late);
        let zygotes = self.versions.zygotes().filter(|(_, zygote)| zygote.is_starting() || is_late_fork);
        let zygotes = zygotes.filter_map(|(_, zygote)| zygote.os_pid());
        let workers = self.workers.values().filter(|it| it.is_expected() && it.born.is_some_and(is_late));
        workers.filter_map(|worker| worker.os_pid).chain(zygotes).collect()
    }

    /// Those that fork what is being forked.
    fn zygotes_at_work(&self) -> impl Iterator<Item = &Service> {
        self.forking.as_ref().and_then(|forking| self.versions.zygote(forking.code)).into_iter()
    }

    /// Kills what was stopped; the reaper sees to it that it is made again.
    fn replace(&mut self, stopped: &[i32]) {
        for os_pid in stopped {
            if let Some(version) = self.versions.of_zygote(*os_pid) {
                self.printer.warn(&format!("the zygote (process {os_pid}) was stopped by a signal, and is replaced"));
                self.versions.zygote(version).into_iter().for_each(Service::kill);
            } else if let Some(process) = self.by_os_pid.get(os_pid)
                && let Some(worker) = self.workers.get_mut(process).filter(|worker| worker.is_expected())
            {
                worker.is_replaced = true;
                reaper::kill_group(*os_pid);
            }
        }
    }
}

impl super::Worker {
    /// Whether its process has not said anything yet, and is to.
    fn is_expected(&self) -> bool {
        self.trust == Trust::Unknown && !self.is_killed && !self.is_replaced && self.os_pid.is_some()
    }
}

impl Node {
    async fn look_after_births(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let late = {
                let engine = &mut *self.0.borrow_mut();
                if !engine.has_births() {
                    engine.births.is_watched = false;
                    return;
                }
                engine.late()
            };
            let stopped =
                look(move || late.into_iter().filter(|it| sampler::is_stopped(*it)).collect::<Vec<i32>>()).await;
            self.with(|engine| engine.replace(&stopped.unwrap_or_default()));
        }
    }
}
