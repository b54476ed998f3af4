//! Names, registries and groups: who may enter where, who is found, who waits for whom to come up.
//!
//! A name of the tree belongs to an actor, over all its lives, and is found while it has one. What is entered at run
//! time belongs to an incarnation, and goes with it, before anybody is told of its end (NAM-002, MON-005).

use std::time::Duration;

use bytes::Bytes;
use rebeam_protocol::address::{Address, Registry};
use rebeam_protocol::exit::ExitReason;
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::ledger::{DUPLICATE, MOST, MOST_KEY, MOST_VALUE, RegistryId, UNIQUE, key_label, text_key};
use rebeam_protocol::message::{CallFailure, Signal, Waits};
use rebeam_protocol::outside::{EntryInfo, MemberKind};
use rebeam_protocol::process::{ChildError, Entry, ProcessAnswer, ProcessRequest, RegistryError, RegistryRequest};
use rebeam_protocol::spec::{ChildKind, ChildSpec, Restart, SupervisorKind};
use rebeam_protocol::table::{Access, RowWatch, Table, TableId};
use rebeam_protocol::value::{self, Value};

use super::Core;
use crate::actor::{Actor, Life};
use crate::event::Action;
use crate::incarnation::MadeEntry;
use crate::mailbox::Message;
use crate::registries::{EntryChange, Heir};
use crate::requests::Requester;
use crate::router::On;
use crate::timers::Due;
use crate::waiters::{Late, Postponed, Waiting};

/// How many watches of rows an actor may have. What has changed is kept for each until it takes that.
const MOST_ROW_WATCHES: usize = 1000;

impl Core {
    /// Every entry of every registry, as if it had just come, oldest first.
    pub fn ledger(&self) -> Vec<EntryChange> {
        self.registries.all()
    }

    /// Every watch of rows of a table, the oldest first.
    pub fn row_watches(&self) -> Vec<RowWatch> {
        self.registries.row_watches()
    }

    /// How many tables there are.
    pub fn table_count(&self) -> usize {
        self.registries.key_count(RegistryId::TABLES)
    }

    /// A registry that is there.
    pub(super) fn registry(&self, registry: &Registry) -> Option<RegistryId> {
        match registry {
            Registry::Names => Some(RegistryId::NAMES),
            Registry::Groups => Some(RegistryId::GROUPS),
            Registry::Tables => Some(RegistryId::TABLES),
            Registry::Named(name) => {
                let node = self.members.supervisor(self.members.named(name)?)?;
                let is_registry = matches!(node.spec.kind, SupervisorKind::Registry { .. });
                node.pid.filter(|_| is_registry).map(|pid| RegistryId(pid.serial))
            }
        }
    }

    /// Who holds a name that was given at run time.
    pub(super) fn registered(&self, name: &str) -> Option<ActorId> {
        let entry = self.registries.entries(RegistryId::NAMES, &text_key(name)).first()?;
        self.members.living(entry.holder)
    }

    /// Whether an incarnation was killed, and is only not known to be dead yet.
    fn is_dying(&self, pid: Pid) -> bool {
        self.members.living_actor(pid).is_some_and(Actor::is_being_killed)
    }

    /// Who holds a key of a registry of the tree, if that has one holder.
    pub(super) fn holder(&self, registry: &str, key: &[u8]) -> Option<ActorId> {
        let id = self.registry(&Registry::Named(registry.to_owned()))?;
        let entry = self.registries.entries(id, key).first()?;
        // Who is being killed is not found any more (NAM-007).
        if !self.registries.is_unique(id)? || self.is_dying(entry.holder) {
            return None;
        }
        self.members.living(entry.holder)
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
        if let Some((name, _)) = self.table_of(id)
            && !self.registries.entries(RegistryId::TABLES, &text_key(&name)).is_empty()
        {
            return Err(ExitReason::NameTaken(format!("table {name}")));
        }
        if let Some(name) = self.members.name_of(id).cloned() {
            let is_free = self.registered(&name).is_none_or(|other| other == id);
            if !is_free || self.members.reserve(&name, id) != id {
                return Err(ExitReason::NameTaken(name));
            }
        }
        if let Some((registry, key)) = self.members.actor(id).and_then(|actor| actor.spec.via.clone()) {
            let label = format!("{registry}[{}]", key_label(&key));
            let Some(table) = self.registry(&Registry::Named(registry)) else {
                return Err(ExitReason::NotStarted(format!("there is no registry for `{label}`")));
            };
            if self.registries.is_unique(table) != Some(true) {
                return Err(ExitReason::NotStarted(format!(
                    "`{label}` is no address: its registry has duplicate keys"
                )));
            }
            if !self.registries.entries(table, &key).is_empty() {
                return Err(ExitReason::NameTaken(label));
            }
        }
        Ok(())
    }

