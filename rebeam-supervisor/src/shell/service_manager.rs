//! What a service manager wants to know (`sd_notify`): that the node is up, that it goes, and that it still turns.
//!
//! A thread tells it, since a service manager that is slow to listen is no reason to wait. Where none has started us,
//! nothing of this does anything.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// Variables of the service manager's that are for us and not for actors.
pub(crate) const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// The longest status that is told, in characters.
const LONGEST: usize = 200;

/// News for the service manager.
enum News {
    Ready(String),
    Stopping,
    Alive(String),
    /// Nothing: everything before it has been told.
    Flush(SyncSender<()>),
}

/// The tree is up.
pub(crate) fn ready(actors: usize) {
    tell(News::Ready(format!("up with {actors} actors")));
}

/// The node is being stopped.
pub(crate) fn stopping() {
    tell(News::Stopping);
}

/// Waits a moment for what was told to be sent: the process ends.
pub(crate) fn finish() {
    let (done, is_done) = sync_channel(1);
    tell(News::Flush(done));
    let _ = is_done.recv_timeout(Duration::from_millis(200));
}

/// How often it is to be told that the supervisor's loop turns, if at all.
pub(crate) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|longest| longest / 2)
}

/// The supervisor's loop turns, and this is how the node is.
pub(crate) fn alive(status: String) {
    tell(News::Alive(status));
}

fn tell(news: News) {
    static TELLER: OnceLock<Option<SyncSender<News>>> = OnceLock::new();
    let teller = TELLER.get_or_init(|| {
        std::env::var_os("NOTIFY_SOCKET")?;
        let (sender, receiver) = sync_channel::<News>(64);
        let work = move || receiver.into_iter().for_each(send);
        std::thread::Builder::new().name("notify".into()).spawn(work).ok()?;
        Some(sender)
    });
    if let Some(teller) = teller {
        let _ = teller.try_send(news);
    }
}

fn send(news: News) {
    // A service manager that does not listen is no reason to stop.
    let _ = match news {
        News::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&in_one_line(&status))]),
        News::Stopping => sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]),
        News::Alive(status) => sd_notify::notify(&[NotifyState::Watchdog, NotifyState::Status(&in_one_line(&status))]),
        News::Flush(done) => {
            let _ = done.send(());
            Ok(())
        }
    };
}

/// Part of it is what an actor says: a second line would be another message to the service manager.
fn in_one_line(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_actor_says_is_no_message_of_ours() {
        assert_eq!(in_one_line("warm\nMAINPID=1\0"), "warm MAINPID=1 ");
        assert_eq!(in_one_line(&"x".repeat(1000)).len(), LONGEST);
    }
}
