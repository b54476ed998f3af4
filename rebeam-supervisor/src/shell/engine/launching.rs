//! Making workers and seeing them die: the queue to the zygote, the zygote's own life, the reaper's finds.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rebeam_core::Event;
use rebeam_core::event::{Death, Launch, LaunchError, Status};
use rebeam_core::shell::Frame;
use rebeam_protocol::id::{ProcessId, Version};
use rebeam_protocol::page;
use rebeam_protocol::worker::ToWorker;
use rebeam_protocol::zygote::{FromZygote, ToZygote};

use super::worker::{Output, Trust, Unborn, Worker, Writing};
use super::{Engine, Forked, Forking, Node, Standby};
use crate::printer::{Speaker, Stream};
use crate::shell::arenas::Memories;
use crate::shell::descriptors::PER_ACTOR;
use crate::shell::keeper;
use crate::shell::launcher::{TheirEnds, Wiring};
use crate::shell::memory;
use crate::shell::output::{LastLines, LineReader};
use crate::shell::reaper::{self, Stray};
use crate::shell::sampler::look;
use crate::shell::service::{self, Next, Service};
use crate::shell::versions::Code;
use crate::shell::watched::watch;
use crate::shell::zygote;
use rebeam_sys::clock::monotonic_ns;
use rebeam_sys::frames::{FrameReader, Read, WriteQueue};

/// Reads of what a dead process left behind: many times what the kernel buffers.
const MOST_READS: usize = 256;

/// What one look for dead children found.
#[derive(Default)]
struct Dead {
    workers: Vec<(ProcessId, i32, reaper::Reaped)>,
    /// Killed by SIGKILL, and not by us.
    unexplained: usize,
    any: bool,
}

impl Forking {
    fn is_of(&self, process: ProcessId) -> bool {
        matches!(self.of, Forked::Worker(of) if of == process)
    }

    fn is_standby_of(&self, code: Version) -> bool {
        self.code == code && matches!(self.of, Forked::Standby(_))
    }
}

impl Engine {
    /// Takes the worker that was forked ahead, or that is being forked ahead, or has one made.
    pub(super) fn make_worker(&mut self, launch: Launch) -> Result<(), LaunchError> {
        let again = launch.clone();
        self.try_to_make(launch).map_err(|error| launch_error(&error, Some(again)))
    }

    fn try_to_make(&mut self, launch: Launch) -> std::io::Result<()> {
        let process = launch.process;
        let (code, must_be_fresh) = (launch.code, launch.spec.process.need_fresh_process());
        if let Some(Standby { wiring, os_pid, .. }) = self.standby.take_if(|it| !must_be_fresh && it.code == code) {
            self.wire(launch, wiring)?;
            self.born(process, os_pid);
            return Ok(());
        }
        let forking = self.forking.take_if(|it| !must_be_fresh && it.is_standby_of(code));
        if let Some(Forking { code, request, of: Forked::Standby(wiring) }) = forking {
            self.forking = Some(Forking { code, request, of: Forked::Worker(process) });
            return self.wire(launch, wiring);
        }
        let (wiring, theirs) = Wiring::new()?;
        self.wire(launch, wiring)?;
        self.queue.push_back((process, theirs));
        self.launch_next();
        Ok(())
    }

    /// Has the next worker forked before anybody asks for it, so that its start need not wait for that.
    pub(super) fn fork_ahead(&mut self) {
        let is_idle = self.forking.is_none() && self.standby.is_none() && self.queue.is_empty() && !self.life.has_ended;
        // One try for each birth: what fails now would fail again at once.
        let code = self.versions.current();
        let zygote = self.versions.zygote(code).and_then(Service::ready);
        if let Some(zygote) = zygote.filter(|_| is_idle && self.wants_standby) {
            self.wants_standby = false;
            self.forks += 1;
            let request = self.forks;
            if let Ok((wiring, theirs)) = Wiring::new()
                && zygote.send(&ToZygote::Fork { request }, &theirs.as_fds()).is_ok()
            {
                self.forking = Some(Forking { code, request, of: Forked::Standby(wiring) });
                self.watch_births();
            }
        }
    }