    /// Why a child cannot be started under its names and keys: somebody has one (NAM-001).
    pub(super) fn taken(&self, child: &ChildSpec) -> Option<ChildError> {
        let (name, via) = match &child.kind {
            ChildKind::Actor(spec) => (&spec.name, &spec.via),
            ChildKind::Supervisor(spec) => {
                let below = spec.children.iter().find_map(|child| self.taken(child));
                if below.is_some() {
                    return below;
                }
                (&spec.name, &None)
            }
        };
        if let Some((registry, key)) = via {
            let to = Address::Via { registry: registry.clone(), key: key.clone() };
            if let Some(CallFailure::BadCall(text)) = self.is_no_address(&to) {
                return Some(ChildError::BadSpec(text));
            }
            let table = self.registry(&Registry::Named(registry.clone()))?;
            if let Err(RegistryError::TooMuch(text)) = check_key(table, key) {
                return Some(ChildError::BadSpec(text));
            }
            if let Some(entry) = self.registries.entries(table, key).first() {
                return Some(ChildError::AlreadyStarted(entry.holder));
            }
        }
        let holder = Address::Name(name.clone()?);
        let id = self.member(&holder)?;
        Some(match self.pid_of(&holder) {
            Some(pid) => ChildError::AlreadyStarted(pid),
            None if self.members.actor(id).is_some_and(|actor| matches!(actor.life, Life::Waiting)) => {
                ChildError::Restarting
            }
            None => ChildError::AlreadyPresent,
        })
    }

    /// Has a start wait whose name or key is held by somebody who is being killed: it may be had in a moment.
    pub(super) fn postpone(
        &mut self,
        from: Requester,
        why: &ChildError,
        request: impl FnOnce() -> ProcessRequest,
    ) -> bool {
        let ChildError::AlreadyStarted(holder) = why else { return false };
        // The next life of an actor of the tree has its name, too.
        let is_free_then = self.is_dying(*holder)
            && self.members.living_actor(*holder).is_some_and(|actor| {
                actor.restart == Restart::Temporary || (actor.spec.name.is_none() && actor.spec.via.is_none())
            });
        if is_free_then {
            self.waiters.postpone(from, Late::Start(Box::new(request())));
        }
        is_free_then
    }

    /// The table that a member of the tree is, if it is one: its name and what it is.
    fn table_of(&self, id: ActorId) -> Option<(String, Table)> {
        let spec = &self.members.supervisor(id)?.spec;
        if let SupervisorKind::Table(table) = spec.kind { Some((spec.id.clone(), table)) } else { None }
    }

