//! The order of the records (SEED S12), which the writer keeps and the reader enforces.

use super::wire::RecordType;

/// How far in the order a stream has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Order {
    rank: u8,
}

/// Header, container and tasks stand once each, in this order; then every rank may be left out or have many records.
const FIRST_REPEATED: u8 = 3;
const CHUNKS: u8 = 5;
const ENDED: u8 = 7;

fn rank(record_type: RecordType) -> Option<u8> {
    match record_type {
        RecordType::Header => Some(0),
        RecordType::Container => Some(1),
        RecordType::Tasks => Some(2),
        RecordType::Object | RecordType::TaskState => Some(3),
        RecordType::Vma => Some(4),
        RecordType::Chunk => Some(CHUNKS),
        RecordType::Trailer => Some(6),
        RecordType::Error | RecordType::Index | RecordType::Delta => None,
    }
}

impl Order {
    /// Behind the header.
    pub(super) fn after_header() -> Order {
        Order { rank: 1 }
    }

    /// Goes on to a record of this type; if it may not stand here, says what may.
    pub(super) fn admit(&mut self, record_type: RecordType) -> Result<(), &'static str> {
        if record_type == RecordType::Error && self.rank != ENDED {
            self.rank = ENDED;
            return Ok(());
        }
        if record_type == RecordType::Delta && self.rank == 1 {
            // It stands for all of them.
            self.rank = CHUNKS;
            return Ok(());
        }
        match rank(record_type) {
            Some(rank) if self.rank < FIRST_REPEATED && rank == self.rank => self.rank += 1,
            Some(6) if (FIRST_REPEATED..ENDED).contains(&self.rank) => self.rank = ENDED,
            Some(rank) if self.rank >= FIRST_REPEATED && rank >= self.rank => self.rank = rank,
            _ => return Err(self.expected()),
        }
        Ok(())
    }

    fn expected(self) -> &'static str {
        match self.rank {
            0 => "the header",
            1 => "the container, or changes to the parent's metadata,",
            2 => "the tasks",
            3 => "an object, a task state, a vma, a chunk or the trailer",
            4 => "a vma, a chunk or the trailer",
            5 => "a chunk or the trailer",
            _ => "nothing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecordType::*;
    use super::*;

    fn admits(types: &[RecordType]) -> bool {
        let mut order = Order::default();
        types.iter().all(|t| order.admit(*t).is_ok())
    }

    #[test]
    fn keeps_the_order_of_the_format() {
        assert!(admits(&[Header, Container, Tasks, Object, TaskState, Object, Vma, Vma, Chunk, Chunk, Trailer]));
        assert!(admits(&[Header, Container, Tasks, Trailer]));
        assert!(admits(&[Header, Delta, Chunk, Trailer]));
        assert!(admits(&[Header, Delta, Trailer]));
        assert!(admits(&[Header, Error]));
        assert!(admits(&[Error]));
        for wrong in [
            &[Container] as &[RecordType],
            &[Header, Header],
            &[Header, Tasks],
            &[Header, Container, Trailer],
            &[Header, Container, Tasks, Tasks],
            &[Header, Container, Tasks, Vma, Object],
            &[Header, Container, Tasks, Chunk, Vma],
            &[Header, Container, Tasks, Trailer, Chunk],
            &[Header, Container, Tasks, Trailer, Trailer],
            &[Header, Container, Tasks, Trailer, Error],
            &[Header, Container, Tasks, Index],
            &[Delta],
            &[Header, Delta, Delta],
            &[Header, Delta, Container],
            &[Header, Delta, Vma],
            &[Header, Container, Delta],
            &[Header, Container, Tasks, Delta],
            &[Error, Error],
        ] {
            assert!(!admits(wrong), "{wrong:?}");
        }
    }
}