    /// Makes a worker of our ends: its tasks, and its first frame.
    fn wire(&mut self, launch: Launch, wiring: Wiring) -> std::io::Result<()> {
        let process = launch.process;
        let node = self.me.upgrade().map(Node).ok_or(std::io::ErrorKind::Other)?;
        let watcher = node.clone();
        let output = |pipe| -> std::io::Result<Output> {
            Ok(Output { pipe: Rc::new(watch(pipe)?), lines: LineReader::default() })
        };
        let mut worker = Worker {
            label: launch.label.clone(),
            code: launch.code,
            os_pid: None,
            is_port: launch.spec.process.is_port,
            channel: Rc::new(watch(wiring.channel)?),
            decoder: FrameReader::new(self.setup.max_frame),
            has_frames: false,
            out: WriteQueue::default(),
            writing: Writing::Queued,
            trust: Trust::Unknown,
            is_killed: false,
            is_replaced: false,
            born: None,
            wants_attention: 0,
            no_stacks: None,
            memory_limit: None,
            memories: Memories::default(),
            page: wiring.page,
            _lifeline: wiring.lifeline,
            stdout: output(wiring.outputs.stdout)?,
            stderr: output(wiring.outputs.stderr)?,
            last_lines: LastLines::default(),
            tasks: Vec::with_capacity(4),
            unborn: None,
        };
        let (mut welcome, start) = launch.welcome(self.setup.max_frame, self.setup.secret);
        self.traffic.bound(&welcome.options.cpus);
        welcome.log_level = welcome.log_level.or(self.setup.log_level);
        let state = launch.takes_over.as_ref().and_then(|(state, _)| state.get::<Arc<OwnedFd>>());
        let pushed = match state.cloned() {
            None => worker.out.push(&ToWorker::Welcome(welcome), &start, u32::MAX as usize),
            Some(state) => worker.out.push_with(&ToWorker::Welcome(welcome), &start, u32::MAX as usize, vec![state]),
        };
        pushed.map_err(std::io::Error::other)?;
        worker.tasks.extend([
            tokio::task::spawn_local(node.clone().read_worker(process, worker.channel.clone())).abort_handle(),
            tokio::task::spawn_local(node.clone().read_output(process, worker.stdout.pipe.clone(), Stream::Stdout))
                .abort_handle(),
            tokio::task::spawn_local(node.read_output(process, worker.stderr.pipe.clone(), Stream::Stderr))
                .abort_handle(),
        ]);
        let limits = &launch.spec.limits;
        worker.memory_limit = limits.memory_soft_kib.into_iter().chain(limits.memory_hard_kib).min();
        if worker.memory_limit.is_some() {
            self.watched_memory += 1;
            if !std::mem::replace(&mut self.watches_memory, true) {
                tokio::task::spawn_local(async move {
                    memory::watch(watcher.clone()).await;
                    watcher.0.borrow_mut().watches_memory = false;
                });
            }
        }
        worker.unborn = Some(Unborn { launch, said: Vec::new() });
        self.workers.insert(process, worker);
        self.dirty.push(process);
        Ok(())
    }

    /// Takes the next waiting launch whose zygote is not still starting.
    fn next_waiting(&mut self) -> Option<(ProcessId, TheirEnds)> {
        let waits = |process: &ProcessId| {
            let unborn = self.workers.get(process).filter(|it| !it.is_killed).and_then(|it| it.unborn.as_ref());
            let launch = unborn.map(|unborn| &unborn.launch);
            launch.is_some_and(|launch| {
                let is_starting = self.versions.zygote(launch.code).is_some_and(Service::is_starting);
                is_starting && !launch.spec.process.need_fresh_process()
            })
        };
        let place = self.queue.iter().position(|(process, _)| !waits(process))?;
        self.queue.remove(place)
    }