    /// An incarnation begins: it is found under its name and key from now on.
    pub(super) fn announce(&mut self, id: ActorId, pid: Pid) {
        if let Some((name, table)) = self.table_of(id) {
            let change = self.registries.enter(RegistryId::TABLES, &text_key(&name), pid, table.encode().into());
            self.changed(change);
        }
        let registry = match self.members.supervisor(id).map(|node| (node.spec.kind, &node.spec.name)) {
            Some((SupervisorKind::Registry { is_unique }, Some(name))) => Some((is_unique, name.clone())),
            _ => None,
        };
        if let Some(key) = self.members.name_of(id).map(|name| text_key(name)) {
            // By its value a reader knows a registry, and its sort.
            let value = match registry {
                None => Bytes::new(),
                Some((true, _)) => Bytes::from_static(UNIQUE),
                Some((false, _)) => Bytes::from_static(DUPLICATE),
            };
            let change = self.registries.enter(RegistryId::NAMES, &key, pid, value);
            self.changed(change);
        }
        if let Some((registry, key)) = self.members.actor(id).and_then(|actor| actor.spec.via.clone())
            && let Some(table) = self.registry(&Registry::Named(registry))
        {
            let change = self.registries.enter(table, &key, pid, Bytes::new());
            self.changed(change);
        }
        if let Some((is_unique, name)) = registry {
            self.registries.begin(RegistryId(pid.serial), Registry::Named(name.clone()), is_unique);
            self.enter_those_of_the_tree(RegistryId(pid.serial), &name);
        }
    }

    /// A registry has begun anew: whom the tree has given a key of it is found under that again.
    fn enter_those_of_the_tree(&mut self, table: RegistryId, name: &str) {
        if self.registries.is_unique(table) != Some(true) {
            return;
        }
        let own = |actor: &Actor| {
            let (_, key) = actor.spec.via.as_ref().filter(|(registry, _)| registry == name)?;
            Some((actor.id, key.clone(), actor.pid()?))
        };
        let mut found: Vec<(ActorId, Vec<u8>, Pid)> = self.members.actors().filter_map(own).collect();
        found.sort();
        for (_, key, pid) in found {
            if self.registries.entries(table, &key).is_empty() {
                let change = self.registries.enter(table, &key, pid, Bytes::new());
                self.changed(change);
            }
        }
    }

    /// An incarnation has ended: nobody finds it any more, and it holds nothing.
    pub(super) fn withdraw(&mut self, pid: Pid) {
        self.bequeath(pid);
        let mut changes = self.registries.release(pid);
        changes.extend(self.registries.end(RegistryId(pid.serial)));
        self.changed(changes);
    }

    /// The tables of an incarnation that has ended go to their heirs, if these are there (ETS-006).
    fn bequeath(&mut self, pid: Pid) {
        let tables: Vec<(Vec<u8>, u64)> = self
            .registries
            .held_by(pid)
            .filter(|(id, ..)| *id == RegistryId::TABLES)
            .map(|(_, key, number)| (key.to_vec(), number))
            .collect();
        for (key, number) in tables {
            let Some(Heir { pid: heir, data }) = self.registries.heir(number).cloned() else { continue };
            if heir != pid && self.members.living(heir).is_some() && !self.is_dying(heir) {
                self.pass_table(&key, pid, heir, &data);
            }
        }
    }

    fn pass_table(&mut self, key: &[u8], from: Pid, to: Pid, data: &Bytes) {
        let change = self.registries.pass(RegistryId::TABLES, key, to);
        self.changed(change);
        self.send_signal(to, Signal::Table { key: key.to_vec(), from, data: data.to_vec() });
    }

    /// The number of a table that an actor owns.
    fn own_table(&self, own: Pid, id: RegistryId, key: &[u8]) -> Result<u64, RegistryError> {
        let entry = self.registries.entries(id, key).first().ok_or(RegistryError::NotRegistered)?;
        match id == RegistryId::TABLES && entry.holder == own {
            true => Ok(entry.number),
            false => Err(RegistryError::NotYours),
        }
    }

    fn give(&mut self, own: Pid, id: RegistryId, key: &[u8], to: &Address, data: &Bytes) -> Result<(), RegistryError> {
        self.own_table(own, id, key)?;
        check_value(data)?;
        let to = self.pid_of(to).filter(|to| *to != own && !self.is_dying(*to)).ok_or(RegistryError::NoProc)?;
        self.pass_table(key, own, to, data);
        Ok(())
    }

