//! The end of a connection: what is still in flight for it, and when its host may connect again.

use super::core::{Admin, ConnectionId, Core, From, State};

impl Core {
    /// Counts a request or task that came back. True when its command is still wanted.
    pub(super) fn came_back(&mut self, from: From) -> bool {
        let connection = self.at(from);
        debug_assert_eq!(
            connection.generation, from.connection.generation,
            "an index is free when nothing is out"
        );
        if connection.generation != from.connection.generation {
            return false;
        }
        connection.out -= 1;
        if std::mem::take(&mut connection.slots[usize::from(from.slot)].changes) {
            connection.changing -= 1;
        }
        if connection.is_open {
            return true;
        }
        // Of a closed connection: its buffers go back to the pool, and nobody hears of it.
        if matches!(self.slot(from).state, State::Copy(_)) {
            self.copy_dropped(from, false);
        }
        self.at(from).slots[usize::from(from.slot)].state = State::Free;
        self.drain(from.connection);
        false
    }

    /// Looks whether a closed connection has nothing left that could change a namespace, as its host's next Connect wants to know,
    /// and then whether it has nothing left at all.
    fn drain(&mut self, id: ConnectionId) {
        let connection = &mut self.connections[id.index()];
        let ends = connection.queue.controller.as_ref().zip(connection.queue.id);
        if connection.changing == 0
            && let Some((controller, qid)) = ends
            && !std::mem::replace(&mut connection.is_drained, true)
        {
            controller.drained(qid);
        }
        if connection.out == 0 {
            connection.queue.controller = None;
            self.free.push(id.index);
        }
    }

    /// Closes a connection: its copies are cancelled, its other commands end, and nobody hears of them.
    ///
    /// # Panics
    /// When it is closed already.
    pub fn disconnect(&mut self, id: ConnectionId) {
        assert!(self.get(id).is_some(), "a connection is closed once");
        let is_its = |from: &From| from.connection == id;
        self.waiting.retain(|(from, _)| !is_its(from));
        self.connecting.retain(|c| !is_its(&c.from));
        self.answers.retain(|answer| !is_its(&answer.from));
        self.drop_copies(id);
        let connection = &mut self.connections[id.index()];
        connection.is_open = false;
        connection.admin = Admin::default();
        if let Some((controller, qid)) = connection.queue.controller.as_ref().zip(connection.queue.id) {
            controller.disconnect(qid);
        }
        self.drain(id);
    }
}