    /// Hands the next waiting launch to its zygote, or to a fresh interpreter where there is none.
    fn launch_next(&mut self) {
        while self.forking.is_none()
            && let Some((process, theirs)) = self.next_waiting()
        {
            if !self.workers.contains_key(&process) {
                continue;
            }
            if self.workers.get(&process).is_some_and(|worker| worker.is_killed) {
                // Killed before it was born.
                self.bury_unborn(process);
                continue;
            }
            let unborn = self.workers.get(&process).and_then(|worker| worker.unborn.as_ref());
            let code = unborn.map_or(self.versions.current(), |unborn| unborn.launch.code);
            let options = unborn.map(|unborn| unborn.launch.spec.process.clone()).unwrap_or_default();
            let may_fork = !options.need_fresh_process();
            let Some(Code { zygote, memory, .. }) = self.versions.code(code) else {
                let error = std::io::Error::other(format!("{code} of the code is not kept any more"));
                self.launch_failed(process, &error);
                continue;
            };
            match zygote.ready().filter(|_| may_fork) {
                Some(zygote) => {
                    self.forks += 1;
                    let request = self.forks;
                    match zygote.send(&ToZygote::Fork { request }, &theirs.as_fds()) {
                        Ok(()) => {
                            self.forking = Some(Forking { code, request, of: Forked::Worker(process) });
                            self.watch_births();
                        }
                        Err(error) => self.launch_failed(process, &error),
                    }
                }
                None => match (self.spawn)(theirs, &self.setup, &options, [self.ledger.memory(), memory.as_fd()]) {
                    Ok(os_pid) => self.born(process, os_pid),
                    Err(error) => self.launch_failed(process, &error),
                },
            }
        }
    }

    /// There is a process for a worker. It may be told of twice, and have died and been reaped in between.
    pub(super) fn born(&mut self, process: ProcessId, os_pid: i32) {
        self.wants_standby = true;
        match self.workers.get_mut(&process) {
            Some(worker) => {
                self.by_os_pid.insert(os_pid, process);
                worker.os_pid = Some(os_pid);
                worker.born = Some(Instant::now());
                if worker.is_killed {
                    reaper::kill_group(os_pid);
                }
            }
            None if reaper::is_child(os_pid) => {
                self.by_os_pid.insert(os_pid, process);
                reaper::kill_group(os_pid);
            }
            None => {}
        }
        self.watch_births();
    }

    fn launch_failed(&mut self, process: ProcessId, error: &std::io::Error) {
        let launch = self.forget_worker(process).and_then(|mut worker| Some(worker.unborn.take()?.launch));
        self.tell(Event::LaunchFailed { process, error: launch_error(error, launch) });
    }

    fn forget_worker(&mut self, process: ProcessId) -> Option<Worker> {
        let worker = self.workers.remove(&process)?;
        self.watched_memory -= usize::from(worker.memory_limit.is_some());
        Some(worker)
    }

    fn bury_unborn(&mut self, process: ProcessId) {
        self.forget_worker(process);
        self.tell(Event::Died(Box::new(Death::without_trace(process, Status::Signalled(libc::SIGKILL)))));
    }

    pub(super) fn kill_worker(&mut self, process: ProcessId) {
        let Some(worker) = self.workers.get_mut(&process) else { return };
        worker.is_killed = true;
        match worker.os_pid {
            Some(os_pid) => reaper::kill_group(os_pid),
            // Its fork is under way: it is killed when it is there. (A zygote that hangs is looked after in `births`.)
            None if self.forking.as_ref().is_some_and(|forking| forking.is_of(process)) => {}
            None => {
                self.queue.retain(|(waiting, _)| *waiting != process);
                self.bury_unborn(process);
            }
        }
    }

    pub(super) fn zygote_said(&mut self, version: Version, message: FromZygote) {
        match message {
            FromZygote::Ready { .. } | FromZygote::Preloaded { .. } => {}
            FromZygote::Forked { request, os_pid } => {
                let os_pid = os_pid as i32;
                match self.take_fork(version, request) {
                    Some(Forked::Worker(process)) => self.born(process, os_pid),
                    Some(Forked::Standby(wiring)) if version == self.versions.current() => {
                        self.standby = Some(Standby { code: version, wiring, os_pid });
                    }
                    // Nobody waits for it any more: without its descriptors it ends by its lifeline.
                    _ if reaper::is_child(os_pid) => reaper::kill_group(os_pid),
                    _ => {}
                }
                self.launch_next();
                // It may have died already, unknown to the reaper until now.
                self.reap();
            }
            FromZygote::ForkFailed { request, error } => {
                // What was to be ahead of need is tried again when it is needed.
                if let Some(Forked::Worker(process)) = self.take_fork(version, request) {
                    let again = self.forget_worker(process).and_then(|mut worker| Some(worker.unborn.take()?.launch));
                    // The kernel refuses a fork for want of processes or memory, and for nothing else.
                    let error = LaunchError { text: format!("failed to fork: {error}"), again: again.map(Box::new) };
                    self.tell(Event::LaunchFailed { process, error });
                }
                self.launch_next();
                self.reap();
            }
            FromZygote::Unforkable { request, reason } => {
                self.printer.unforkable(&reason);
                let unborn = self.take_fork(version, request);
                self.retire_zygote(version);
                if let Some(Forked::Worker(process)) = unborn {
                    self.make_again(process);
                }
                self.launch_next();
            }
            FromZygote::Loaded { unforkable, .. } => {
                match (unforkable, self.versions.zygote_mut(version)) {
                    (None, Some(zygote)) => zygote.is_up(Instant::now()),
                    (Some(reason), _) => {
                        self.printer.unforkable(&reason);
                        self.retire_zygote(version);
                    }
                    (None, None) => {}
                }
                self.launch_next();
            }
            FromZygote::LoadFailed(error) => {
                self.printer.warn(&format!("the application could not be imported again: {}", error.message));
                self.retire_zygote(version);
                self.launch_next();
            }
        }
    }