    fn set_heir(
        &mut self,
        own: Pid,
        id: RegistryId,
        key: &[u8],
        heir: Option<&Address>,
        data: Bytes,
    ) -> Result<(), RegistryError> {
        let number = self.own_table(own, id, key)?;
        check_value(&data)?;
        let heir = heir.map(|heir| self.pid_of(heir).ok_or(RegistryError::NoProc)).transpose()?;
        self.registries.set_heir(number, heir.map(|pid| Heir { pid, data }));
        Ok(())
    }

    /// Who asked for a key whose holder was being killed is answered now that somebody has died.
    pub(super) fn ask_again(&mut self) {
        for Postponed { from, what } in self.waiters.take_postponed() {
            match what {
                Late::Enter(registry, request, value) => {
                    self.asked(from, ProcessRequest::Registry { registry, request }, value);
                }
                Late::Start(request) => self.asked(from, *request, Bytes::new()),
            }
        }
    }

    /// Has the ledger say it, and tells those who watch; not those whose mailbox is full.
    pub(super) fn changed(&mut self, changes: impl IntoIterator<Item = EntryChange>) {
        let changes: Vec<EntryChange> = changes.into_iter().collect();
        self.actions.extend(changes.iter().cloned().map(Action::Entry));
        for change in changes {
            for (watch, watcher) in self.registries.watchers(&change) {
                if self.members.living_actor(watcher).is_some_and(|actor| !actor.mailbox.is_full()) {
                    let value = change.value.as_ref().map(|value| value.to_vec());
                    let (registry, key, holder) = (change.which.clone(), change.key.to_vec(), change.holder);
                    self.send_signal(watcher, Signal::Entry { watch, registry, key, holder, value });
                }
            }
        }
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
            self.unwatch(own, watch);
            if let Some(actor) = self.members.living(own).and_then(|id| self.members.actor_mut(id)) {
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
            self.waiters.postpone(from, Late::Enter(registry, request, value));
            return None;
        }
        let answer = match request {
            RegistryRequest::Enter { key, who } => self.enter(own, id, &key, who, value),
            RegistryRequest::Update { key } => self.update(own, id, &key, value),
            RegistryRequest::Leave { key, who } => self.leave(own, id, &key, who),
            RegistryRequest::Give { key, to } => self.give(own, id, &key, &to, &value).map(|()| ProcessAnswer::Ok),
            RegistryRequest::Heir { key, heir } => {
                self.set_heir(own, id, &key, heir.as_ref(), value).map(|()| ProcessAnswer::Ok)
            }
            RegistryRequest::Look { key } => Ok(ProcessAnswer::Entries(self.found(id, &key))),
            RegistryRequest::Watch { key } => check_key(id, &key).map(|()| {
                let watch = self.links.next_monitor();
                self.registries.watch(watch, own, registry, &key);
                self.note_made(own, |made| made.watches.push(watch));
                ProcessAnswer::Watching { watch, entries: self.found(id, &key) }
            }),
            RegistryRequest::WatchRows { lower, upper, .. }
                if lower.len().max(upper.as_ref().map_or(0, Vec::len)) > MOST_KEY =>
            {
                Err(RegistryError::TooMuch(format!("a key of more than {MOST_KEY} bytes")))
            }
            RegistryRequest::WatchRows { .. } if self.registries.row_watches_of(own) >= MOST_ROW_WATCHES => {
                Err(RegistryError::TooMuch(format!("an actor may watch {MOST_ROW_WATCHES} keys or prefixes of tables")))
            }
            RegistryRequest::WatchRows { key, lower, upper } => match self.registries.entries(id, &key).first() {
                Some(entry) if id == RegistryId::TABLES => {
                    let is_private = Table::decode(&entry.value).is_some_and(|table| table.access == Access::Private);
                    if is_private && entry.holder != own {
                        return Some(ProcessAnswer::Registry(RegistryError::NotYours));
                    }
                    let id = TableId(entry.number);
                    let watch = self.links.next_monitor();
                    let rows = RowWatch { watch, by: own, id, lower, upper };
                    self.registries.watch_rows(rows.clone(), &key);
                    self.note_made(own, |made| made.watches.push(watch));
                    self.actions.push_back(Action::WatchRows { from: from.worker(), rows });
                    return None;
                }
                _ => Err(RegistryError::NotRegistered),
            },
            RegistryRequest::LeastBusy { key } => Ok(ProcessAnswer::Pid(self.least_busy(id, &key))),
            RegistryRequest::Unwatch { .. } => Ok(ProcessAnswer::Ok),
        };
        Some(answer.unwrap_or_else(ProcessAnswer::Registry))
    }

