//! Names, registries and groups: who may enter where, who is found, who waits for whom to come up.
//!
//! A name of the tree belongs to an actor, over all its lives, and is found while it has one. What is entered at run
//! time belongs to an incarnation, and goes with it, before anybody is told of its end (NAM-002, MON-005).

use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::control::{Answer, EntryInfo, Request};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::ledger::{MOST, MOST_KEY, MOST_VALUE, RegistryId, key_label, text_key};
use rebeam_protocol::message::{Address, CallFailure, Signal, Waits};
use rebeam_protocol::process::{
    ChildError, Entry, ProcessAnswer, ProcessRequest, Registry, RegistryError, RegistryRequest,
};
use rebeam_protocol::spec::{ChildKind, ChildSpec, SupervisorKind};
use rebeam_protocol::value::{self, Value};

use super::Core;
use super::request::wait_of;
use crate::actor::{Actor, Stage};
use crate::event::{Action, Requester};
use crate::mailbox::Message;
use crate::registries::EntryChange;
use crate::router::On;
use crate::timers::{Due, TimerKey};

/// Somebody who waits for an actor to come up.
#[derive(Debug)]
pub(super) struct Waiting {
    number: u64,
    from: Requester,
    to: Address,
    timer: Option<TimerKey>,
}

/// A key that is asked for while its holder is being killed.
#[derive(Debug)]
pub(super) struct Postponed {
    from: Requester,
    registry: Registry,
    request: RegistryRequest,
    value: Bytes,
}

impl Core {
    /// Every entry of every registry, as if it had just come, oldest first.
    pub fn ledger(&self) -> Vec<EntryChange> {
        self.registries.all()
    }

    /// A registry that is there.
    fn registry(&self, registry: &Registry) -> Option<RegistryId> {
        match registry {
            Registry::Names => Some(RegistryId::NAMES),
            Registry::Groups => Some(RegistryId::GROUPS),
            Registry::Named(name) => {
                let node = self.supervisors.get(self.names.get(name)?)?;
                let is_registry = matches!(node.spec.kind, SupervisorKind::Registry { .. });
                node.pid.filter(|_| is_registry).map(|pid| RegistryId(pid.serial))
            }
        }
    }

    /// Who holds a name that was given at run time.
    pub(super) fn registered(&self, name: &str) -> Option<ActorId> {
        let entry = self.registries.entries(RegistryId::NAMES, &text_key(name)).first()?;
        self.living.get(&entry.holder).copied()
    }

    /// Whether an incarnation was killed, and is only not known to be dead yet.
    fn is_dying(&self, pid: Pid) -> bool {
        self.living.get(&pid).and_then(|id| self.actors.get(id)).is_some_and(Actor::is_being_killed)
    }

    /// Who holds a key of a registry of the tree, if that has one holder.
    pub(super) fn holder(&self, registry: &str, key: &[u8]) -> Option<ActorId> {
        let id = self.registry(&Registry::Named(registry.to_owned()))?;
        let entry = self.registries.entries(id, key).first()?;
        // Who is being killed is not found any more (NAM-007).
        if !self.registries.is_unique(id)? || self.is_dying(entry.holder) {
            return None;
        }
        self.living.get(&entry.holder).copied()
    }

    /// Why mail by a key finds nobody, if that is the address's own fault.
    pub(super) fn is_no_address(&self, to: &Address) -> Option<CallFailure> {
        match to {
            Address::Via { registry, .. } => {
                let id = self.registry(&Registry::Named(registry.clone()))?;
                let text = format!("`{registry}` has duplicate keys: `dispatch` to its entries");
                (self.registries.is_unique(id) == Some(false)).then_some(CallFailure::BadCall(text))
            }
            Address::Group(_) => Some(CallFailure::BadCall("a group gives no answer: `pick` a member".into())),
            Address::Name(_) | Address::Actor(_) | Address::Pid(_) | Address::Partition { .. } => None,
        }
    }