    /// Reaps every child that has died.
    pub(super) fn reap(&mut self) {
        let mut dead = Dead::default();
        while let Some(os_pid) = reaper::next_dead() {
            if !self.is_known(os_pid) && self.is_forking() {
                // Perhaps the newborn that the zygote is about to tell of. It is looked at again then, and hides no
                // other meanwhile.
                self.known()
                    .into_iter()
                    .filter(|os_pid| reaper::is_dead(*os_pid))
                    .for_each(|it| self.reap_one(it, &mut dead));
                break;
            }
            self.reap_one(os_pid, &mut dead);
        }
        let was_out_of_memory = dead.unexplained > 0 && self.oom.has_killed_one() && dead.unexplained == 1;
        for (process, os_pid, reaped) in dead.workers {
            self.worker_died(process, os_pid, &reaped, was_out_of_memory);
        }
        self.has_strays |= dead.any;
        self.look_for_strays();
    }

    pub(super) fn is_known(&self, os_pid: i32) -> bool {
        self.by_os_pid.contains_key(&os_pid) || self.other_os_pids().any(|other| other == os_pid)
    }

    /// Our own processes.
    fn known(&self) -> HashSet<i32> {
        self.by_os_pid.keys().copied().chain(self.other_os_pids()).collect()
    }

    /// Those that are no actor's.
    pub(super) fn other_os_pids(&self) -> impl Iterator<Item = i32> {
        let zygotes = self.versions.zygotes().filter_map(|(_, zygote)| zygote.os_pid());
        let standby = self.standby.as_ref().map(|standby| standby.os_pid);
        let others = self.keeper.os_pid().into_iter().chain(self.tables.service.os_pid());
        zygotes.chain(others).chain(standby).chain(self.reloading.os_pids())
    }

    /// Whether a process is being made whose number is not known yet.
    fn is_forking(&self) -> bool {
        self.forking.is_some() || self.reloading.is_forking
    }

    /// The fork that a zygote tells of, unless nobody waits for that any more.
    fn take_fork(&mut self, version: Version, request: u64) -> Option<Forked> {
        let forking = self.forking.take_if(|forking| forking.code == version && forking.request == request);
        forking.map(|forking| forking.of)
    }

    /// Lets go of the versions that are not needed. A fork that is under way in the zygote of one of them has no answer.
    pub(super) fn let_go_of_versions(&mut self, needed: &[Version]) {
        self.versions.keep(needed);
        let versions = &self.versions;
        // Dropping the descriptors ends the new process, by its lifeline.
        let Some(forking) = self.forking.take_if(|forking| versions.code(forking.code).is_none()) else { return };
        if let Forked::Worker(process) = forking.of {
            self.make_again(process);
        }
        self.launch_next();
    }

    fn retire_zygote(&mut self, version: Version) {
        if let Some(zygote) = self.versions.zygote_mut(version) {
            zygote.retire();
        }
    }

    /// Ends the worker that was forked ahead, with the code of before.
    pub(super) fn discard_standby(&mut self) {
        if let Some(standby) = self.standby.take() {
            reaper::kill_group(standby.os_pid);
        }
    }