    /// Ends a watch.
    pub(super) fn unwatch(&mut self, own: Pid, watch: u64) {
        if self.registries.unwatch(own, watch) {
            self.unwatch_rows(watch);
        }
    }

    fn unwatch_rows(&mut self, watch: u64) {
        self.actions.push_back(Action::UnwatchRows { watch, heir: None, has_missed: false });
    }

    /// Ends a watch that a process has made whose place another has taken. If that watches the same rows, it is told what
    /// the one before has not seen.
    pub(super) fn replace_watch(&mut self, own: Pid, watch: u64) {
        let heir = self.registries.later_watch(watch);
        let waited = self.members.living(own).and_then(|id| self.members.actor_mut(id));
        let has_missed = waited.is_some_and(|actor| actor.mailbox.take_back(watch));
        if self.registries.unwatch(own, watch) {
            self.actions.push_back(Action::UnwatchRows { watch, heir, has_missed });
        }
    }

    /// A watch of rows has not begun after all.
    pub(super) fn row_watch_failed(&mut self, watch: u64) {
        if let Some(by) = self.registries.row_watch(watch).map(|(rows, _)| rows.by) {
            self.registries.unwatch(by, watch);
        }
    }

    /// Rows have changed that somebody watches, who has seen what was told before. If that waits still (a store before has
    /// told it, or its worker does not say the truth), one message takes the place of both.
    pub(super) fn rows_changed(&mut self, watch: u64, changes: &[u8], is_last: bool) {
        let found = self.registries.row_watch(watch).map(|(rows, key)| (rows.by, key.to_vec()));
        let Some((by, key)) = found else { return self.unwatch_rows(watch) };
        let Some(actor) = self.members.living(by).and_then(|id| self.members.actor_mut(id)) else { return };
        let has_waited = actor.mailbox.take_back(watch);
        let changes = if has_waited && !is_last { Vec::new() } else { changes.to_vec() };
        self.send_signal(by, Signal::Rows { watch, key, changes });
        if is_last {
            self.registries.unwatch(by, watch);
        }
    }

    fn found(&self, id: RegistryId, key: &[u8]) -> Vec<Entry> {
        let entries = self.registries.entries(id, key).iter().filter(|entry| !self.is_dying(entry.holder));
        entries.map(|entry| Entry { holder: entry.holder, value: entry.value.to_vec() }).collect()
    }

