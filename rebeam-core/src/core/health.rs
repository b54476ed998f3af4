//! Whether a node does what it is there for: what a readiness probe asks.
//!
//! It is a look, not a watch: nothing is kept or timed for it. What is done about a hung or dead actor stands elsewhere.

use std::time::Duration;

use rebeam_protocol::id::ProcessId;
use rebeam_protocol::outside::{Trouble, TroubleKind};
use rebeam_protocol::page::{Snapshot, Stage as MarkStage};

use super::Core;
use super::watch::silence;
use crate::actor::{Actor, Life};
use crate::members::Supervisor;
use crate::supervisor::ChildState;

/// How long an actor may be between two lives before that is trouble: longer than a restart takes.
const DOWN: Duration = Duration::from_secs(1);

/// How long an actor may leave mail untaken, with nothing in hand, before that is trouble. (Later it counts as hung.)
const SILENT: Duration = Duration::from_secs(5);

impl Core {
    /// What is wrong, in tree order. `process` gives the page of a process and the time on its clock, in nanoseconds;
    /// no message should wait longer than `longest_wait`.
    pub fn troubles(
        &self,
        longest_wait: Duration,
        mut process: impl FnMut(ProcessId) -> Option<(Snapshot, u64)>,
    ) -> Vec<Trouble> {
        // What is below a supervisor that is down says nothing: the supervisor itself is the trouble.
        let mut supervisors: Vec<&Supervisor> = self.members.supervisors().map(|(_, supervisor)| supervisor).collect();
        supervisors.sort_by(|a, b| a.path.cmp(&b.path));
        let mut troubles = Vec::new();
        for supervisor in supervisors {
            for (id, _, state) in supervisor.machine.children() {
                let Some(actor) = self.members.supervisor(id).map(|inner| inner.path.clone()) else { continue };
                match state {
                    ChildState::Parked => {
                        let detail = format!("its restarts are used up: `rebeam restart {actor}`");
                        troubles.push(Trouble { actor, kind: TroubleKind::Parked, detail });
                    }
                    ChildState::Restarting => {
                        troubles.push(Trouble { actor, kind: TroubleKind::Down, detail: "restarting".into() });
                    }
                    _ => {}
                }
            }
        }
        let mut actors: Vec<&Actor> = self.members.actors().collect();
        actors.sort_by_key(|actor| actor.id);
        for actor in actors {
            let mut add = |kind, detail| troubles.push(Trouble { actor: actor.label.clone(), kind, detail });
            let parent = self.members.supervisor(actor.parent);
            let state = parent.and_then(|parent| parent.machine.state(actor.id));
            if matches!(state, Some(ChildState::Parked)) {
                add(TroubleKind::Parked, format!("its restarts are used up: `rebeam restart {}`", actor.label));
                continue;
            }
            let is_wanted = !matches!(actor.life, Life::Gone) && !matches!(state, Some(ChildState::Stopped));
            let down = actor.down_since.map(|since| self.now.saturating_sub(since)).filter(|_| is_wanted);
            if let Some(down) = down.filter(|down| *down >= DOWN) {
                add(TroubleKind::Down, format!("{} for {:.1} s", self.state_of(actor.id), down.as_secs_f64()));
            }
            let Some(incarnation) = actor.incarnation() else { continue };
            if let Some(reason) = &incarnation.not_ready {
                add(TroubleKind::NotReady, reason.clone());
            }
            let Some((page, clock_ns)) = process(incarnation.process()) else { continue };
            for (seq, message) in actor.mailbox.handed() {
                let limit = actor.spec.limits.deadline_of(&message.head.method).map(Duration::from_millis);
                let age = Duration::from_nanos(clock_ns.saturating_sub(page.since_ns(seq.0)));
                if page.stage(seq.0) == MarkStage::Begun && limit.is_some_and(|limit| age >= limit) {
                    add(TroubleKind::Hung, format!("`{}` in hand for {:.1} s", message.head.method, age.as_secs_f64()));
                }
            }
            if let Some(silent) = silence(actor, &page, self.now).filter(|silent| *silent >= SILENT) {
                add(TroubleKind::Hung, format!("it takes no mail for {:.1} s", silent.as_secs_f64()));
            }
            let wait = actor.oldest(Some(&page)).map(|at| self.now.saturating_sub(at));
            if let Some(wait) = wait.filter(|wait| *wait >= longest_wait && !page.lets_mail_wait()) {
                let waiting = actor.waiting(Some(&page));
                add(TroubleKind::OldMessage, format!("the oldest of {waiting} waits {:.1} s", wait.as_secs_f64()));
            }
        }
        troubles
    }
}