    /// Has children that nobody knows looked for, if somebody may have left any. Not during a fork: the newborn is not
    /// known yet.
    fn look_for_strays(&mut self) {
        if !self.has_strays || self.is_looking_for_strays || self.is_forking() {
            return;
        }
        let Some(node) = self.me.upgrade().map(Node) else { return };
        (self.has_strays, self.is_looking_for_strays) = (false, true);
        let (known, strangers) = (self.known(), self.setup.strangers.clone());
        let mark = self.setup.python.mark.clone().unwrap_or_default();
        tokio::task::spawn_local(async move {
            let strays = look(move || reaper::strays(&known, &strangers, &mark)).await.unwrap_or_default();
            node.0.borrow_mut().found_strays(&strays);
        });
    }

    fn found_strays(&mut self, strays: &[Stray]) {
        self.is_looking_for_strays = false;
        if self.is_forking() {
            // One of them may be the newborn that the zygote is about to tell of.
            self.has_strays |= !strays.is_empty();
        } else {
            reaper::kill_strays(strays, &self.known());
        }
        self.look_for_strays();
    }

    fn reap_one(&mut self, os_pid: i32, dead: &mut Dead) {
        dead.any = true;
        if !self.is_known(os_pid) {
            // Left to us by an actor, whose daemon may be in its group.
            return reaper::reap_alone(os_pid);
        }
        let reaped = reaper::reap(os_pid);
        if let Some(process) = self.by_os_pid.remove(&os_pid) {
            let is_ours = self.workers.get(&process).is_none_or(|worker| worker.is_killed);
            dead.unexplained += usize::from(reaped.status == Status::Signalled(libc::SIGKILL) && !is_ours);
            dead.workers.push((process, os_pid, reaped));
        } else if self.standby.take_if(|standby| standby.os_pid == os_pid).is_some() {
            // The next start makes another.
        } else if let Some(version) = self.versions.of_zygote(os_pid) {
            self.zygote_died(version, reaped);
        } else if self.keeper.os_pid() == Some(os_pid) {
            self.keeper_died(reaped);
        } else if self.tables.service.os_pid() == Some(os_pid) {
            self.store_died(reaped);
        } else if self.reloading.coming_died(os_pid, reaped) {
            // The attempt fails.
        } else if self.reloading.base_os_pid == Some(os_pid) {
            // The next new code is imported from scratch.
            self.reloading.base_died();
        }
    }

    fn keeper_died(&mut self, reaped: reaper::Reaped) {
        let Some(end) = self.keeper.ended(reaped, Instant::now()) else { return };
        self.printer.warn(&end.to_string());
        let mark = self.setup.python.mark.clone().unwrap_or_default();
        if end.next == Next::Restarts {
            match keeper::start(&mark) {
                Ok(process) => {
                    self.keeper.started(process);
                    self.keeper.is_up(Instant::now());
                }
                Err(error) => self.printer.warn(&format!("the keeper could not be started: {error}")),
            }
        }
    }

    /// Listens to the zygote, if there is one; one that cannot be listened to is of no use.
    pub(super) fn listen_to_zygote(&self, version: Version) {
        let process = self.versions.zygote(version).and_then(Service::process);
        let (Some(node), Some(process)) = (self.me.upgrade().map(Node), process) else { return };
        match process.frames() {
            Ok(frames) => drop(tokio::task::spawn_local(node.hear_zygote(version, frames))),
            Err(error) => {
                self.printer.warn(&format!("the zygote cannot be listened to: {}", explain(&error)));
                reaper::kill_group(process.os_pid);
            }
        }
    }