    /// Whose entry is meant. Those of a registry of the tree are each actor's own affair (NAM-005).
    fn whose(&self, own: Pid, id: RegistryId, who: Option<Address>) -> Result<Pid, RegistryError> {
        let Some(to) = who else { return Ok(own) };
        let pid = self.pid_of(&to).ok_or(RegistryError::NoProc)?;
        let is_open = matches!(id, RegistryId::NAMES | RegistryId::GROUPS | RegistryId::TABLES);
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
        let holder = self.whose(own, id, who.clone())?;
        if self.is_dying(holder) {
            return Err(RegistryError::NoProc);
        }
        check_key(id, key)?;
        check_value(&value)?;
        if id == RegistryId::TABLES && Table::decode(&value).is_none() {
            return Err(RegistryError::TooMuch("this says of no table what it is".into()));
        }
        if let Some(entry) = self.inherited(own, id, key, holder) {
            self.check_room(value.len())?;
            let kind = |value: &[u8]| Table::decode(value).map(|table| table.kind);
            let is_of_another_kind = |it: &crate::registries::Entry| kind(&it.value) != kind(&value);
            if id == RegistryId::TABLES && self.registries.entries(id, key).iter().any(is_of_another_kind) {
                // It is to be another sort of table: one with other rows.
                let changes = self.registries.take_out(id, key, holder, entry.number);
                self.changed(changes);
                return self.enter(own, id, key, who, value);
            }
            let change = self.registries.update_one(id, key, entry.number, value);
            self.changed(change);
            self.note_made(own, |made| made.entries.push(entry));
            return Ok(ProcessAnswer::Ok);
        }
        self.check_room(key.len() + value.len())?;
        if self.registries.is_unique(id) == Some(true) {
            if let Some(entry) = self.registries.entries(id, key).first() {
                return Err(RegistryError::AlreadyRegistered(Some(entry.holder)));
            }
            if id == RegistryId::NAMES && self.members.named(&key_label(key)).is_some() {
                return Err(RegistryError::AlreadyRegistered(None));
            }
        }
        let change = self.registries.enter(id, key, holder, value);
        if let Some(EntryChange { registry, key, number, .. }) = change.clone() {
            self.note_made(own, |made| made.entries.push(MadeEntry { registry, key, holder, number }));
        }
        self.changed(change);
        self.look_for_those_who_wait();
        Ok(ProcessAnswer::Ok)
    }

    /// Whether so many bytes more can be kept.
    fn check_room(&self, bytes: usize) -> Result<(), RegistryError> {
        match self.registries.bytes() + bytes > MOST {
            true => Err(RegistryError::TooMuch("the registries of this node are full".into())),
            false => Ok(()),
        }
    }

