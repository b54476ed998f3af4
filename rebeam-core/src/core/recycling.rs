//! What an actor has made when it goes on in a new process, and how the `init` of that replaces it.
//!
//! What is to be replaced is noted in [`Made`] as it is made; here it is taken back, or taken over. The steps of recycling
//! itself are those of [`crate::incarnation`]'s machine.

use rebeam_protocol::address::{Address, Registry};
use rebeam_protocol::id::{ActorId, Pid};
use rebeam_protocol::ledger::{RegistryId, text_key};

use super::Core;
use crate::incarnation::{Incarnation, Made, MadeBefore, MadeEntry};
use crate::registries::Key;

impl Core {
    /// The next process of an incarnation is about to be made. With `is_all`, it starts over, and makes everything again.
    pub(super) fn keep_what_it_made(
        &mut self,
        id: ActorId,
        incarnation: &mut Incarnation,
        is_replaced: bool,
        is_all: bool,
    ) {
        let pid = incarnation.process().pid;
        // What is not replaced yet, since the process that was to replace it has failed.
        let earlier = incarnation.made_before.take().map(|before| before.made).unwrap_or_default();
        let made = match is_all {
            true => self.all_it_made(id, pid),
            false => earlier.followed_by(std::mem::take(&mut incarnation.made)),
        };
        incarnation.made = Made::default();
        incarnation.inherited = if is_replaced { made.entries.clone() } else { Vec::new() };
        incarnation.made_before = Some(MadeBefore { made, is_replaced });
    }

    /// The next process is up: what the one before it had made is taken back if this one has made it again.
    pub(super) fn replace_what_was_made_before(&mut self, id: ActorId, pid: Pid) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        let Some(MadeBefore { made, is_replaced }) = incarnation.made_before.take() else { return };
        if is_replaced {
            return self.take_back(id, pid, made);
        }
        let later = std::mem::take(&mut incarnation.made);
        incarnation.made = made.followed_by(later);
    }

    /// The next process has failed, and the one before it goes on: what the next one had made is taken back.
    pub(super) fn restore_what_was_made_before(&mut self, id: ActorId, pid: Pid) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        incarnation.inherited.clear();
        let before = incarnation.made_before.take().map(|before| before.made).unwrap_or_default();
        let made = std::mem::take(&mut incarnation.made).without(&before);
        incarnation.made = before;
        self.take_back_all(id, pid, made);
    }

    /// Takes back what an actor has made since it had made that.
    pub(super) fn take_back_since(&mut self, id: ActorId, pid: Pid, then: &Made) {
        let made = self.all_it_made(id, pid).without(then);
        self.take_back_all(id, pid, made);
    }

    fn take_back_all(&mut self, id: ActorId, pid: Pid, mut made: Made) {
        for entry in std::mem::take(&mut made.entries) {
            let changes = self.registries.take_out(entry.registry, &entry.key, entry.holder, entry.number);
            self.changed(changes);
        }
        self.take_back(id, pid, made);
    }

    /// Takes back timers, monitors and watches.
    fn take_back(&mut self, id: ActorId, pid: Pid, made: Made) {
        for alarm in made.alarms {
            let timer = self.alarms.remove(alarm).map(|alarm| alarm.key);
            self.timers.cancel(timer);
        }
        for monitor in &made.monitors {
            self.links.demonitor(pid, *monitor);
        }
        for watch in &made.watches {
            self.replace_watch(pid, *watch);
        }
        let Some(actor) = self.members.actor_mut(id) else { return };
        for number in made.monitors.into_iter().chain(made.watches) {
            actor.mailbox.take_back(number);
        }
    }

    /// What an incarnation has made in all of its life; not what it is called by its place in the tree.
    pub(super) fn all_it_made(&self, id: ActorId, pid: Pid) -> Made {
        let name = self.members.name_of(id).map(|name| text_key(name));
        let via = self.members.actor(id).and_then(|actor| actor.spec.via.as_ref());
        let via = via.and_then(|(registry, key)| Some((self.registry(&Registry::Named(registry.clone()))?, key)));
        let is_of_tree = |registry: RegistryId, key: &Key| {
            (registry == RegistryId::NAMES && name.as_deref() == Some(&**key))
                || via.is_some_and(|(table, own)| registry == table && **own == **key)
        };
        let held = self.registries.held_by(pid).filter(|(registry, key, _)| !is_of_tree(*registry, key));
        let entry = |(registry, key, number): (RegistryId, &Key, u64)| MadeEntry {
            registry,
            key: key.clone(),
            holder: pid,
            number,
        };
        Made {
            // What it has promised others for later comes all the same.
            alarms: self.alarms.of(pid, |alarm| alarm.every.is_some() || alarm.to == Address::Pid(pid)),
            monitors: self.links.monitors_of(pid),
            watches: self.registries.watches_of(pid).collect(),
            entries: held.map(entry).collect(),
        }
    }

    /// `init` has returned: what an earlier one had entered, and this one has not, is taken out.
    pub(super) fn let_go_what_was_not_made_again(&mut self, id: ActorId) {
        let Some(incarnation) = self.members.incarnation_mut(id) else { return };
        for MadeEntry { registry, key, holder, number } in std::mem::take(&mut incarnation.inherited) {
            let changes = self.registries.take_out(registry, &key, holder, number);
            self.changed(changes);
        }
    }

    /// What an earlier `init` of the same incarnation has entered: this one takes it over.
    pub(super) fn inherited(&mut self, own: Pid, id: RegistryId, key: &[u8], holder: Pid) -> Option<MadeEntry> {
        let own = self.members.living(own)?;
        let inherited = &mut self.members.incarnation_mut(own)?.inherited;
        let is_it = |it: &MadeEntry| it.registry == id && *it.key == *key && it.holder == holder;
        let entry = inherited.remove(inherited.iter().position(is_it)?);
        let is_there =
            self.registries.entries(id, key).iter().any(|it| it.number == entry.number && it.holder == holder);
        is_there.then_some(entry)
    }

    /// Notes what an incarnation makes, if that is to be replaced when it is recycled.
    pub(super) fn note_made(&mut self, own: Pid, note: impl FnOnce(&mut Made)) {
        let own = self.members.living(own);
        if let Some(incarnation) = own.and_then(|own| self.members.incarnation_mut(own)) {
            incarnation.note_made(note);
        }
    }
}