    // ---- what members of the tree are called -------------------------------------------------------------------

    /// Registers a member under its name and key, if it has them; says who is in the way.
    pub(super) fn claim(&mut self, id: ActorId) -> Result<(), ExitReason> {
        if let Some(name) = self.name_of(id).cloned() {
            let is_free = self.registered(&name).is_none_or(|other| other == id);
            if !is_free || *self.names.entry(name.clone()).or_insert(id) != id {
                return Err(ExitReason::NameTaken(name));
            }
        }
        if let Some((registry, key)) = self.actors.get(&id).and_then(|actor| actor.spec.via.clone()) {
            let label = format!("{registry}[{}]", key_label(&key));
            let Some(table) = self.registry(&Registry::Named(registry)) else {
                return Err(ExitReason::NotStarted(format!("there is no registry for `{label}`")));
            };
            if self.registries.is_unique(table) != Some(true) || !self.registries.entries(table, &key).is_empty() {
                return Err(ExitReason::NameTaken(label));
            }
        }
        Ok(())
    }

    /// Why a child cannot be started under its name or key: somebody has it (NAM-001).
    pub(super) fn taken(&self, child: &ChildSpec) -> Option<ChildError> {
        let (name, via) = match &child.kind {
            ChildKind::Actor(spec) => (&spec.name, &spec.via),
            ChildKind::Supervisor(spec) => (&spec.name, &None),
        };
        let by_name = name.clone().map(Address::Name);
        let by_key = via.clone().map(|(registry, key)| Address::Via { registry, key });
        if let Some(failure) = by_key.as_ref().and_then(|to| self.is_no_address(to)) {
            let text = if let CallFailure::BadCall(text) = failure { text } else { String::new() };
            return Some(ChildError::BadSpec(text));
        }
        let holder = by_name.into_iter().chain(by_key).find(|to| self.member(to).is_some())?;
        Some(self.pid_of(&holder).map_or(ChildError::AlreadyPresent, ChildError::AlreadyStarted))
    }

    /// An incarnation begins: it is found under its name and key from now on.
    pub(super) fn announce(&mut self, id: ActorId, pid: Pid) {
        if let Some(key) = self.name_of(id).map(|name| text_key(name)) {
            let change = self.registries.enter(RegistryId::NAMES, &key, pid, Bytes::new());
            change.into_iter().for_each(|change| self.changed(change));
        }
        if let Some((registry, key)) = self.actors.get(&id).and_then(|actor| actor.spec.via.clone())
            && let Some(table) = self.registry(&Registry::Named(registry))
        {
            let change = self.registries.enter(table, &key, pid, Bytes::new());
            change.into_iter().for_each(|change| self.changed(change));
        }
        if let Some(SupervisorKind::Registry { is_unique }) = self.supervisors.get(&id).map(|node| node.spec.kind) {
            self.registries.open(RegistryId(pid.serial), is_unique);
        }
    }

    /// An incarnation has ended: nobody finds it any more, and it holds nothing.
    pub(super) fn withdraw(&mut self, pid: Pid) {
        let mut changes = self.registries.release(pid);
        changes.extend(self.registries.close(RegistryId(pid.serial)));
        changes.into_iter().for_each(|change| self.changed(change));
        for Postponed { from, registry, request, value } in std::mem::take(&mut self.postponed) {
            self.requested(from, Request::Process(ProcessRequest::Registry { registry, request }), value);
        }
    }

    /// Has the ledger say it, and tells those who watch.
    fn changed(&mut self, change: EntryChange) {
        for (watch, watcher, registry) in self.registries.watchers(&change) {
            let value = change.value.as_ref().map(|value| value.to_vec());
            let (key, holder) = (change.key.to_vec(), change.holder);
            self.send_signal(watcher, Signal::Entry { watch, registry, key, holder, value });
        }
        self.actions.push_back(Action::Entry(change));
    }