    fn update(&mut self, own: Pid, id: RegistryId, key: &[u8], value: Bytes) -> Result<ProcessAnswer, RegistryError> {
        check_value(&value)?;
        self.check_room(value.len())?;
        let change = self.registries.update(id, key, own, value).ok_or(RegistryError::NotRegistered)?;
        self.changed([change]);
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
            if self.members.named(&key_label(key)).is_some() {
                return Err(RegistryError::NotYours);
            }
            let entry = self.registries.entries(id, key).first().ok_or(RegistryError::NotRegistered)?;
            let holder = entry.holder;
            let changes = self.registries.leave(id, key, holder, false);
            self.changed(changes);
            return Ok(ProcessAnswer::Ok);
        }
        let holder = match self.registries.entries(id, key).first() {
            // Whoever may write to a table may delete it (ETS-002).
            Some(entry) if id == RegistryId::TABLES => {
                let is_public = Table::decode(&entry.value).is_some_and(|table| table.access == Access::Public);
                if !is_public && entry.holder != own {
                    return Err(RegistryError::NotYours);
                }
                entry.holder
            }
            _ => self.whose(own, id, who)?,
        };
        let changes = self.registries.leave(id, key, holder, id == RegistryId::GROUPS);
        if changes.is_empty() {
            return Err(RegistryError::NotRegistered);
        }
        self.changed(changes);
        Ok(ProcessAnswer::Ok)
    }

    fn least_busy(&self, id: RegistryId, key: &[u8]) -> Option<Pid> {
        let waiting = |pid: &Pid| {
            let actor = self.members.living_actor(*pid)?;
            Some(actor.mailbox.len() + actor.mailbox.handed().count())
        };
        let entries = self.registries.entries(id, key).iter();
        let holders = entries.map(|entry| entry.holder).filter(|holder| !self.is_dying(*holder));
        holders.filter_map(|pid| Some((waiting(&pid)?, pid))).min_by_key(|(waiting, _)| *waiting).map(|(_, pid)| pid)
    }

    /// Sends one message to every member of a group. Nobody waits for the slowest of many: what finds no room is a dead
    /// letter, and a tick is left out.
    pub(super) fn sent_to_group(&mut self, group: &str, message: &Message, is_tick: bool) {
        let to = Address::Group(group.to_owned());
        let entries = self.registries.entries(RegistryId::GROUPS, &text_key(group)).iter();
        let members: Vec<ActorId> = entries.filter_map(|entry| self.members.living(entry.holder)).collect();
        if is_tick && members.is_empty() {
            self.alarms.skip(1);
        }
        for id in members {
            let is_full = self.members.actor(id).is_some_and(|actor| actor.mailbox.is_full());
            match (is_full, is_tick) {
                (false, _) => self.deliver(id, message.clone(), &to),
                (true, false) => self.overflown(id, message.clone()),
                (true, true) => self.alarms.skip(1),
            }
        }
    }

    /// Every entry of a registry, by key, for people.
    pub(super) fn entry_infos(&self, registry: &Registry) -> Option<Vec<EntryInfo>> {
        let id = self.registry(registry)?;
        let info = |change: EntryChange| {
            let member = self.members.living(change.holder);
            let actor = member.and_then(|id| self.members.actor(id));
            let supervisor = member.and_then(|id| self.members.supervisor(id));
            let holder = actor.map(|actor| actor.label.clone()).or_else(|| Some(supervisor?.path.clone()));
            EntryInfo {
                key: key_label(&change.key),
                holder: holder.unwrap_or_default(),
                pid: change.holder,
                kind: match (actor, supervisor) {
                    (None, Some(supervisor)) => MemberKind::Supervisor(supervisor.sort()),
                    (actor, _) => MemberKind::Actor(actor.map(|actor| actor.spec.class.clone()).unwrap_or_default()),
                },
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
            let is_over = match to {
                Address::Pid(_) => true,
                Address::Actor(id) => !self.members.is_there(*id),
                _ => false,
            };
            return if is_over { Err(()) } else { Ok(None) };
        };
        let is_up = match self.members.living_actor(pid).and_then(|actor| actor.incarnation()) {
            Some(incarnation) => incarnation.machine.is_up(),
            // A supervisor.
            None => true,
        };
        Ok(Some(pid).filter(|_| is_up))
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
        if let Some(wait) = from.wait() {
            self.router.open(wait, On::Up(to.clone()), waits, None);
            if let Some(cycle) = self.deadlock(wait, "") {
                self.router.close(wait);
                return Some(ProcessAnswer::Deadlock(cycle));
            }
        }
        let number = self.waiters.next_number();
        let timer = timeout_ms.map(|ms| self.timers.set(self.now + Duration::from_millis(ms), Due::WaitOver(number)));
        self.waiters.wait_for_start(Waiting { number, from, to, timer });
        None
    }

    /// Answers those for whom somebody has come up, or will not.
    pub(super) fn look_for_those_who_wait(&mut self) {
        for to in self.waiters.addresses() {
            let found = match self.up(&to) {
                Ok(None) => continue,
                Ok(found) => found,
                Err(()) => None,
            };
            for waiting in self.waiters.take_for_start(&to) {
                self.waited(&waiting, found);
            }
        }
    }

    fn waited(&mut self, waiting: &Waiting, found: Option<Pid>) {
        self.timers.cancel(waiting.timer);
        self.answer(waiting.from, ProcessAnswer::Pid(found));
    }

    pub(super) fn wait_over(&mut self, number: u64) {
        if let Some(waiting) = self.waiters.take_number(number) {
            self.waited(&waiting, None);
        }
    }

    /// An incarnation has ended: it waits for nobody, watches nothing, and who waited for it in person waits in vain.
    pub(super) fn forget_waiter(&mut self, pid: Pid) {
        for watch in self.registries.watches_of(pid).collect::<Vec<_>>() {
            self.unwatch(pid, watch);
        }
        for timer in self.waiters.forget(pid) {
            self.timers.cancel(timer);
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
        // One key has one way to be written.
        Ok(value) if value::encode(&value) != key => Err(RegistryError::TooMuch("a key that is no key".into())),
        Ok(Value::Str(_)) => Ok(()),
        Ok(_) if !matches!(id, RegistryId::NAMES | RegistryId::GROUPS | RegistryId::TABLES) => Ok(()),
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
