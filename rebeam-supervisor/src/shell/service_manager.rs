//! What a service manager wants to know (`sd_notify`): that the node is up, that it goes, and that it still turns.
//!
//! Where none has started us, nothing of this does anything.

use sd_notify::NotifyState;

use crate::shell::engine::Node;

/// Variables of the service manager's that are for us and not for actors.
pub(crate) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The tree is up.
pub(crate) fn ready(actors: usize) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("up with {actors} actors"))]);
}

/// The node is being stopped.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Says, as often as it is asked for, that the supervisor's loop turns, and how the node is.
pub(crate) async fn watchdog(node: Node) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        let health = node.health();
        let status = match health.troubles.first() {
            Some(trouble) => format!("{} in trouble: {}: {}", health.troubles.len(), trouble.actor, trouble.detail),
            None => format!("{} actors", node.alive().len()),
        };
        tell(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
        tokio::time::sleep(period / 2).await;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    // A service manager that does not listen is no reason to stop.
    let _ = sd_notify::notify(states);
}