    // ---- what actors ask ----------------------------------------------------------------------------------------

    /// A request of an actor about entries; `None` if the answer comes later.
    pub(super) fn registry_request(
        &mut self,
        from: Requester,
        own: Pid,
        registry: Registry,
        request: RegistryRequest,
        value: Bytes,
    ) -> Option<ProcessAnswer> {
        if let RegistryRequest::Unwatch { watch } = request {
            self.registries.unwatch(own, watch);
            if let Some(actor) = self.living.get(&own).copied().and_then(|id| self.actors.get_mut(&id)) {
                actor.mailbox.take_back(watch);
            }
            return Some(ProcessAnswer::Ok);
        }
        let Some(id) = self.registry(&registry) else {
            return Some(ProcessAnswer::Registry(RegistryError::NoRegistry));
        };
        // A dead holder blocks no key, and yet there are never two: the key is given once the first is gone (NAM-007).
        if let RegistryRequest::Enter { key, .. } = &request
            && self.registries.is_unique(id) == Some(true)
            && self.registries.entries(id, key).first().is_some_and(|entry| self.is_dying(entry.holder))
        {
            self.postponed.push(Postponed { from, registry, request, value });
            return None;
        }
        let answer = match request {
            RegistryRequest::Enter { key, who } => self.enter(own, id, &key, who, value),
            RegistryRequest::Update { key } => self.update(own, id, &key, value),
            RegistryRequest::Leave { key, who } => self.leave(own, id, &key, who),
            RegistryRequest::Look { key } => Ok(ProcessAnswer::Entries(self.found(id, &key))),
            RegistryRequest::Watch { key } => {
                let watch = self.links.next_monitor();
                self.registries.watch(watch, own, registry, id, &key);
                Ok(ProcessAnswer::Watching { watch, entries: self.found(id, &key) })
            }
            RegistryRequest::LeastBusy { key } => Ok(ProcessAnswer::Pid(self.least_busy(id, &key))),
            RegistryRequest::Unwatch { .. } => Ok(ProcessAnswer::Ok),
        };
        Some(answer.unwrap_or_else(ProcessAnswer::Registry))
    }

    fn found(&self, id: RegistryId, key: &[u8]) -> Vec<Entry> {
        let entries = self.registries.entries(id, key);
        entries.iter().map(|entry| Entry { holder: entry.holder, value: entry.value.to_vec() }).collect()
    }

    /// Whose entry is meant. Those of a registry of the tree are each actor's own affair (NAM-005).
    fn whose(&self, own: Pid, id: RegistryId, who: Option<Address>) -> Result<Pid, RegistryError> {
        let Some(to) = who else { return Ok(own) };
        let pid = self.pid_of(&to).ok_or(RegistryError::NoProc)?;
        let is_open = matches!(id, RegistryId::NAMES | RegistryId::GROUPS);
        if is_open || pid == own { Ok(pid) } else { Err(RegistryError::NotYours) }
    }

    fn enter(
        &mut self,
        own: Pid,
        id: RegistryId,
        key: &[u8],
        who: Option<Address>,
        value: Bytes,
    ) -> Result<ProcessAnswer, RegistryError> {
        let holder = self.whose(own, id, who)?;
        if self.is_dying(holder) {
            return Err(RegistryError::NoProc);
        }
        check_key(id, key)?;
        check_value(&value)?;
        if self.registries.bytes() + key.len() + value.len() > MOST {
            return Err(RegistryError::TooMuch("the registries of this node are full".into()));
        }
        if self.registries.is_unique(id) == Some(true) {
            if let Some(entry) = self.registries.entries(id, key).first() {
                return Err(RegistryError::AlreadyRegistered(Some(entry.holder)));
            }
            if id == RegistryId::NAMES && self.names.contains_key(&key_label(key)) {
                return Err(RegistryError::AlreadyRegistered(None));
            }
        }
        let change = self.registries.enter(id, key, holder, value);
        change.into_iter().for_each(|change| self.changed(change));
        self.look_for_those_who_wait();
        Ok(ProcessAnswer::Ok)
    }