    /// Everything a worker left behind is taken in, and only then its death is told (MAP-03).
    pub(super) fn worker_died(
        &mut self,
        process: ProcessId,
        os_pid: i32,
        reaped: &reaper::Reaped,
        was_out_of_memory: bool,
    ) {
        // Somebody else may hold the other ends and write without end: what the dead one left fits into the kernel's
        // buffers.
        for _ in 0..MOST_READS {
            if !matches!(self.read_worker(process, usize::MAX), Read::Some { .. }) {
                break;
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            for _ in 0..MOST_READS {
                if !matches!(self.read_output(process, stream), Read::Some { .. }) {
                    break;
                }
            }
        }
        if self.workers.get(&process).is_some_and(|worker| worker.is_replaced && worker.unborn.is_some()) {
            return self.make_again(process);
        }
        let Some(mut worker) = self.forget_worker(process) else { return };
        self.forget_reader(process);
        for (output, stream) in [(&mut worker.stdout, Stream::Stdout), (&mut worker.stderr, Stream::Stderr)] {
            if let Some(line) = output.lines.take_partial() {
                self.printer.output(
                    Speaker { label: &worker.label, pid: Some(process.pid), code: Some(worker.code) },
                    stream,
                    &line,
                );
                worker.last_lines.push(line);
            }
        }
        let is_killed = worker.is_killed;
        let death = Death {
            process,
            os_pid: os_pid as u32,
            status: reaped.status,
            out_of_memory: was_out_of_memory && !is_killed && reaped.status == Status::Signalled(libc::SIGKILL),
            stacks: worker.no_stacks.map_or_else(|| worker.page.stacks(), str::to_owned),
            page: worker.page.snapshot(),
            clock_ns: monotonic_ns(),
            last_output: worker.last_lines.take(),
            cpu_ms: reaped.cpu_ms,
            peak_kib: reaped.peak_kib,
        };
        self.tell(Event::Died(Box::new(death)));
    }

    /// Running actors do not notice. What was being forked is made again, by the next zygote or by a fresh interpreter.
    fn zygote_died(&mut self, version: Version, reaped: reaper::Reaped) {
        let end = self.versions.zygote_mut(version).and_then(|zygote| zygote.ended(reaped, Instant::now()));
        // What was being forked may have been made, unknown to us: dropping its descriptors ends it by its lifeline.
        let unborn = self.forking.take_if(|forking| forking.code == version).map(|forking| forking.of);
        if let Some(end) = end.filter(|_| !self.life.has_ended) {
            self.printer.warn(&end.to_string());
            self.replace_zygote(version, end.next);
        }
        if let Some(Forked::Worker(process)) = unborn {
            self.make_again(process);
        }
        self.launch_next();
    }

    /// Makes a worker again that a zygote was to fork and has not.
    fn make_again(&mut self, process: ProcessId) {
        // It was made after all, and has said so itself.
        if self.workers.get(&process).is_some_and(|worker| worker.unborn.is_none() && worker.os_pid.is_some()) {
            return;
        }
        match self.forget_worker(process) {
            Some(worker) if worker.is_killed || worker.unborn.is_none() => self.bury_unborn(process),
            Some(mut worker) => {
                let Some(Unborn { launch, said }) = worker.unborn.take() else { return };
                if let Err(error) = self.make_worker(launch) {
                    return self.tell(Event::LaunchFailed { process, error });
                }
                // What was said to it meanwhile, an order to stop perhaps, is not forgotten.
                for (message, payload) in said {
                    let attention = if message == ToWorker::Exit { page::LOOK | page::EXIT } else { page::LOOK };
                    self.push(process, Frame { payload, attention, ..Frame::of(message) });
                }
            }
            None => {}
        }
    }

    fn replace_zygote(&mut self, version: Version, next: Next) {
        let Some(code) = self.versions.code(version) else { return };
        let started = match next {
            Next::Restarts => {
                let inherited = [self.ledger.memory(), code.memory.as_fd()];
                zygote::start(&self.setup.python, &self.setup.directory, inherited)
            }
            Next::GivesUp => Err(std::io::Error::other("it has failed too often")),
        };
        match started {
            Ok(zygote) => {
                let _ = zygote.send(&ToZygote::Load(self.setup.target.clone()), &[]);
                service::print_output(&zygote, "app", &self.printer, None);
                if let Some(service) = self.versions.zygote_mut(version) {
                    service.started(zygote);
                }
                self.listen_to_zygote(version);
                self.watch_births();
            }
            Err(error) => {
                self.printer.warn(&format!("actors are started in fresh interpreters: there is no zygote: {error}"));
                self.launch_next();
            }
        }
    }
}

/// Why a worker was not made; with what was to be made, if it failed for want of something.
fn launch_error(error: &std::io::Error, launch: Option<Launch>) -> LaunchError {
    let is_lack = matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC)
    );
    LaunchError { text: explain(error), again: launch.filter(|_| is_lack).map(Box::new) }
}

/// What the system says, and what to do about it where that is known.
fn explain(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => {
            format!("{error}: each actor takes {PER_ACTOR} descriptors of the supervisor; raise `ulimit -n`")
        }
        Some(libc::EAGAIN) => format!("{error}: the limit of processes is reached; see `ulimit -u`"),
        _ => error.to_string(),
    }
}
