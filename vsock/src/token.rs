//! What an epoll event is about, in 64 bits.

/// Index of a connection in the table, with a generation so that an event for its predecessor is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The vhost-user socket.
    Frontend,
    /// A queue's kick.
    Kick(u8),
    /// Commands from other threads.
    Wake,
    /// The hybrid listener.
    Listener,
    /// A host program that has not said `CONNECT` yet.
    Greeting(u32),
    /// A connection's socket.
    Conn(ConnId),
}

const CONN: u64 = 1 << 63;

impl Token {
    pub(crate) fn pack(self) -> u64 {
        match self {
            Self::Frontend => 0,
            Self::Wake => 1,
            Self::Listener => 2,
            Self::Kick(queue) => 1 << 32 | u64::from(queue),
            Self::Greeting(id) => 2 << 32 | u64::from(id),
            // The generation loses its top bit; ConnId never uses it.
            Self::Conn(id) => CONN | u64::from(id.generation) << 32 | u64::from(id.slot),
        }
    }

    pub(crate) fn unpack(raw: u64) -> Option<Self> {
        let low = raw as u32;
        if raw & CONN != 0 {
            let generation = ((raw & !CONN) >> 32) as u32;
            return Some(Self::Conn(ConnId { slot: low, generation }));
        }
        match (raw >> 32, low) {
            (0, 0) => Some(Self::Frontend),
            (0, 1) => Some(Self::Wake),
            (0, 2) => Some(Self::Listener),
            (1, queue) => u8::try_from(queue).ok().map(Self::Kick),
            (2, id) => Some(Self::Greeting(id)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_comes_back() {
        let conn = Token::Conn(ConnId { slot: u32::MAX, generation: u32::MAX >> 1 });
        for token in [Token::Frontend, Token::Wake, Token::Listener, Token::Kick(1), Token::Greeting(7), conn]
        {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
    }
}