    fn update(&mut self, own: Pid, id: RegistryId, key: &[u8], value: Bytes) -> Result<ProcessAnswer, RegistryError> {
        check_value(&value)?;
        if self.registries.bytes() + value.len() > MOST {
            return Err(RegistryError::TooMuch("the registries of this node are full".into()));
        }
        let change = self.registries.update(id, key, own, value).ok_or(RegistryError::NotRegistered)?;
        self.changed(change);
        Ok(ProcessAnswer::Ok)
    }

    fn leave(
        &mut self,
        own: Pid,
        id: RegistryId,
        key: &[u8],
        who: Option<Address>,
    ) -> Result<ProcessAnswer, RegistryError> {
        // A name is given back by whoever knows it; one of the tree is not given back at all.
        if id == RegistryId::NAMES {
            if self.names.contains_key(&key_label(key)) {
                return Err(RegistryError::NotYours);
            }
            let entry = self.registries.entries(id, key).first().ok_or(RegistryError::NotRegistered)?;
            let holder = entry.holder;
            let changes = self.registries.leave(id, key, holder, false);
            changes.into_iter().for_each(|change| self.changed(change));
            return Ok(ProcessAnswer::Ok);
        }
        let holder = self.whose(own, id, who)?;
        let changes = self.registries.leave(id, key, holder, id == RegistryId::GROUPS);
        if changes.is_empty() {
            return Err(RegistryError::NotRegistered);
        }
        changes.into_iter().for_each(|change| self.changed(change));
        Ok(ProcessAnswer::Ok)
    }

    fn least_busy(&self, id: RegistryId, key: &[u8]) -> Option<Pid> {
        let waiting = |pid: &Pid| {
            let actor = self.actors.get(self.living.get(pid)?)?;
            Some(actor.mailbox.len() + actor.mailbox.handed().count())
        };
        let holders = self.registries.entries(id, key).iter().map(|entry| entry.holder);
        holders.filter_map(|pid| Some((waiting(&pid)?, pid))).min_by_key(|(waiting, _)| *waiting).map(|(_, pid)| pid)
    }

    /// Sends one message to every member of a group.
    pub(super) fn sent_to_group(&mut self, group: &str, message: &Message) {
        let to = Address::Group(group.to_owned());
        let members: Vec<Pid> =
            self.registries.entries(RegistryId::GROUPS, &text_key(group)).iter().map(|entry| entry.holder).collect();
        for member in members {
            if let Some(id) = self.living.get(&member).copied() {
                self.deliver(id, message.clone(), to.clone());
            }
        }
    }

    /// Every entry of a registry, by key, for people.
    pub(super) fn entry_infos(&self, registry: &Registry) -> Option<Vec<EntryInfo>> {
        let id = self.registry(registry)?;
        let info = |change: EntryChange| {
            let member = self.living.get(&change.holder);
            let actor = member.and_then(|id| self.actors.get(id));
            let node = || member.and_then(|id| self.supervisors.get(id));
            EntryInfo {
                key: key_label(&change.key),
                holder: actor.map(|it| it.label.clone()).or_else(|| Some(node()?.path.clone())).unwrap_or_default(),
                pid: change.holder,
                class: actor.map_or_else(|| "rebeam.Supervisor".to_owned(), |actor| actor.spec.class.clone()),
            }
        };
        let mut infos: Vec<EntryInfo> = self.registries.all_of(id).into_iter().map(info).collect();
        infos.sort_by(|one, other| one.key.cmp(&other.key));
        Some(infos)
    }

    // ---- waiting for somebody to come up ------------------------------------------------------------------------

    /// The incarnation behind an address that runs; `Err` if there will never be one.
    fn up(&self, to: &Address) -> Result<Option<Pid>, ()> {
        let Some(pid) = self.pid_of(to) else {
            return if matches!(to, Address::Pid(_)) { Err(()) } else { Ok(None) };
        };
        let actor = self.living.get(&pid).and_then(|id| self.actors.get(id));
        let is_starting = actor.and_then(|actor| actor.incarnation()).is_some_and(|it| it.stage == Stage::Starting);
        Ok(Some(pid).filter(|_| !is_starting && !self.is_dying(pid)))
    }

    /// Waits until there is a running incarnation behind an address; `None` if the answer comes later.
    pub(super) fn wait_for(
        &mut self,
        from: Requester,
        to: Address,
        timeout_ms: Option<u64>,
        waits: Waits,
    ) -> Option<ProcessAnswer> {
        match self.up(&to) {
            Ok(None) => {}
            Ok(found) => return Some(ProcessAnswer::Pid(found)),
            Err(()) => return Some(ProcessAnswer::Pid(None)),
        }
        if let Some(wait) = wait_of(from) {
            self.router.open(wait, On::Up(to.clone()), waits, None);
            if let Some(cycle) = self.deadlock(wait, "") {
                self.router.close(wait);
                return Some(ProcessAnswer::Deadlock(cycle));
            }
        }
        self.next_wait += 1;
        let number = self.next_wait;
        let timer = timeout_ms.map(|ms| self.timers.set(self.now + Duration::from_millis(ms), Due::WaitOver(number)));
        self.waiting.push(Waiting { number, from, to, timer });
        None
    }

    /// Answers those for whom somebody has come up, or will not.
    pub(super) fn look_for_those_who_wait(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            match self.up(&waiting.to) {
                Ok(None) => self.waiting.push(waiting),
                Ok(found) => self.waited(&waiting, found),
                Err(()) => self.waited(&waiting, None),
            }
        }
    }

    fn waited(&mut self, waiting: &Waiting, found: Option<Pid>) {
        self.timers.cancel(waiting.timer);
        self.answer(waiting.from, Answer::Process(ProcessAnswer::Pid(found)));
    }

    pub(super) fn wait_over(&mut self, number: u64) {
        if let Some(place) = self.waiting.iter().position(|waiting| waiting.number == number) {
            let waiting = self.waiting.remove(place);
            self.waited(&waiting, None);
        }
    }

    /// An incarnation has ended: it waits for nobody, watches nothing, and who waited for it in person waits in vain.
    pub(super) fn forget_waiter(&mut self, pid: Pid) {
        self.registries.forget_watcher(pid);
        let is_own = |waiting: &Waiting| matches!(waiting.from, Requester::Worker(process, _) if process.pid == pid);
        for waiting in self.waiting.extract_if(.., |waiting| is_own(waiting)) {
            self.timers.cancel(waiting.timer);
        }
        self.look_for_those_who_wait();
    }
}

/// Keys are plain data of a bounded size; those of names and groups are text.
fn check_key(id: RegistryId, key: &[u8]) -> Result<(), RegistryError> {
    if key.len() > MOST_KEY {
        return Err(RegistryError::TooMuch(format!("a key of {} bytes: it may have {MOST_KEY}", key.len())));
    }
    match value::decode(key) {
        Ok(Value::Str(_)) => Ok(()),
        Ok(_) if !matches!(id, RegistryId::NAMES | RegistryId::GROUPS) => Ok(()),
        Ok(other) => Err(RegistryError::TooMuch(format!("{other} is no text"))),
        Err(error) => Err(RegistryError::TooMuch(error)),
    }
}

fn check_value(value: &Bytes) -> Result<(), RegistryError> {
    match value.len() > MOST_VALUE {
        true => Err(RegistryError::TooMuch(format!("a value of {} bytes: it may have {MOST_VALUE}", value.len()))),
        false => Ok(()),
    }
}
